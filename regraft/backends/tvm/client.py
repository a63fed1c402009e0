"""Has programs built by ``worker``, a process that is started when it is first asked and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from regraft.backends.tvm.built import BuiltProgram
from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.tune import Times
from regraft.errors import BackendError
from regraft.timing import Measured

#: Seconds that a process may take to end when it is asked to.
_PATIENCE = 5.0


class Builder:
    """A worker process and what is needed to talk to it. Requests take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: _Worker | None = None
        self._owner = 0
        self._asked = 0
        os.register_at_fork(after_in_child=partial(_renew_lock, weakref.ref(self)))

    def build(self, text: str, cpu: Cpu, configs: Mapping[str, Sequence[str]]) -> BuiltProgram:
        """The program of the function in ``text``, its kernels for this machine, whose ``cpu`` this is.

        ``configs`` are those of kernels of templates that are not to be the default, see ``worker.build``.

        Raises:
            BackendError: TVM refused it, or the process ended.
        """
        with self._lock, tempfile.TemporaryDirectory() as folder:
            answer = self._ask("build", text, cpu, configs=configs, folder=folder)
            library = answer["library"]
            content = None if library is None else Path(library).read_bytes()
            return BuiltProgram(answer["program"], content, answer["notes"])

    def tune(
        self,
        text: str,
        cpu: Cpu,
        key: str,
        rows: Sequence[int],
        known: Times,
        deadline: float,
        first: Sequence[str] = (),
    ) -> tuple[list[tuple[str, list[str], Measured]], list[str]]:
        """Times of a kernel's candidates (signature, configs, times), and what the user should know.

        Nothing is begun after ``deadline``, by ``time.perf_counter``. What is ``known`` is not tried again.
        ``first`` are configs to begin with, after the default.

        Raises:
            BackendError: TVM refused a kernel, or the process ended.
        """
        with self._lock:
            self._running()  # to start it takes seconds, which count
            listed = [(count, dict(each)) for count, each in known.items()]
            left = max(0.0, deadline - time.perf_counter())
            given = {"key": key, "rows": rows, "known": listed, "budget": left, "first": first}
            answer = self._ask("tune", text, cpu, **given)
        found = [
            (m["signature"], m["forms"], Measured(m["rows"], tuple(m["us"]), m["noise"]))
            for m in answer["measured"]
        ]
        return found, answer["notes"]

    def _ask(self, do: str, text: str, cpu: Cpu, **given: Any) -> dict[str, Any]:
        answer = self._answered({"do": do, "text": text, "cpu": asdict(cpu), **given})
        if "error" in answer:
            raise BackendError(f"TVM refused a kernel: {answer['kind']}: {answer['error']}", "tvm")
        return answer

    def _answered(self, request: Mapping[str, Any]) -> dict[str, Any]:
        process = self._running()
        self._asked += 1
        try:
            line = _exchanged(process, json.dumps({**request, "id": self._asked}))
            answer = json.loads(line) if line else None
            if answer is not None and answer["id"] != self._asked:
                raise BackendError(f"TVM's process answered request {answer['id']}, not {self._asked}", "tvm")
        except BaseException:  # an interrupt too: an answer that nobody took would be the next request's
            self._process = None
            _end(process)
            raise
        if answer is None:
            self._process = None
            raise BackendError(f"the process that runs TVM ended with status {process.wait()}", "tvm")
        return answer

    def _running(self) -> _Worker:
        is_ours = self._owner == os.getpid()  # a forked process must not answer for its parent's requests
        if self._process is None or not is_ours or self._process.poll() is not None:
            self._owner, self._process = os.getpid(), None
            self._process = _started()
            weakref.finalize(self, _end, self._process)
        return self._process


class _Worker(subprocess.Popen[str]):
    """The process, and this end of the pipe whose closing ends it: upon our own end, the system closes it."""

    def __init__(self) -> None:
        found = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
        other, ours = os.pipe()
        self.lifeline = os.fdopen(ours, "wb")
        try:
            super().__init__(
                [sys.executable, "-P", "-m", "regraft.backends.tvm.worker", str(other)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))},
                pass_fds=(other,),
                start_new_session=True,  # Ctrl-C is for the caller
            )
        finally:
            os.close(other)
        os.register_at_fork(after_in_child=partial(_let_go, weakref.ref(self)))


def _renew_lock(known: weakref.ref[Builder]) -> None:
    """In a forked process: a thread that held the lock is not there to give it back."""
    builder = known()
    if builder is not None:
        builder._lock = threading.Lock()


def _let_go(known: weakref.ref[_Worker]) -> None:
    """In a forked process: hold the parent's worker by none of its pipes, or it would outlive the parent.

    They lead nowhere then: to close them would write what another thread was about to.
    """
    process = known()
    if process is None:
        return
    nowhere = os.open(os.devnull, os.O_RDWR)
    for pipe in (process.stdin, process.stdout, process.lifeline):
        if pipe is not None and not pipe.closed:
            os.dup2(nowhere, pipe.fileno(), inheritable=False)
    os.close(nowhere)


def _started() -> _Worker:
    """A worker that has loaded TVM."""
    process = _Worker()
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
    except BaseException:  # an interrupt
        _end(process)
        raise
    if not ready:
        raise BackendError(f"TVM cannot be loaded: its process ended with status {process.wait()}", "tvm")
    return process


def _exchanged(process: subprocess.Popen[str], line: str) -> str:
    """The line that ``process`` answers ``line`` with; nothing when it has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline()
    except BrokenPipeError:
        return ""


def _end(process: _Worker) -> None:
    """End the worker, whatever it is at. A forked process, whose child it is not, sends it no signal."""
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.lifeline):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what it never read
                pipe.close()
