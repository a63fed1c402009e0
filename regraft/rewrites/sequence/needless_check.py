"""Checks that hold in every call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import Builder, Declined, Example, Match, Op, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.dynamic.samples import below, loop
from regraft.rewrites.sequence.counting import number_of, trips_of


class NeedlessCheck(Rewrite):
    """while(i < n){check(i < n), h = f(h)} = while(i < n){h = f(h)}

    A place in a list or along an axis that the number of the trip says, and what constants and sizes decide.
    """

    stage = "recover"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.rg.check(p, op.attr("message"))

    def check(self, m: Match) -> Declined | None:
        if _holds(m.root, m.p):
            return None
        return m.decline("no constant, size or number of a trip says that it holds", m.p)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        return []


def _holds(op: Op, pred: Value) -> bool:
    if number_of(pred, {}) == 1:
        return True
    around = None if op.parent is None else op.parent.parent
    if around is None or around.name != "cf.while" or op.parent is not around.regions[1]:
        return False
    trips = trips_of(around)
    return trips is not None and trips.holds(pred)


# -- examples ----------------------------------------------------------------------------------


def _summed(op: Builder, h: Value, x: Value, *, beyond: int = 0) -> Sequence[Value]:
    """``h = h + x[n]``, where ``n + beyond`` is checked to be a row of ``x``, for each row."""
    size = x.tensor.shape[0]

    def trip(op: Builder, n: Value, h: Value, x: Value) -> tuple[Value, ...]:
        last = op.aten.add.Scalar(n, beyond)
        is_there = op.aten.lt.Tensor(last, op.rg.dim_value(size))
        from_behind = op.aten.ge.Tensor(n, op.aten.neg(op.rg.dim_value(size)))
        op.rg.check(op.aten.bitwise_and.Tensor(from_behind, is_there), "no such row")
        row = op.aten.index.Tensor(x, (op.aten.view(n, (1,)),))
        return op.aten.add.Scalar(n, 1), op.aten.add.Tensor(h, row), x

    start = op.rg.dim_value(0 * size)
    return loop(op, (start, h, x), below(size), trip)


def _of_size(op: Builder, x: Value, *, least: int) -> Value:
    op.rg.check(op.aten.ge.Scalar(op.rg.dim_value(x.tensor.shape[0]), least), "too short")
    return op.aten.neg(x)


NeedlessCheck.examples = (
    Example(lambda op, h, x: _summed(op, h, x)[1], ("f32[1, 4]", "f32[T, 4]")),
    Example(lambda op, h, x: _summed(op, h, x)[1], ("f32[1, 4]", "f32[3, 4]")),
    Example(lambda op, x: _of_size(op, x, least=0), ("f32[T, 4]",)),
)
NeedlessCheck.counterexamples = (
    Example(
        lambda op, h, x: _summed(op, h, x, beyond=1)[1],
        ("f32[1, 4]", "f32[T, 4]"),
        reason="number of a trip says",
    ),
    Example(lambda op, x: _of_size(op, x, least=99), ("f32[T, 4]",), reason="number of a trip says"),
)
