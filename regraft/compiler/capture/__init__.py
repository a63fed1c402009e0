"""From a torch model to a module of the IR."""

from __future__ import annotations

from regraft.compiler.capture import control
from regraft.compiler.capture.example import Call, named, split
from regraft.compiler.capture.export import Captured, call_of, capture_model
from regraft.compiler.capture.models import as_module
from regraft.compiler.capture.size_one import holds_at_size_one

__all__ = [
    "Call",
    "Captured",
    "as_module",
    "call_of",
    "capture_model",
    "control",
    "holds_at_size_one",
    "named",
    "split",
]
