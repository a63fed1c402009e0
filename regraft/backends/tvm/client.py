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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regraft.backends.tvm.cpu import Cpu
from regraft.errors import BackendError


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
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = process.wait()
            self._process = None
            raise BackendError(f"the process that runs TVM ended with status {status}", "tvm")
        return json.loads(line)

    def _running(self) -> subprocess.Popen[str]:
        is_ours = self._owner == os.getpid()  # a forked process must not answer for its parent's requests
        if self._process is None or not is_ours or self._process.poll() is not None:
            found = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "regraft.backends.tvm.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found))},
                start_new_session=True,  # Ctrl-C is for the caller, upon whose end the worker ends too
            )
            weakref.finalize(self, _end, self._process)
            ready = self._process.stdout.readline() if self._process.stdout else ""
            if not ready:
                status = self._process.wait()
                self._process = None
                raise BackendError(f"TVM cannot be loaded: its process ended with status {status}", "tvm")
        return self._process


def _end(process: subprocess.Popen[str]) -> None:
    """Close the worker's input, upon which it ends."""
    if process.stdin is not None:
        process.stdin.close()
    if process.stdout is not None:
        process.stdout.close()
    process.wait()
