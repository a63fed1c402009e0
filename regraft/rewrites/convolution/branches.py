"""Convolutions of one input that are summed up, or follow each other, as one convolution.

Training spreads one kernel over branches (Ding et al. 2021, RepVGG, arXiv:2101.03697), or adds one of low
rank to it (LoRA for convolutions); their sum is a convolution with the sum of the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    DType,
    Exactness,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
)
from regraft.rewrites.support import is_along, is_computed_at_compile_time

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d")


def any_conv(op: PatternBuilder, x: Any, weight: Var, bias: Var, mark: str = "") -> Any:
    attrs = [op.attr(mark + name) for name in ("stride", "padding", "dilation", "groups")]
    return op.one_of(*(op.call(n, (x, weight, op.optional(bias), *attrs), {}) for n in _CONVOLUTIONS))


def sizes_of(weight: Value) -> tuple[int, ...]:
    """The shape of a constant."""
    return tuple(size for size in weight.tensor.shape if isinstance(size, int))


def spatial(conv: Op, name: str) -> tuple[int, ...] | None:
    """An attribute of ``conv`` as a number for each spatial axis; None where it is none."""
    kernel = sizes_of(conv.operand("weight"))[2:]
    count, given = len(kernel), conv.attr(name)
    if isinstance(given, str):
        dilation = spatial(conv, "dilation")
        if dilation is None:
            return None
        total = [d * (k - 1) if given == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)
    if not all(isinstance(n, int) for n in given):
        return None
    return tuple(given) * count if len(given) == 1 else tuple(given)


def is_pointwise(conv: Op) -> bool:
    """Whether ``conv`` is a product at each place: a 1x1 kernel over every place, no groups."""
    kernel = sizes_of(conv.operand("weight"))[2:]
    plain = all(k == 1 for k in kernel) and conv.attr("groups") == 1
    return (
        plain and set(spatial(conv, "stride") or (0,)) == {1} and set(spatial(conv, "padding") or (0,)) == {0}
    )


def why_not_constant(m: Match, names: Sequence[str]) -> Declined | None:
    for value in (v for v in map(m.optional, names) if v is not None):
        if not is_computed_at_compile_time(value):
            return m.decline("a parameter is not constant", value)
        if value.tensor.dtype not in (DType.F32, DType.F64):
            return m.decline("the new weights would be rounded to 16 bits once more", value)
    return None


def _offset(outer: Op, inner: Op) -> tuple[int, ...] | None:
    """Where the kernel of ``inner`` stands in that of ``outer``, if it reads the same places."""
    p_outer, p_inner = spatial(outer, "padding"), spatial(inner, "padding")
    dilation = spatial(outer, "dilation")
    if p_outer is None or p_inner is None or dilation is None:
        return None
    large_kernel, small_kernel = (sizes_of(conv.operand("weight"))[2:] for conv in (outer, inner))
    offsets: list[int] = []
    for p, q, d, large, small in zip(p_outer, p_inner, dilation, large_kernel, small_kernel, strict=True):
        offset, rest = divmod(p - q, d)
        if rest or not 0 <= offset <= large - small:
            return None
        offsets.append(offset)
    return tuple(offsets)


def _same_steps(a: Op, b: Op) -> bool:
    """Whether two convolutions agree in stride, groups and, where that means something, dilation."""
    single = any(all(k == 1 for k in sizes_of(c.operand("weight"))[2:]) for c in (a, b))
    names = ("stride",) if single else ("stride", "dilation")
    return a.attr("groups") == b.attr("groups") and all(spatial(a, n) == spatial(b, n) for n in names)


def _widened(op: Builder, weight: Value, kernel: Sequence[int], offset: Sequence[int]) -> Value:
    """``weight`` with zeros around it, its first place at ``offset`` of a kernel of size ``kernel``."""
    own = sizes_of(weight)[2:]
    if tuple(own) == tuple(kernel):
        return weight
    pads: list[int] = []
    for size, wide, before in reversed(list(zip(own, kernel, offset, strict=True))):
        pads += [before, wide - before - size]
    return op.aten.constant_pad_nd(weight, tuple(pads), 0.0)


def total_of(op: Builder, *values: Value | None) -> Value | None:
    given = [v for v in values if v is not None]
    total = given[0] if given else None
    for value in given[1:]:
        total = op.aten.add.Tensor(total, value)
    return total


class ConvBranches(Rewrite):
    """conv(x, V, a) + conv(x, W, b) = conv(x, V + W, a + b), the smaller kernel with zeros around it."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, v: Var, a: Var, w: Var, b: Var) -> Any:
        return op.aten.add.Tensor(any_conv(op, x, v, a), any_conv(op, x, w, b, "other_"))

    def check(self, m: Match) -> Declined | None:
        found = why_not_constant(m, ("v", "a", "w", "b"))
        if found is not None:
            return found
        first, second = _both(m)
        if not _same_steps(first, second) or first.result.type != second.result.type:
            return m.decline("the branches differ in stride, dilation or groups", second.result)
        if _offset(first, second) is None and _offset(second, first) is None:
            return m.decline("neither kernel holds the other one's places", second.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        first, second = _both(m)
        offset = _offset(first, second)
        if offset is None:
            first, second = second, first
            offset = _offset(first, second)
        assert offset is not None
        weight = first.operand("weight")
        other = _widened(op, second.operand("weight"), sizes_of(weight)[2:], offset)
        arguments = first.arguments() | {
            "weight": op.aten.add.Tensor(weight, other),
            "bias": total_of(op, first.optional("bias"), second.optional("bias")),
        }
        return op.create(first.name, (), arguments).result


def _both(m: Match) -> tuple[Op, Op]:
    first, second = (m.root.operand(name).op for name in ("self", "other"))
    assert first is not None
    assert second is not None
    return first, second


class ConvBias(Rewrite):
    """conv(x, W, b) + c = conv(x, W, b + c), c being a number or one for each output channel."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, w: Var, b: Var, c: Var) -> Any:
        return op.one_of(
            op.aten.add.Tensor(any_conv(op, x, w, b), c),
            op.aten.add.Scalar(any_conv(op, x, w, b), op.attr("number")),
        )

    def check(self, m: Match) -> Declined | None:
        found = why_not_constant(m, ("w", "b", "c"))
        if found is not None:
            return found
        conv = _conv_of(m)
        c = m.optional("c")
        if c is not None and not is_along(c, conv.result, 1 - m.w.tensor.rank):
            return m.decline("the summand is not one number a channel", c)
        if isinstance(m.attrs.get("number"), bool):
            return m.decline("the summand is no number", conv.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        conv = _conv_of(m)
        channels = (sizes_of(m.w)[0],)
        if m.optional("c") is None:
            bias = op.aten.full(channels, m.attr("number"), dtype=m.w.tensor.dtype)
        else:
            bias = op.aten.expand(op.aten.view(m.c, (m.c.tensor.numel,)), channels)
        arguments = conv.arguments() | {"bias": total_of(op, bias, conv.optional("bias"))}
        return op.create(conv.name, (), arguments).result


class ConvIdentity(Rewrite):
    """conv(x, W, b) + x = conv(x, W + I, b), I the kernel that leaves x; also + batch_norm(x)."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(
        self, op: PatternBuilder, x: Var, w: Var, b: Var, scale: Var, shift: Var, mean: Var, variance: Var
    ) -> Any:
        return op.one_of(
            op.aten.add.Tensor(any_conv(op, x, w, b), x),
            op.aten.add.Tensor(any_conv(op, x, w, b), _norm(op, x, scale, shift, mean, variance)),
        )

    def check(self, m: Match) -> Declined | None:
        found = why_not_constant(m, ("w", "b", *_STATISTICS))
        if found is not None:
            return found
        conv = _conv_of(m)
        if conv.result.type != m.x.type or set(spatial(conv, "stride") or (0,)) != {1}:
            return m.decline("the convolution changes the size", conv.result)
        if _place(conv) is None:
            return m.decline("the kernel does not read the place that it writes", conv.result)
        if "eps" in m.attrs and None in (m.optional("mean"), m.optional("variance")):
            return m.decline("the statistics are not given", m.x)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        conv, place = _conv_of(m), _place(_conv_of(m))
        assert place is not None
        weight, bias = conv.operand("weight"), conv.optional("bias")
        identity = _identity(op, weight)
        if "eps" in m.attrs:
            factor, offset = affine(op, m)
            shape = (weight.tensor.shape[0], *(1,) * (weight.tensor.rank - 1))
            identity = op.aten.mul.Tensor(identity, op.aten.view(factor, shape))
            bias = total_of(op, bias, offset)
        identity = _widened(op, identity, sizes_of(weight)[2:], place)
        arguments = conv.arguments() | {"weight": op.aten.add.Tensor(weight, identity), "bias": bias}
        return op.create(conv.name, (), arguments).result


_STATISTICS = ("scale", "shift", "mean", "variance")


def _norm(op: PatternBuilder, x: Var, *parameters: Var) -> Any:
    rest = (op.attr("training"), op.attr("momentum"), op.attr("eps"), op.attr("cudnn_enabled"))
    return op.aten.batch_norm(x, *map(op.optional, parameters), *rest)


def affine(op: Builder, m: Match) -> tuple[Value, Value]:
    """What a matched batch normalisation multiplies each channel by, and what it adds then."""
    scale, shift = m.optional("scale"), m.optional("shift")
    factor = op.aten.rsqrt(op.aten.add.Scalar(m.variance, m.attr("eps")))
    factor = factor if scale is None else op.aten.mul.Tensor(factor, scale)
    offset = op.aten.neg(op.aten.mul.Tensor(m.mean, factor))
    return factor, offset if shift is None else op.aten.add.Tensor(offset, shift)


def _conv_of(m: Match) -> Op:
    return next(op for op in m.ops if op.name in _CONVOLUTIONS)


def _place(conv: Op) -> tuple[int, ...] | None:
    """The place of the kernel that reads what stands where the result goes."""
    padding, dilation = spatial(conv, "padding"), spatial(conv, "dilation")
    if padding is None or dilation is None:
        return None
    places = [divmod(p, d) for p, d in zip(padding, dilation, strict=True)]
    kernel = sizes_of(conv.operand("weight"))[2:]
    inside = all(not rest and place < k for (place, rest), k in zip(places, kernel, strict=True))
    return tuple(place for place, _ in places) if inside else None


def _identity(op: Builder, weight: Value) -> Value:
    """The 1x1 kernel that leaves its input, in the groups of ``weight[O, I / groups, ...]``."""
    out, inner = sizes_of(weight)[:2]
    source = op.aten.remainder.Scalar(op.aten.arange(out), inner)
    ones = op.aten.eq.Tensor(op.aten.view(source, (out, 1)), op.aten.arange(inner))
    kernel = op.aten._to_copy(ones, dtype=weight.tensor.dtype)
    return op.aten.view(kernel, (out, inner, *(1,) * (weight.tensor.rank - 2)))


class ConvChain(Rewrite):
    """conv1x1(conv(x, A, a), B, b) = conv(x, B A, B a + b), where that multiplies less or is summed up."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, first: Var, a: Var, second: Var, b: Var) -> Any:
        return any_conv(op, any_conv(op, x, first, a), second, b, "outer_")

    def check(self, m: Match) -> Declined | None:
        found = why_not_constant(m, ("first", "a", "second", "b"))
        if found is not None:
            return found
        inner = m.root.operand("input").op
        assert inner is not None
        if not is_pointwise(m.root) or inner.attr("groups") != 1:
            return m.decline("the second convolution is not a product at each place", m.root.result)
        if not _pays(m) and not _has_sibling(m):
            return m.decline("the two multiply less than the one", m.root.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        inner = m.root.operand("input").op
        assert inner is not None
        out, rank = sizes_of(m.second)[:2]
        places = sizes_of(m.first)[1:]
        matrix = op.aten.view(m.second, (out, rank))
        weight = op.aten.matmul(matrix, op.aten.view(m.first, (rank, math.prod(places))))
        bias = m.optional("b")
        if m.optional("a") is not None:
            image = op.aten.view(op.aten.matmul(matrix, op.aten.view(m.a, (rank, 1))), (out,))
            bias = total_of(op, image, bias)
        arguments = inner.arguments() | {"weight": op.aten.view(weight, (out, *places)), "bias": bias}
        return op.create(inner.name, (), arguments).result


def _pays(m: Match) -> bool:
    """Whether one dense kernel multiplies no more than the two."""
    out, rank = sizes_of(m.second)[:2]
    places = math.prod(sizes_of(m.first)[1:])
    return out * places <= rank * places + out * rank


def _has_sibling(m: Match) -> bool:
    """Whether the result is added to a convolution of the same input, which takes in the new kernel."""
    if len(m.root.result.uses) != 1 or m.root.result.users[0].name != "aten.add.Tensor":
        return False
    (total,) = m.root.result.users
    inner = m.root.operand("input").op
    others = [v.op for v in total.operands if v is not m.root.result and v.op is not None]
    assert inner is not None
    return any(
        o.name == inner.name
        and o.operand("input") is m.x
        and len(o.result.uses) == 1
        and _same_steps(o, inner)
        for o in others
    )


class ConvOfBatchNorm(Rewrite):
    """conv(batch_norm(x), W, b) = conv(x, W * s, b + W t), for convolutions without padding."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES
    after = ("ConvBatchNorm",)

    def pattern(
        self, op: PatternBuilder, x: Var, w: Var, b: Var, scale: Var, shift: Var, mean: Var, variance: Var
    ) -> Any:
        return any_conv(op, _norm(op, x, scale, shift, mean, variance), w, b)

    def check(self, m: Match) -> Declined | None:
        found = why_not_constant(m, ("w", "b", *_STATISTICS))
        if found is not None:
            return found
        if set(spatial(m.root, "padding") or (1,)) != {0}:
            return m.decline(
                "the convolution pads with zeros, which the norm would have moved", m.root.result
            )
        if m.attr("groups") != 1:
            return m.decline("the convolution has groups", m.root.result)
        if m.optional("mean") is None or m.optional("variance") is None:
            return m.decline("the statistics are not given", m.x)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        factor, offset = affine(op, m)
        arguments = m.root.arguments() | {
            "input": m.x,
            "weight": times_inputs(op, m.w, factor),
            "bias": total_of(op, image_of(op, m.w, offset), m.optional("b")),
        }
        return op.create(m.root.name, (), arguments).result


def times_inputs(op: Builder, weight: Value, factor: Value) -> Value:
    """The kernels ``weight[O, I, ...]`` with one factor for each input channel, or one for all."""
    shape = (1, factor.tensor.numel, *(1,) * (weight.tensor.rank - 2))
    return op.aten.mul.Tensor(weight, op.aten.view(factor, shape))


def image_of(op: Builder, weight: Value, offset: Value) -> Value:
    """What a convolution without padding and groups makes of channels that are ``offset`` everywhere."""
    spread = times_inputs(op, weight, offset)
    out, *places = sizes_of(weight)
    return op.aten.sum.dim_IntList(op.aten.view(spread, (out, math.prod(places))), (1,))


def _conv(
    op: Builder, x: Value, w: Value, b: Value | None = None, pad: int = 0, groups: int = 1, step: int = 1
) -> Value:
    n = w.tensor.rank - 2
    return op.create(f"aten.conv{n}d", (x, w, b, (step,) * n, (pad,) * n, (1,) * n, groups)).result


def _branches(op: Builder, x: Value, v: Value, a: Value, w: Value) -> Value:
    return op.aten.add.Tensor(_conv(op, x, v, a, 1, 2), _conv(op, x, w, None, 0, 2))


def _normed(op: Builder, x: Value, s: Value, t: Value | None, mean: Value, var: Value) -> Value:
    return op.aten.batch_norm(x, s, t, mean, op.aten.abs(var), False, 0.1, 1e-5, True)


ConvBranches.examples = (
    Example(_branches, ("f32[N, 4, 5, 5]", "f32[4, 2, 3, 3]", "f32[4]", "f32[4, 2, 1, 1]"), (1, 2, 3)),
    Example(
        lambda op, x, v, w, b: op.aten.add.Tensor(_conv(op, x, w, None, 1), _conv(op, x, v, b, 2)),
        ("f32[2, 4, 9]", "f32[6, 4, 5]", "f32[6, 4, 3]", "f32[6]"),
        constants=(1, 2, 3),
    ),
    Example(
        lambda op, x, v, w: op.aten.add.Tensor(
            _conv(op, x, v, None, 1, 1, 2), _conv(op, x, w, None, 0, 1, 2)
        ),
        ("f32[2, 4, 9]", "f32[6, 4, 3]", "f32[6, 4, 1]"),
        constants=(1, 2),
    ),
)
ConvBranches.counterexamples = (
    Example(
        lambda op, x, v, w: op.aten.add.Tensor(_conv(op, x, v, None, 1), _conv(op, x, w, None, 1, 2)),
        ("f32[2, 4, 9]", "f32[6, 4, 3]", "f32[6, 2, 3]"),
        constants=(1, 2),
        reason="differ in stride, dilation or groups",
    ),
    Example(
        lambda op, x, v, w: op.aten.add.Tensor(
            _conv(op, x, v, None, 0, 1, 3), _conv(op, x, w, None, 1, 1, 3)
        ),
        ("f32[2, 4, 7]", "f32[6, 4, 1]", "f32[6, 4, 1]"),
        constants=(1, 2),
        reason="neither kernel holds",
    ),
    Example(
        lambda op, x, y, v, w: op.aten.add.Tensor(_conv(op, x, v), _conv(op, y, w)),
        ("f32[2, 4, 9]", "f32[2, 4, 9]", "f32[6, 4, 3]", "f32[6, 4, 3]"),
        constants=(2, 3),
        reason="two different values",
    ),
)
ConvBias.examples = (
    Example(
        lambda op, x, w, b, c: op.aten.add.Tensor(_conv(op, x, w, b, 1), c),
        ("f32[N, 4, 5, 5]", "f32[6, 4, 3, 3]", "f32[6]", "f32[1, 6, 1, 1]"),
        constants=(1, 2, 3),
    ),
    Example(
        lambda op, x, w, c: op.aten.add.Tensor(c, _conv(op, x, w)),
        ("f32[2, 4, 9]", "f32[6, 4, 3]", "f32[]"),
        constants=(1, 2),
    ),
    Example(
        lambda op, x, w: op.aten.add.Scalar(_conv(op, x, w), 0.5),
        ("f32[2, 4, 9]", "f32[6, 4, 3]"),
        constants=(1,),
    ),
)
ConvBias.counterexamples = (
    Example(
        lambda op, x, w, c: op.aten.add.Tensor(_conv(op, x, w), c),
        ("f32[2, 4, 9]", "f32[6, 4, 3]", "f32[7]"),
        constants=(1, 2),
        reason="not one number a channel",
    ),
    Example(
        lambda op, x, w, c: op.aten.add.Tensor(_conv(op, x, w), c),
        ("f32[2, 4, 9]", "f32[6, 4, 3]", "f32[6, 1]"),
        constants=(1,),
        reason="not constant",
    ),
)
ConvIdentity.examples = (
    Example(
        lambda op, x, w, b: op.aten.add.Tensor(x, _conv(op, x, w, b, 1, 2)),
        ("f32[N, 4, 5, 5]", "f32[4, 2, 3, 3]", "f32[4]"),
        constants=(1, 2),
    ),
    Example(
        lambda op, x, w, s, t, mean, var: op.aten.add.Tensor(
            _conv(op, x, w, None, 1, 4), _normed(op, x, s, t, mean, var)
        ),
        ("f32[2, 4, 5, 5]", "f32[4, 1, 3, 3]", *("f32[4]",) * 4),
        constants=(1, 2, 3, 4, 5),
    ),
)
ConvIdentity.counterexamples = (
    Example(
        lambda op, x, w: op.aten.add.Tensor(_conv(op, x, w, None, 1), x),
        ("f32[2, 1, 9]", "f32[6, 1, 3]"),
        constants=(1,),
        reason="changes the size",
    ),
    Example(
        lambda op, x, w: op.aten.add.Tensor(_conv(op, x, w, None, 1), x),
        ("f32[2, 4, 9]", "f32[4, 4, 3]"),
        reason="a parameter is not constant",
    ),
)
ConvChain.examples = (
    Example(
        lambda op, x, v, b, w, c: _conv(op, _conv(op, x, v, b, 1), w, c),
        ("f32[N, 4, 5, 5]", "f32[6, 4, 3, 3]", "f32[6]", "f32[5, 6, 1, 1]", "f32[5]"),
        constants=(1, 2, 3, 4),
    ),
    Example(
        lambda op, x, base, v, w: op.aten.add.Tensor(
            _conv(op, x, base, None, 1), _conv(op, _conv(op, x, v, None, 1), w)
        ),
        ("f32[2, 4, 9]", "f32[6, 4, 3]", "f32[2, 4, 3]", "f32[6, 2, 1]"),
        constants=(1, 2, 3),
    ),
)
ConvChain.counterexamples = (
    Example(
        lambda op, x, v, w: _conv(op, _conv(op, x, v, None, 1), w),
        ("f32[2, 4, 9]", "f32[2, 4, 3]", "f32[6, 2, 1]"),
        constants=(1, 2),
        reason="the two multiply less",
    ),
    Example(
        lambda op, x, v, w: _conv(op, _conv(op, x, v, None, 1), w, None, 1),
        ("f32[2, 4, 9]", "f32[6, 4, 3]", "f32[6, 6, 1]"),
        constants=(1, 2),
        reason="not a product at each place",
    ),
)
ConvOfBatchNorm.examples = (
    Example(
        lambda op, x, w, b, mean, var: _conv(op, _normed(op, x, b, None, mean, var), w, b),
        ("f32[N, 4, 5, 5]", "f32[4, 4, 1, 1]", "f32[4]", "f32[4]", "f32[4]"),
        constants=(1, 2, 3, 4),
    ),
    Example(
        lambda op, x, w, s, t, mean, var: _conv(op, _normed(op, x, s, t, mean, var), w),
        ("f32[2, 4, 9]", "f32[6, 4, 3]", *("f32[4]",) * 4),
        constants=(1, 2, 3, 4, 5),
    ),
)
ConvOfBatchNorm.counterexamples = (
    Example(
        lambda op, x, w, s, t, mean, var: _conv(op, _normed(op, x, s, t, mean, var), w, None, 1),
        ("f32[2, 4, 9]", "f32[6, 4, 3]", *("f32[4]",) * 4),
        constants=(1, 2, 3, 4, 5),
        reason="pads with zeros",
    ),
)
