"""A process with a limit on memory, for work that a stranger's file asks for.

The limit is on the addresses of a whole process, so that no test's own process has it: another thread there,
as that which hears of the next tests, would run out of memory too. This module is that process and this end
of it: one line of JSON in, one line out.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import regraft
from regraft.errors import ArtefactError, RegraftError

_STATUS = Path("/proc/self/statm")

#: What loading or calling an artefact may take: the model has a few hundred bytes.
ROOM = 1 << 30
#: What a kernel raises when it is asked for the impossible.
FAILURES = (RuntimeError, MemoryError, ValueError, TypeError, LookupError)


class LimitedProcess:
    """Started when it is first asked, kept, and started anew where a request has ended it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def load(self, folder: Path) -> None:
        """Load the artefact in ``folder`` and call it; AssertionError unless it is sound or refused."""
        failure = self._ask("load", str(folder))
        assert failure is None, failure

    def take(self, count: int) -> str | None:
        """The traceback of making a tensor of so many floats, if it has one."""
        return self._ask("take", count)

    def take_unlimited(self, count: int) -> str | None:
        """As ``take``, outside of the limit."""
        return self._ask("take_unlimited", count)

    def _ask(self, do: str, argument: object) -> str | None:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.limits"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the answer is empty
            process.stdin.write(json.dumps([do, argument]) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            self.close()
            raise AssertionError(f"the process ended with status {process.returncode}")
        return json.loads(line)

    def close(self) -> None:
        """End the process, if it has not ended."""
        if self.process is not None:
            self.process.kill()
            with contextlib.suppress(BrokenPipeError):  # what it never read
                self.process.communicate()
        self.process = None


@contextmanager
def room(size: int) -> Iterator[None]:
    """Let this process take ``size`` bytes of addresses more than it has; asking for more is an error.

    Without Linux's /proc nobody knows how much it has, and there is no limit.
    """
    if not _STATUS.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(_STATUS.read_text().split()[0]) * resource.getpagesize()
    limit = taken + size if soft == resource.RLIM_INFINITY else min(soft, taken + size)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _load(folder: str) -> None:
    with room(ROOM):
        try:
            loaded = regraft.load(folder)
        except ArtefactError:
            return
        # A graph that is not ours may fail in a kernel, or ask for too much, as it would in eager.
        with contextlib.suppress(RegraftError, *FAILURES):
            loaded(torch.ones(3, 4))


def _take(count: int) -> None:
    with room(ROOM):
        torch.empty(count)


def _take_unlimited(count: int) -> None:
    torch.empty(count)


_HANDLERS = {"load": _load, "take": _take, "take_unlimited": _take_unlimited}


def main() -> None:
    """Answer requests until the input ends. What anything prints goes to stderr, not among the answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        do, argument = json.loads(line)
        failure = None
        try:
            _HANDLERS[do](argument)
        except Exception:  # whatever it is, the test has to hear of it
            failure = traceback.format_exc()
        print(json.dumps(failure), file=answers, flush=True)


if __name__ == "__main__":
    main()
