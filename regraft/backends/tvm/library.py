"""TVM's runtime without its compiler: tvm-ffi and one shared library, some milliseconds and megabytes.

The runtime reads its settings from the environment when it starts: its threads are not bound to cores (a
bound one shares a core with the caller when the other core is taken) and spin for microseconds only (spinning
on starves whatever runs next); see docs/risks_tvm.md. Settings that are there already stay.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

from regraft.backends.tvm.table import StepLibrary
from regraft.errors import BackendError

#: Both pins belong together: a newer tvm-ffi imports and compiles, then crashes.
PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post0"}
GET = "pip install 'regraft[tvm]'"

R = TypeVar("R")

#: What TVM links by, where no variable names it (CXX, CC).
_COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
_SETTINGS = {"TVM_BIND_THREADS": "0", "TVM_THREAD_POOL_SPIN_COUNT": "2000"}
#: How the pool takes the list of cores: as the cores that all threads share.
_SHARED_CORES = -3


def missing() -> str | None:
    """What this machine lacks to compile with TVM, and how to get it; None when nothing."""
    for package, wanted in PINS.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            return f"the back end 'tvm' needs {package}=={wanted}, which is not installed: {GET}"
        if found != wanted:
            return f"the back end 'tvm' needs {package}=={wanted}, and {found} is installed: {GET}"
    if not (os.environ.get("CXX") or os.environ.get("CC") or any(map(shutil.which, _COMPILERS))):
        return "the back end 'tvm' links kernels with a C compiler, and there is none: install gcc or clang"
    return None


@functools.cache
def runtime() -> Any:
    """tvm_ffi, with TVM's runtime loaded.

    Raises:
        BackendError: one of them is not installed, or cannot be loaded.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import tvm_ffi

        path = metadata.distribution("apache-tvm").locate_file("tvm/lib/libtvm_runtime.so")
        # Kernels look the launcher of parallel loops up among all symbols, and call address 0 without it.
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except (ImportError, OSError, metadata.PackageNotFoundError) as error:
        raise BackendError(f"TVM's runtime cannot be loaded: {error}. Get it by {GET}", "tvm") from error
    return tvm_ffi


@dataclass(frozen=True)
class KernelLibrary:
    """A shared object with kernels: as tvm-ffi has them, and as machine code."""

    module: Any
    code: StepLibrary


def load(library: bytes) -> KernelLibrary:
    """The kernels in a shared object's bytes.

    Raises:
        BackendError: the bytes are no shared object that fits this machine.
    """
    ffi = runtime()
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        try:
            # The module tells the library where the launcher of parallel loops is.
            return KernelLibrary(ffi.load_module(file.name, keep_module_alive=False), StepLibrary(file.name))
        except Exception as error:
            raise BackendError(f"kernels cannot be loaded: {error}", "tvm") from error


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_threads(count: int | None) -> int:
    """``count`` threads, or one for each usable core; never more than there are of these."""
    return min(count or len(_cores()), len(_cores()))


class _Workers(threading.local):
    """Of one thread: TVM keeps workers for each thread that calls kernels.

    Fields:
        told: how many they were last told to be, and in which process.
        stand_in: a thread that calls kernels for this one, and the process in which it does.
    """

    told: tuple[int | None, int] | None = None
    stand_in: tuple[ThreadPoolExecutor, int] | None = None


_WORKERS = _Workers()


def use_threads(count: int | None) -> None:
    """Let kernels that this thread calls run on ``count`` threads; None for one on each usable core."""
    now = count, os.getpid()
    if _WORKERS.told == now:
        return
    configure = runtime().get_global_func("runtime.config_threadpool")
    configure(_SHARED_CORES, usable_threads(count), [str(core) for core in _cores()])
    _WORKERS.told = now


def run_kernels(function: Callable[[], R], threads: int | None) -> R:
    """``function()``, whose kernels run on ``threads`` threads; None for one on each usable core.

    A fork keeps the thread that calls it and no other. If that one has called kernels before, TVM would wait
    for its workers forever: another thread, which gets workers of its own, calls ``function`` then.
    """
    told, process = _WORKERS.told, os.getpid()
    if told is None or told[1] == process:
        use_threads(threads)
        return function()
    if _WORKERS.stand_in is None or _WORKERS.stand_in[1] != process:
        _WORKERS.stand_in = ThreadPoolExecutor(1, "regraft-tvm"), process
    return _WORKERS.stand_in[0].submit(run_kernels, function, threads).result()
