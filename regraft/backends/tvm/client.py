"""Has programs built by ``worker``, a process that is started when it is first asked and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regraft.backends.tvm.cpu import Cpu
from regraft.errors import BackendError

#: Seconds that a process may take to end when it is asked to.
_PATIENCE = 5.0


@dataclass(frozen=True)
class BuiltProgram:
    """A program as ``run.py`` takes it, and the shared object with its kernels (None: it has none)."""

    program: Mapping[str, Any]
    library: bytes | None


class Builder:
    """A worker process and what is needed to talk to it. Requests take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._asked = 0

    def build(self, text: str, cpu: Cpu) -> BuiltProgram:
        """The program of the function in ``text``, its kernels for this machine, whose ``cpu`` this is.

        Raises:
            BackendError: TVM refused it, or the process ended.
        """
        with self._lock, tempfile.TemporaryDirectory() as folder:
            request = {"text": text, "cpu": asdict(cpu), "folder": folder}
            answer = self._ask(request)
            if "error" in answer:
                raise BackendError(f"TVM refused a kernel: {answer['kind']}: {answer['error']}", "tvm")
            library = answer["library"]
            content = None if library is None else Path(library).read_bytes()
            return BuiltProgram(answer["program"], content)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
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

    def _running(self) -> subprocess.Popen[str]:
        is_ours = self._owner == os.getpid()  # a forked process must not answer for its parent's requests
        if self._process is None or not is_ours or self._process.poll() is not None:
            self._owner, self._process = os.getpid(), None
            self._process = _started()
            weakref.finalize(self, _end, self._process)
        return self._process


def _started() -> subprocess.Popen[str]:
    """A worker that has loaded TVM."""
    found = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-m", "regraft.backends.tvm.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))},
        start_new_session=True,  # Ctrl-C is for the caller, upon whose end the worker ends too
    )
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


def _end(process: subprocess.Popen[str]) -> None:
    """End the worker, whatever it is at. A forked process, whose child it is not, sends it no signal."""
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what it never read
                pipe.close()
