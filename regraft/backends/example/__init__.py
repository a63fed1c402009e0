"""The back end to copy: an interpreter over NumPy. README.md beside this file walks through it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.runtime import lazy_names

if TYPE_CHECKING:
    from regraft.backends.example.lower import ExampleBackend

__all__ = ["ExampleBackend"]

# Lowering needs the IR, which a saved artefact runs without.
__getattr__ = lazy_names(__name__, {"ExampleBackend": "regraft.backends.example.lower"})
