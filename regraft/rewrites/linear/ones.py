"""Products with matrices whose elements are all alike, and what becomes of them."""

from __future__ import annotations

from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    DType,
    Exactness,
    Example,
    Match,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
)


class SumOfOnes(Rewrite):
    """x @ full(v) = expand(v * sum(x)), along the axis that the product sums over; also full(v) @ x.

    SOFT (fudan-zvg/SOFT) writes squared norms as products with all-ones.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        filled = op.shared(op.aten.full(op.attr("size"), op.attr("value"), dtype=op.attr("dtype")))
        return op.one_of(op.aten.matmul(x, filled), op.aten.matmul(filled, x))

    def check(self, m: Match) -> Declined | None:
        if m.x.tensor.rank < 2 or len(m.attr("size")) != 2:
            return m.decline("an operand is not a matrix", m.x)
        if not m.x.tensor.dtype.is_float:
            return m.decline("the product is not of floats", m.x)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        axis = m.x.tensor.rank - (1 if m.root.operand("self") is m.x else 2)
        total = op.aten.sum.dim_IntList(m.x, (axis,), True)
        if m.attr("value") != 1:
            total = op.aten.mul.Scalar(total, m.attr("value"))
        return op.aten.expand(total, m.root.result.tensor.shape)

    examples = (
        Example(lambda op, x: op.aten.matmul(x, _full(op, (8, 5), 1)), ("f32[B, N, 8]",)),
        Example(lambda op, x: op.aten.matmul(_full(op, (5, 8), 0.5), x), ("f32[2, 8, 3]",)),
    )
    counterexamples = (
        Example(
            lambda op, x: op.aten.matmul(x, _full(op, (2, 8, 5), 1)),
            ("f32[2, 3, 8]",),
            reason="not a matrix",
        ),
        Example(
            lambda op, x, y: op.aten.matmul(x, y),
            ("f32[2, 8]", "f32[8, 3]"),
            reason="expected aten.full",
        ),
    )


def _full(op: Builder, size: tuple[int, ...], value: float) -> Value:
    return op.aten.full(size, value, dtype=DType.F32)
