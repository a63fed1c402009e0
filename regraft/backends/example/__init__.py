"""The back end to copy: an interpreter over NumPy. README.md beside this file walks through it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regraft.backends.example.lower import ExampleBackend

__all__ = ["ExampleBackend"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # lowering needs the IR, which a saved artefact runs without
        return getattr(import_module("regraft.backends.example.lower"), name)
    raise AttributeError(f"module 'regraft.backends.example' has no attribute '{name}'")
