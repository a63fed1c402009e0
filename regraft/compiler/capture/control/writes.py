"""Writes to tensors, and draws of random numbers, in arms of conditions and in loops.

A graph of values has one value after another, so that a write in an arm would be one in every call. Writes
to tensors that the arm makes itself stay within it; others are refused, and so are draws of random numbers.
"""

# torch's export and fx classes are partly untyped, and schemas have no public names.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import linecache
from typing import NoReturn

from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from regraft.compiler.capture.arguments import draws, overload_name
from regraft.compiler.capture.control.flat import FlatGraph, memory_of, written_by
from regraft.compiler.capture.control.markers import MARKERS
from regraft.compiler.capture.source import location_of
from regraft.errors import CaptureError


def check_regions(program: ExportedProgram) -> None:
    """Refuse writes to tensors from outside, and draws, in the arms and loops of ``program``.

    Raises:
        CaptureError: with the line of the write or the draw.
    """
    flat = FlatGraph(program)
    for node, construct in flat.around.items():
        if construct is None or not isinstance(node.target, OpOverload) or node.target in MARKERS:
            continue
        _check_draw(node, node.target)
        for written in written_by(node):
            memory = memory_of(written)
            if memory is not None and flat.comes_from_outside(memory, construct):
                _refuse(
                    node,
                    f"{overload_name(node.target)} writes, in an arm of a condition or in a loop, to a "
                    "tensor from outside of it",
                    "compute a new tensor on both paths instead",
                )


def _check_draw(node: Node, target: OpOverload) -> None:
    given = {a.name: v for a, v in zip(target._schema.arguments, node.args, strict=False)} | dict(node.kwargs)
    if draws(target, given):
        _refuse(
            node,
            f"{overload_name(target)} draws random numbers in an arm of a condition or in a loop, and how "
            "many are drawn would depend on the data",
            "draw them before the condition or the loop, and pass them in",
        )


def _refuse(node: Node, message: str, hint: str) -> NoReturn:
    where = location_of(node)
    line = linecache.getline(where.file, where.line).strip() if where.file else None
    raise CaptureError(message, location=str(where), source_line=line, hint=hint)
