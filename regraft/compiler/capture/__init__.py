"""From a torch model to a module of the IR."""

from __future__ import annotations

from regraft.compiler.capture.export import Captured, capture_model
from regraft.compiler.capture.models import as_module

__all__ = ["Captured", "as_module", "capture_model"]
