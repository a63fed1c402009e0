"""The commands, and how a run ends: see "Exit codes" in docs/cli.md."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import regraft
from regraft.cli import bench, cache, compiling, demo, doctor, explain, ir, tune
from regraft.cli.output import VERBOSE, stderr_console
from regraft.errors import RegraftError

FAILED, INTERRUPTED, PIPE_CLOSED = 1, 130, 141


class Commands(TyperGroup):
    """Runs a command; what it raises becomes one message and an exit code.

    Mistakes in usage are typer's own, with exit code 2. A bug of ours keeps its traceback.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            _flush()
            return result
        except RegraftError as error:
            _say(type(error).__name__, str(error), trace=bool(ctx.meta.get(VERBOSE)))
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt as interrupt:
            stderr_console().print("interrupted", style="bold red")
            raise typer.Exit(INTERRUPTED) from interrupt
        except BrokenPipeError as error:
            _abandon_stdout()
            raise typer.Exit(PIPE_CLOSED) from error
        except OSError as error:
            _abandon_stdout()
            _say(type(error).__name__, str(error), trace=bool(ctx.meta.get(VERBOSE)))
            raise typer.Exit(FAILED) from error


def _say(title: str, message: str, trace: bool = False) -> None:
    console = stderr_console()
    if trace:
        console.print(traceback.format_exc().rstrip(), style="dim")
    console.print(f"{title}:", style="bold red", end=" ")
    console.print(message)


def _flush() -> None:
    """What is still buffered may meet a closed pipe or a full disk: here, not as the interpreter ends."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _abandon_stdout() -> None:
    """Send what is still buffered nowhere, or the interpreter fails once more as it ends."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    name="regraft",
    help="Compile PyTorch models by rewriting their graphs.",
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"regraft {regraft.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Compile PyTorch models by rewriting their graphs."""


app.command("compile")(compiling.compile_command)
app.command("export")(compiling.export_command)
app.command("explain")(explain.explain_command)
app.command("bisect")(explain.bisect_command)
app.command("ir")(ir.ir_command)
app.command("bench")(bench.bench_command)
app.command("tune")(tune.tune_command)
app.command("doctor")(doctor.doctor_command)
app.command("demo")(demo.demo_command)
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Run the command line of this process."""
    try:
        app()
    except KeyboardInterrupt:  # before a command has begun
        sys.exit(INTERRUPTED)
