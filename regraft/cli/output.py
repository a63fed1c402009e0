"""What a command shows: its result on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console

from regraft.cli.progress import Watch, watching

VERBOSE = "regraft.verbose"
"""The key of ``Context.meta`` under which a command's ``--verbose`` is found."""

PIPED_WIDTH = 100
"""Columns where there is no terminal and ``COLUMNS`` is not set."""


def _remember(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[VERBOSE] = value
    return value


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and JSON if asked for.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Print all there is, and tracebacks of errors.", callback=_remember),
]


def stdout_console() -> Console:
    return _console(sys.stdout, stderr=False)


def stderr_console() -> Console:
    return _console(sys.stderr, stderr=True)


def _console(stream: Any, *, stderr: bool) -> Console:
    """A console that takes text as it is, and that wraps nothing for a reader who is not a terminal."""
    is_terminal = stream is not None and stream.isatty()
    width = None if is_terminal or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=stderr, width=width)


@dataclass(frozen=True)
class Output:
    """How a command was asked to speak."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    @contextmanager
    def working(self, title: str) -> Iterator[Watch]:
        """While the block runs, progress is shown, and what the user's code prints goes to standard error.

        So standard output holds the result and nothing else.
        """
        with redirect_stdout(sys.stderr), watching(stderr_console(), title, quiet=self.quiet) as watch:
            yield watch

    def note(self, text: str) -> None:
        """Say how the work goes, in a line on standard error."""
        if not self.quiet:
            stderr_console().print(text)

    def text(self, text: Any) -> None:
        """Print ``text``, which is anything that rich can print, for a person to read."""
        if not self.as_json and not self.quiet:
            stdout_console().print(text)

    def record(self, result: Mapping[str, Any]) -> None:
        """Print ``result`` for a program to read."""
        if self.as_json:
            print(json.dumps(result, indent=1))

    def show(self, result: Mapping[str, Any], text: Any) -> None:
        """Print the one or the other, as was asked."""
        self.text(text)
        self.record(result)
