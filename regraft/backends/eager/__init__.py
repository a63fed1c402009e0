"""The eager back end: every op through torch's own kernels. The last resort, and the reference."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regraft.backends.eager.lower import EagerBackend

__all__ = ["EagerBackend"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # lowering needs the IR, which a saved artefact runs without
        return getattr(import_module("regraft.backends.eager.lower"), name)
    raise AttributeError(f"module 'regraft.backends.eager' has no attribute '{name}'")
