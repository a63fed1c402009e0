"""Ops that are computed inside the loops of another kernel: an element is wanted, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.backends.tvm.lower import create, elementwise, views
from regraft.backends.tvm.lower.kinds import Pointwise, untyped
from regraft.backends.tvm.lower.reduce import REDUCTIONS
from regraft.ir import Op

PRODUCT = "aten.matmul"

#: Ops of one element. Of others than elementwise ones, those that are read where they are wanted.
POINTWISE: Mapping[str, Pointwise] = {
    **elementwise.LOWERINGS,
    **{n: each for n, each in {**views.LOWERINGS, **create.LOWERINGS}.items() if each.is_free},
}


def refusal(op: Op) -> str | None:
    """Why ``op`` cannot be computed inside another kernel's loops; None when it can."""
    reason = untyped(op)
    if reason is not None:
        return reason
    if op.definition.opaque:
        return op.definition.uncovered
    if op.name == PRODUCT:
        return None
    lowering = POINTWISE.get(op.name) or REDUCTIONS.get(op.name)
    return "there is no lowering inside a kernel" if lowering is None else lowering.check(op)


def is_free(op: Op) -> bool:
    """Whether ``op`` is a view or made from nothing, and costs nothing where it is read."""
    lowering = POINTWISE.get(op.name)
    return lowering is not None and lowering.is_free
