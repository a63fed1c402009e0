"""Back ends by name. Each is a package with its own library, imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from regraft.errors import BackendError, no_such

if TYPE_CHECKING:
    from regraft.backends.protocol import (
        Backend,
        ConstantStore,
        FileExporter,
        FileRunner,
        KernelTuning,
        LowerOptions,
        OnnxEmitter,
    )

#: Name -> (package, class, library it needs).
BUILTIN: dict[str, tuple[str, str, str]] = {
    "ort": ("regraft.backends.ort", "OrtBackend", "onnxruntime"),
    "tvm": ("regraft.backends.tvm", "TvmBackend", "tvm"),
    "eager": ("regraft.backends.eager", "EagerBackend", "torch"),
    "example": ("regraft.backends.example", "ExampleBackend", "numpy"),
}

_LAZY = (
    "Backend",
    "ConstantStore",
    "FileExporter",
    "FileRunner",
    "KernelTuning",
    "LowerOptions",
    "OnnxEmitter",
)

__all__ = [
    "BUILTIN",
    "Backend",
    "ConstantStore",
    "FileExporter",
    "FileRunner",
    "KernelTuning",
    "LowerOptions",
    "OnnxEmitter",
    "backend",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:  # the protocol needs the IR, which a saved artefact runs without
        return getattr(import_module("regraft.backends.protocol"), name)
    raise AttributeError(f"module 'regraft.backends' has no attribute '{name}'")


def backend(name: str) -> Backend:
    """A fresh instance of the built-in back end ``name``.

    Raises:
        BackendError: there is no such back end, or its library is not installed.
    """
    if name not in BUILTIN:
        raise BackendError(no_such("back end", name, BUILTIN))
    package, class_name, library = BUILTIN[name]
    try:
        made: Callable[[], Backend] = getattr(import_module(package), class_name)
    except ImportError as error:
        raise BackendError(
            f"the back end '{name}' needs {library}, which is not installed: {error}"
        ) from error
    return made()
