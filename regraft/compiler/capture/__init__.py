"""From a torch model to a module of the IR."""

from __future__ import annotations

from regraft.compiler.capture.export import Captured, capture_model

__all__ = ["Captured", "capture_model"]
