"""Products in a trip of a scan, the factors with fewer elements first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    DType,
    Exactness,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
    dims,
)
from regraft.rewrites.sequence.samples import scan


class SmallFactors(Rewrite):
    """(a * b) * c = (a * c) * b, in a trip of a scan, where a * c has at most half of the elements

    One pass over all elements less in each trip; where ``a * c`` waits for no trip, it leaves the loop.
    Not in f16, whose largest number ``a * c`` may pass where both products of the model stay below it.
    """

    exactness = Exactness.REASSOCIATES
    stage = "recover"

    def pattern(self, op: PatternBuilder, a: Var, b: Var, c: Var) -> Any:
        return op.aten.mul.Tensor(op.aten.mul.Tensor(a, b), c)

    def check(self, m: Match) -> Declined | None:
        if not _is_in_trip(m.root):
            return m.decline("it is in no trip of a scan", m.root.result)
        if m.root.result.tensor.dtype == DType.F16:
            return m.decline("a product of other factors may overflow in f16", m.root.result)
        if _pair(m) is None:
            return m.decline("no two of the factors have few elements", m.root.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        small = _pair(m)
        assert small is not None
        first, last = small
        return op.aten.mul.Tensor(op.aten.mul.Tensor(first, m.c), last)


def _is_in_trip(op: Op) -> bool:
    around = None if op.parent is None else op.parent.parent
    return around is not None and around.name == "cf.scan"


def _pair(m: Match) -> tuple[Value, Value] | None:
    """The factor to multiply ``c`` with, and the one that is left."""
    inner = m.root.operands[0] if m.root.operands[1] is m.c else m.root.operands[1]
    for first, last in ((m.a, m.b), (m.b, m.a)):
        shape = _joined(first.tensor.shape, m.c.tensor.shape)
        if shape is None or first.tensor.dtype != m.c.tensor.dtype:
            continue
        if dims.le(2 * dims.product(shape), inner.tensor.numel) is True:
            return first, last
    return None


def _joined(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[Dim, ...] | None:
    """The shape that ``a`` and ``b`` are broadcast to; None where that is not known."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b), strict=True)
    joined: list[Dim] = []
    for x, y in pairs:
        if x != 1 and y != 1 and dims.eq(x, y) is not True:
            return None
        joined.append(y if x == 1 else x)
    return tuple(joined)


def _outer(op: Builder, h: Value, a: Value, b: Value, c: Value) -> Sequence[Value]:
    """``h = h + (a_i * b_i) * c_i``."""

    def trip(op: Builder, h: Value, a: Value, b: Value, c: Value) -> tuple[Value]:
        return (op.aten.add.Tensor(h, op.aten.mul.Tensor(op.aten.mul.Tensor(a, b), c)),)

    return scan(op, (h,), (a, b, c), (), trip)


SmallFactors.examples = (
    Example(_outer, ("f32[6, 4]", "f32[5, 6, 1]", "f32[5, 1, 4]", "f32[5, 6, 1]")),
    Example(_outer, ("f32[B, 4]", "f32[5, 1, 4]", "f32[5, B, 1]", "f32[5, B, 1]")),
)
SmallFactors.counterexamples = (
    Example(_outer, ("f32[6, 4]", "f32[5, 6, 4]", "f32[5, 1, 4]", "f32[5, 6, 4]"), reason="few elements"),
    Example(_outer, ("f16[6, 4]", "f16[5, 6, 1]", "f16[5, 1, 4]", "f16[5, 6, 1]"), reason="overflow in f16"),
    Example(
        lambda op, a, b, c: op.aten.mul.Tensor(op.aten.mul.Tensor(a, b), c),
        ("f32[6, 1]", "f32[1, 4]", "f32[6, 1]"),
        reason="no trip",
    ),
)
