"""Conditions and loops that values decide, in captured graphs; Python's control flow as calls of these."""

from __future__ import annotations

from regraft.compiler.capture.control.calls import Calls
from regraft.compiler.capture.control.context import Context, Learnt
from regraft.compiler.capture.control.convert import Converted, convert, original
from regraft.compiler.capture.control.number import Number
from regraft.compiler.capture.control.trace import cond, loop, undecided

__all__ = [
    "Calls",
    "Context",
    "Converted",
    "Learnt",
    "Number",
    "cond",
    "convert",
    "loop",
    "original",
    "undecided",
]
