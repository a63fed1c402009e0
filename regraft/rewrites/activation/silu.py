"""SiLU: y = x * sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118; also called swish)."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Exactness, Example, Match, PatternBuilder, Rewrite, Value, Var


class SiLU(Rewrite):
    """x * sigmoid(x) = x / (1 + exp(-x)) = silu(x)"""

    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        growth = op.aten.exp(op.aten.neg(x))
        return op.one_of(
            op.aten.mul.Tensor(x, op.aten.sigmoid(x)),
            op.aten.div.Tensor(x, op.aten.add.Scalar(growth, op.attr("one"))),
        )

    def check(self, m: Match) -> Declined | None:
        if m.attrs.get("one", 1) == 1:
            return None
        return m.decline("the number added is not 1", m.holder("one"), "x / (1 + exp(-x))")

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.silu(m.x)

    examples = (
        Example(lambda op, x: op.aten.mul.Tensor(x, op.aten.sigmoid(x)), ("f32[B, 8]",)),
        Example(lambda op, x: op.aten.mul.Tensor(op.aten.sigmoid(x), x), ("f32[8]",)),
        Example(lambda op, x: _quotient(op, x, 1.0), ("f32[8]",)),
    )
    counterexamples = (
        Example(  # quick_gelu is another function
            lambda op, x: op.aten.mul.Tensor(x, op.aten.sigmoid(op.aten.mul.Scalar(x, 1.702))),
            ("f32[8]",),
            reason="two different values",
        ),
        Example(lambda op, x: _quotient(op, x, 2.0), ("f32[8]",), reason="not 1"),
        Example(
            lambda op, x: _twice(op, x, op.aten.sigmoid(x)),
            ("f32[8]",),
            reason="users outside the match",
        ),
    )


def _quotient(op: Builder, x: Value, one: float) -> Value:
    return op.aten.div.Tensor(x, op.aten.add.Scalar(op.aten.exp(op.aten.neg(x)), one))


def _twice(op: Builder, x: Value, gate: Value) -> tuple[Value, Value]:
    return op.aten.mul.Tensor(x, gate), gate
