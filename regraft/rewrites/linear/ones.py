"""Products with matrices whose elements are all alike, and what becomes of them."""

from __future__ import annotations

import math
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
    dims,
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
        if m.x.tensor.rank < 2 or len(m.attr("size")) < 2:
            return m.decline("an operand is not a matrix", m.x)
        if not m.x.tensor.dtype.is_float:
            return m.decline("the product is not of floats", m.x)
        if not math.isfinite(m.attr("value")):
            return m.decline("what it is filled with is not finite: inf - inf is nan", m.holder("value"))
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
        Example(lambda op, x: op.aten.matmul(x, _full(op, (2, 8, 5), 1)), ("f32[2, 3, 8]",)),
        Example(lambda op, x: op.aten.matmul(_full(op, (4, 5, 8), 2), x), ("f32[8, 3]",)),
    )
    counterexamples = (
        Example(
            lambda op, x: op.aten.matmul(x, _full(op, (8,), 1)),
            ("f32[2, 3, 8]",),
            reason="not a matrix",
        ),
        Example(
            lambda op, x: op.aten.matmul(x, _full(op, (8, 5), math.inf)),
            ("f32[3, 8]",),
            reason="not finite",
        ),
        Example(
            lambda op, x, y: op.aten.matmul(x, y),
            ("f32[2, 8]", "f32[8, 3]"),
            reason="expected aten.full",
        ),
    )


class SumOfProduct(Rewrite):
    """sum(A @ B, columns) = A @ sum(B, columns), where the product is larger than what it is made of.

    Attention without a softmax divides its weights by such sums, and need not form the weights then.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, a: Var, b: Var) -> Any:
        product = op.shared(op.aten.matmul(a, b))
        return op.aten.sum.dim_IntList(product, op.attr("dim"), op.attr("keepdim"))

    def check(self, m: Match) -> Declined | None:
        a, b = m.a.tensor, m.b.tensor
        if a.rank < 2 or b.rank < 2 or not a.dtype.is_float:
            return m.decline("it is no product of matrices of floats", m.a)
        rank = max(a.rank, b.rank)
        if m.attr("dim") not in ((rank - 1,), (rank - 2,)):
            return m.decline("neither rows nor columns alone are summed up", m.root.result)
        rows, inner, columns = a.shape[-2], a.shape[-1], b.shape[-1]
        if dims.le(rows * columns, inner * (rows + columns)) is True:
            return m.decline("the product is no larger than what it is made of", m.root.operand("self"))
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        rank = max(m.a.tensor.rank, m.b.tensor.rank)
        if m.attr("dim") == (rank - 1,):
            made = op.aten.matmul(m.a, op.aten.sum.dim_IntList(m.b, (m.b.tensor.rank - 1,), True))
        else:
            made = op.aten.matmul(op.aten.sum.dim_IntList(m.a, (m.a.tensor.rank - 2,), True), m.b)
        return op.aten.view(made, m.root.result.tensor.shape)

    examples = (
        Example(
            lambda op, a, b: op.aten.sum.dim_IntList(op.aten.matmul(a, b), (2,), True),
            ("f32[2, 9, 3]", "f32[2, 3, 9]"),
        ),
        Example(
            lambda op, a, b: op.aten.sum.dim_IntList(op.aten.matmul(a, b), (1,), False),
            ("f32[2, N, 3]", "f32[3, 7]"),
        ),
        Example(
            lambda op, a, b: op.aten.sum.dim_IntList(op.aten.matmul(a, b), (2,)),
            ("f32[N, 3]", "f32[2, 3, 9]"),
        ),
    )
    counterexamples = (
        Example(
            lambda op, a, b: op.aten.sum.dim_IntList(op.aten.matmul(a, b), (1,)),
            ("f32[9, 5]", "f32[5, 9]"),
            reason="no larger",
        ),
        Example(
            lambda op, a, b: op.aten.sum.dim_IntList(op.aten.matmul(a, b), (0, 1)),
            ("f32[9, 3]", "f32[3, 9]"),
            reason="neither rows nor columns",
        ),
        Example(
            lambda op, a, b: op.aten.sum.dim_IntList(op.aten.matmul(a, b), (0,)),
            ("f32[2, 9, 3]", "f32[3, 9]"),
            reason="neither rows nor columns",
        ),
    )


def _full(op: Builder, size: tuple[int, ...], value: float) -> Value:
    return op.aten.full(size, value, dtype=DType.F32)
