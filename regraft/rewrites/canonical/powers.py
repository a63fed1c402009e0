"""One spelling for squares and roots."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Exactness, Example, Match, PatternBuilder, Rewrite, Value, Var


class Square(Rewrite):
    """x * x = x ** 2; torch computes the second as the first."""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.mul.Tensor(x, x)

    def check(self, m: Match) -> Declined | None:
        dtype = m.x.tensor.dtype
        return None if dtype.is_float or dtype.is_integer else m.decline(f"{dtype.value} has no squares", m.x)

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.pow.Tensor_Scalar(m.x, 2)

    examples = (
        Example(lambda op, x: op.aten.mul.Tensor(x, x), ("f32[3]",)),
        Example(lambda op, x: op.aten.mul.Tensor(x, x), ("i64[3]",)),
        Example(lambda op, x: op.aten.mul.Tensor(x, x), ("bf16[30]",)),
    )
    counterexamples = (
        Example(lambda op, x: op.aten.mul.Tensor(x, x), ("bool[3]",), reason="bool has no squares"),
        Example(
            lambda op, x, y: op.aten.mul.Tensor(x, y), ("f32[3]", "f32[3]"), reason="two different values"
        ),
    )


class Root(Rewrite):
    """x ** 0.5 = sqrt(x), x ** -0.5 = rsqrt(x); torch computes the first as the second."""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.pow.Tensor_Scalar(x, op.attr("exponent"))

    def check(self, m: Match) -> Declined | None:
        return (
            None
            if abs(m.attr("exponent")) == 0.5
            else m.decline("the exponent is not 0.5 or -0.5", m.holder("exponent"))
        )

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.sqrt(m.x) if m.attr("exponent") > 0 else op.aten.rsqrt(m.x)

    examples = (
        Example(lambda op, x: op.aten.pow.Tensor_Scalar(op.aten.abs(x), 0.5), ("f32[3]",)),
        Example(lambda op, x: op.aten.pow.Tensor_Scalar(op.aten.abs(x), -0.5), ("f32[3]",)),
        Example(lambda op, x: op.aten.pow.Tensor_Scalar(op.aten.abs(x), 0.5), ("bf16[30]",)),
    )
    counterexamples = (
        Example(lambda op, x: op.aten.pow.Tensor_Scalar(x, 2), ("f32[3]",), reason="the exponent is not"),
    )


class ReciprocalRoot(Rewrite):
    """1 / sqrt(x) = rsqrt(x), up to the rounding of one operation."""

    stage = "canonicalize"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.reciprocal(op.aten.sqrt(x))

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.rsqrt(m.x)

    examples = (Example(lambda op, x: op.aten.reciprocal(op.aten.sqrt(op.aten.abs(x))), ("f32[3]",)),)
    counterexamples = (
        Example(lambda op, x: op.aten.reciprocal(op.aten.exp(x)), ("f32[3]",), reason="expected aten.sqrt"),
    )
