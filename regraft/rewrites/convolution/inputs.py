"""Constant factors and summands before a convolution, inside its weight and bias.

Batch normalisation written out is such a factor and summand for each channel.
"""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Exactness, Example, Match, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.convolution.branches import (
    any_conv,
    image_of,
    spatial,
    times_inputs,
    total_of,
    why_not_constant,
)
from regraft.rewrites.support import is_along


class ConvOfScale(Rewrite):
    """conv(x * s, W, b) = conv(x, W * s, b), s being one number or one for each channel."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, s: Var, w: Var, b: Var) -> Any:
        return any_conv(op, op.aten.mul.Tensor(x, s), w, b)

    def check(self, m: Match) -> Declined | None:
        return why_not_constant(m, ("w", "b", "s")) or _why_not_by_channel(m, m.s)

    def rewrite(self, op: Builder, m: Match) -> Value:
        arguments = m.root.arguments() | {"input": m.x, "weight": times_inputs(op, m.w, m.s)}
        return op.create(m.root.name, (), arguments).result


class ConvOfShift(Rewrite):
    """conv(x ± c, W, b) = conv(x, W, b ± W c), for convolutions without padding."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, c: Var, w: Var, b: Var) -> Any:
        return any_conv(op, op.one_of(op.aten.add.Tensor(x, c), op.aten.sub.Tensor(x, c)), w, b)

    def check(self, m: Match) -> Declined | None:
        if set(spatial(m.root, "padding") or (1,)) != {0}:
            return m.decline("the convolution pads with zeros, which are not shifted", m.root.result)
        return why_not_constant(m, ("w", "b", "c")) or _why_not_by_channel(m, m.c)

    def rewrite(self, op: Builder, m: Match) -> Value:
        moved = m.root.operand("input").op
        assert moved is not None
        offset = op.aten.neg(m.c) if moved.name == "aten.sub.Tensor" else m.c
        bias = total_of(op, image_of(op, m.w, offset), m.optional("b"))
        return op.create(m.root.name, (), m.root.arguments() | {"input": m.x, "bias": bias}).result


def _why_not_by_channel(m: Match, value: Value) -> Declined | None:
    moved = m.root.operand("input")
    if m.attr("groups") != 1:
        return m.decline("the convolution has groups", m.root.result)
    if m.x.type != moved.type or not is_along(value, moved, 1 - m.w.tensor.rank):
        return m.decline("it is not one number a channel", value)
    return None


def _conv(op: Builder, x: Value, w: Value, b: Value | None = None, pad: int = 0) -> Value:
    n = w.tensor.rank - 2
    return op.create(f"aten.conv{n}d", (x, w, b, (1,) * n, (pad,) * n, (1,) * n, 1)).result


def _scaled_twice(op: Builder, x: Value, s: Value, w: Value) -> tuple[Value, Value]:
    y = op.aten.mul.Tensor(x, s)
    return _conv(op, y, w), y


ConvOfScale.examples = (
    Example(
        lambda op, x, s, w, b: _conv(op, op.aten.mul.Tensor(x, s), w, b, 1),
        ("f32[N, 4, 5, 5]", "f32[1, 4, 1, 1]", "f32[6, 4, 3, 3]", "f32[6]"),
        constants=(1, 2, 3),
    ),
    Example(
        lambda op, x, s, w: _conv(op, op.aten.mul.Tensor(x, s), w),
        ("f32[2, 4, 9]", "f32[]", "f32[6, 4, 3]"),
        constants=(1, 2),
    ),
)
ConvOfScale.counterexamples = (
    Example(
        lambda op, x, s, w: _conv(op, op.aten.mul.Tensor(x, s), w),
        ("f32[2, 4, 9]", "f32[4, 9]", "f32[6, 4, 3]"),
        constants=(1, 2),
        reason="not one number a channel",
    ),
    Example(
        lambda op, x, s, w: _conv(op, op.aten.mul.Tensor(x, s), w),
        ("f32[2, 4, 9]", "f32[4, 1]", "f32[6, 4, 3]"),
        constants=(2,),
        reason="not constant",
    ),
    Example(
        _scaled_twice,
        ("f32[2, 4, 9]", "f32[4, 1]", "f32[6, 4, 3]"),
        constants=(1, 2),
        reason="users outside",
    ),
)
ConvOfShift.examples = (
    Example(
        lambda op, x, c, w, b: _conv(op, op.aten.add.Tensor(x, c), w, b),
        ("f32[N, 4, 5, 5]", "f32[1, 4, 1, 1]", "f32[6, 4, 3, 3]", "f32[6]"),
        constants=(1, 2, 3),
    ),
    Example(
        lambda op, x, c, w: _conv(op, op.aten.sub.Tensor(x, c), w),
        ("f32[2, 4, 9]", "f32[4, 1]", "f32[6, 4, 3]"),
        constants=(1, 2),
    ),
)
ConvOfShift.counterexamples = (
    Example(
        lambda op, x, c, w: _conv(op, op.aten.add.Tensor(x, c), w, None, 1),
        ("f32[2, 4, 9]", "f32[4, 1]", "f32[6, 4, 3]"),
        constants=(1, 2),
        reason="pads with zeros",
    ),
    Example(
        lambda op, x, c, w: _conv(op, op.aten.add.Tensor(x, c), w),
        ("f32[1, 4, 9]", "f32[2, 4, 9]", "f32[6, 4, 3]"),
        constants=(1, 2),
        reason="not one number a channel",
    ),
)
