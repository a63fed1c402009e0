"""Ops that do nothing: their result is their operand, bit for bit."""

from __future__ import annotations

import math
from typing import Any

from regraft.ir import Builder, Declined, DType, Example, Match, PatternBuilder, Rewrite, Value, Var, dims
from regraft.rewrites.support import same_dims


class _Identity(Rewrite):
    """Replaces a match by its variable ``x``; ``check`` says when."""

    stage = "canonicalize"

    def rewrite(self, op: Builder, m: Match) -> Value:
        return m.x


class NoOpView(_Identity):
    """view(x, shape of x) = x"""

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.view(x, op.attr("size"))

    def check(self, m: Match) -> Declined | None:
        if same_dims(m.x.tensor.shape, m.attr("size")):
            return None
        return m.decline("the view changes the shape", m.holder("size"))

    examples = (
        Example(lambda op, x: op.aten.view(x, (2, 3)), ("f32[2, 3]",)),
        Example(lambda op, x: op.aten.view(x, x.type.shape), ("f32[B, 3]",)),
    )
    counterexamples = (
        Example(lambda op, x: op.aten.view(x, (6,)), ("f32[2, 3]",), reason="the view changes the shape"),
    )


class NoOpPermute(_Identity):
    """permute(x, [0, 1, ...]) = x"""

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.permute(x, op.attr("dims"))

    def check(self, m: Match) -> Declined | None:
        if m.attr("dims") == tuple(range(m.x.tensor.rank)):
            return None
        return m.decline("the permutation moves a dimension", m.holder("dims"))

    examples = (Example(lambda op, x: op.aten.permute(x, (0, 1)), ("f32[2, 3]",)),)
    counterexamples = (
        Example(lambda op, x: op.aten.permute(x, (1, 0)), ("f32[2, 3]",), reason="moves a dimension"),
    )


class NoOpExpand(_Identity):
    """expand(x, shape of x) = x"""

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.expand(x, op.attr("size"), implicit=op.attr("implicit"))

    def check(self, m: Match) -> Declined | None:
        if same_dims(m.x.tensor.shape, m.root.result.tensor.shape):
            return None
        return m.decline("the expansion repeats elements", m.root.result)

    examples = (Example(lambda op, x: op.aten.expand(x, (2, 3)), ("f32[2, 3]",)),)
    counterexamples = (
        Example(lambda op, x: op.aten.expand(x, (2, 3)), ("f32[1, 3]",), reason="repeats elements"),
        Example(lambda op, x: op.aten.expand(x, (1, 2, 3)), ("f32[2, 3]",), reason="repeats elements"),
    )


class NoOpCast(_Identity):
    """cast(x, dtype of x) = x"""

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten._to_copy(x, dtype=op.attr("dtype"))

    def check(self, m: Match) -> Declined | None:
        if m.root.result.type == m.x.type:
            return None
        return m.decline("the cast changes the type", m.holder("dtype"))

    examples = (Example(lambda op, x: op.aten._to_copy(x, dtype=x.type.dtype), ("f32[2, 3]",)),)
    counterexamples = (
        Example(
            lambda op, x, y: op.aten._to_copy(x, dtype=y.type.dtype),
            ("f32[2]", "bf16[2]"),
            reason="the cast changes the type",
        ),
    )


class FullSlice(_Identity):
    """x[0 : size] = x"""

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.slice.Tensor(x, op.attr("dim"), op.attr("start"), op.attr("end"), 1)

    def check(self, m: Match) -> Declined | None:
        axis: int = m.attr("dim")
        size = m.x.tensor.shape[axis]
        if m.attr("start") in (0, None) and dims.eq(m.attr("end"), size) is True:
            return None
        return m.decline("the slice leaves elements out", m.holder("dim"))

    examples = (Example(lambda op, x: op.aten.slice.Tensor(x, 1, 0, 3, 1), ("f32[2, 3]",)),)
    counterexamples = (
        Example(
            lambda op, x: op.aten.slice.Tensor(x, 1, 0, 2, 1), ("f32[2, 3]",), reason="leaves elements out"
        ),
        Example(
            lambda op, x: op.aten.slice.Tensor(x, 1, 1, 3, 1), ("f32[2, 3]",), reason="leaves elements out"
        ),
        Example(lambda op, x: op.aten.slice.Tensor(x, 1, 0, 3, 2), ("f32[2, 3]",), reason="attribute 'step'"),
    )


class CatOfOne(_Identity):
    """cat([x]) = x"""

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.cat([x], op.attr("dim"))

    examples = (Example(lambda op, x: op.aten.cat([x], 0), ("f32[2, 3]",)),)
    counterexamples = (
        Example(lambda op, x: op.aten.cat([x, x], 0), ("f32[2, 3]",), reason="operands differ"),
    )


class AddZero(_Identity):
    """x + 0 = x for integers; for floats only x + (-0.0) is, since -0.0 + 0.0 is 0.0."""

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.add.Scalar(x, op.attr("other"), op.attr("alpha"))

    def check(self, m: Match) -> Declined | None:
        other = m.attr("other")
        if other != 0 or m.attr("alpha") != 1:
            return m.decline("the number added is not 0", m.holder("other"))
        if m.x.tensor.dtype.is_float and math.copysign(1, other) > 0:
            return m.decline("-0.0 + 0.0 is 0.0", m.holder("other"))
        return None

    examples = (
        Example(lambda op, x: op.aten.add.Scalar(x, 0), ("i64[S]",)),
        Example(lambda op, x: op.aten.add.Scalar(x, -0.0), ("f32[3]",)),
    )
    counterexamples = (
        Example(lambda op, x: op.aten.add.Scalar(x, 1), ("i64[3]",), reason="not 0"),
        Example(lambda op, x: op.aten.add.Scalar(x, 0.0), ("f32[3]",), reason="-0.0 + 0.0 is 0.0"),
    )


class MulOne(_Identity):
    """x * 1 = x, x / 1 = x, x ** 1 = x"""

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        one = op.attr("one")
        return op.one_of(
            op.aten.mul.Scalar(x, one), op.aten.div.Scalar(x, one), op.aten.pow.Tensor_Scalar(x, one)
        )

    def check(self, m: Match) -> Declined | None:
        return None if m.attr("one") == 1 else m.decline("the number is not 1", m.holder("one"))

    examples = (
        Example(lambda op, x: op.aten.mul.Scalar(x, 1.0), ("f32[2]",)),
        Example(lambda op, x: op.aten.mul.Scalar(x, 1), ("i64[2]",)),
        Example(lambda op, x: op.aten.div.Scalar(x, 1.0), ("f32[2]",)),
        Example(lambda op, x: op.aten.pow.Tensor_Scalar(x, 1), ("f32[2]",)),
    )
    counterexamples = (Example(lambda op, x: op.aten.mul.Scalar(x, 1.0000001), ("f32[2]",), reason="not 1"),)


class AndTrue(Rewrite):
    """x and True = x, for bools, expanded to the size of True."""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        true = op.aten.full(op.attr("size"), True, dtype=op.attr("dtype"))
        return op.aten.bitwise_and.Tensor(x, op.shared(true))

    def check(self, m: Match) -> Declined | None:
        if m.x.tensor.dtype is DType.BOOL:
            return None
        return m.decline("on integers, True is the number 1", m.x)

    def rewrite(self, op: Builder, m: Match) -> Value:
        result = m.root.result.type
        return m.x if m.x.type == result else op.aten.expand(m.x, m.root.result.tensor.shape)

    examples = (
        Example(lambda op, x: op.aten.bitwise_and.Tensor(x, _full(op, (), True, x)), ("bool[2, 3]",)),
        Example(lambda op, x: op.aten.bitwise_and.Tensor(_full(op, (3,), True, x), x), ("bool[2, 3]",)),
        Example(lambda op, x: op.aten.bitwise_and.Tensor(x, _full(op, (2, 3), True, x)), ("bool[3]",)),
    )
    counterexamples = (
        Example(
            lambda op, x: op.aten.bitwise_and.Tensor(x, _full(op, (), False, x)),
            ("bool[3]",),
            reason="attribute 'fill_value'",
        ),
        Example(
            lambda op, x: op.aten.bitwise_and.Tensor(x, _full(op, (), True, x)),
            ("i64[3]",),
            reason="True is the number 1",
        ),
    )


def _full(op: Builder, size: tuple[int, ...], value: bool, like: Value) -> Value:
    return op.aten.full(size, value, dtype=like.tensor.dtype)
