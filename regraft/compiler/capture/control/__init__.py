"""Conditions and loops that values decide, in captured graphs."""

from __future__ import annotations

from regraft.compiler.capture.control.trace import cond, loop, undecided

__all__ = ["cond", "loop", "undecided"]
