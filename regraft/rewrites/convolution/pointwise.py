"""Products at each place, as linear layers or as 1x1 convolutions: whichever needs no transposition."""

from __future__ import annotations

from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Exactness,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Trait,
    Value,
    Var,
)
from regraft.rewrites.convolution.branches import any_conv, is_pointwise, why_not_constant

_MAX_STEPS = 8


def _to_second(rank: int) -> tuple[int, ...]:
    """The transposition that brings channels from the end to where convolutions have them."""
    return (0, rank - 1, *range(1, rank - 1))


def _to_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def _is_move(op: Op | None, dims: tuple[int, ...]) -> bool:
    return op is not None and op.name == "aten.permute" and op.site.ints("dims") == dims


def _is_unary(op: Op) -> bool:
    """Whether ``op`` computes each element of its result from the element at the same place."""
    return op.has(Trait.ELEMENTWISE) and len(op.operands) == 1 and len(op.results) == 1


class PointwiseLinear(Rewrite):
    """to_last(conv1x1(f(to_second(x)))) = linear(f(x)), f being elementwise.

    Position-wise networks are often written as convolutions of width 1 between transpositions; what comes
    between the two transpositions may be several of them.
    """

    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, w: Var, b: Var) -> Any:
        return any_conv(op, x, w, b)

    def check(self, m: Match) -> Declined | None:
        found = why_not_constant(m, ("w", "b"))
        if found is not None:
            return found
        if not is_pointwise(m.root):
            return m.decline("it is not a product at each place", m.root.result)
        if _source(m.x) is None:
            return m.decline("no transposition brings the channels to where it has them", m.x)
        if not _is_moved_back(m.root):
            return m.decline("no transposition brings the channels back behind it", m.root.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        found = _source(m.x)
        assert found is not None
        value, steps = found
        for step in steps:
            arguments = {n: value if isinstance(a, Value) else a for n, a in step.arguments().items()}
            value = op.create(step.name, (), arguments).result
        matrix = op.aten.view(m.w, m.w.tensor.shape[:2])
        made = op.aten.linear(value, matrix, m.optional("b"))
        return op.aten.permute(made, _to_second(m.w.tensor.rank))


def _source(value: Value) -> tuple[Value, list[Op]] | None:
    """What is transposed to ``value`` with its channels last, and the elementwise ops after it, in order."""
    steps: list[Op] = []
    while value.op is not None and len(steps) < _MAX_STEPS:
        if _is_move(value.op, _to_second(value.tensor.rank)):
            return value.op.operand("self"), steps[::-1]
        if not _is_unary(value.op) or len(value.uses) != 1:
            return None
        steps.append(value.op)
        (value,) = value.op.operands
    return None


def _is_moved_back(conv: Op) -> bool:
    """Whether the result, through what each element goes alone, ends in the opposite transposition."""
    op = conv
    for _ in range(_MAX_STEPS):
        if len(op.result.uses) != 1:
            return False
        (op,) = op.result.users
        if len(op.results) != 1:
            return False
        if _is_move(op, _to_last(op.result.tensor.rank)):
            return True
        if not _is_unary(op) and not (op.name == conv.name and is_pointwise(op)):
            return False
    return False


class ChannelLinear(Rewrite):
    """to_second(linear(to_last(x), W, b)) = conv1x1(x, W, b), where a convolution makes x.

    ``einsum`` over the channels of an image is spelled so.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, w: Var, b: Var) -> Any:
        moved = op.aten.permute(x, op.attr("there"))
        return op.aten.permute(op.aten.linear(moved, w, op.optional(b)), op.attr("back"))

    def check(self, m: Match) -> Declined | None:
        rank = m.x.tensor.rank
        if m.x.op is None or m.x.op.name != f"aten.conv{rank - 2}d":
            return m.decline("no convolution makes the input", m.x)
        if m.attr("there") != _to_last(rank) or m.attr("back") != _to_second(rank):
            return m.decline("the transpositions do not take the channels to the end and back", m.root.result)
        if m.w.tensor.rank != 2:
            return m.decline("the weight is a vector", m.w)
        return why_not_constant(m, ("w", "b"))

    def rewrite(self, op: Builder, m: Match) -> Value:
        count = m.x.tensor.rank - 2
        kernel = op.aten.view(m.w, (*m.w.tensor.shape, *(1,) * count))
        return _conv(op, m.x, kernel, m.optional("b"))


def _conv(op: Builder, x: Value, w: Value, b: Value | None = None, step: int = 1) -> Value:
    n = w.tensor.rank - 2
    return op.create(f"aten.conv{n}d", (x, w, b, (step,) * n, (0,) * n, (1,) * n, 1)).result


def _between(op: Builder, x: Value, w: Value, b: Value | None = None, step: int = 1) -> Value:
    rank = w.tensor.rank
    made = _conv(op, op.aten.permute(x, _to_second(rank)), w, b, step)
    return op.aten.permute(made, _to_last(rank))


def _two(op: Builder, x: Value, v: Value, w: Value, b: Value) -> Value:
    """A position-wise network."""
    hidden = op.aten.gelu(_conv(op, op.aten.permute(x, (0, 2, 1)), v), approximate="tanh")
    return op.aten.permute(_conv(op, hidden, w, b), (0, 2, 1))


def _by_channels(op: Builder, x: Value, v: Value, w: Value, b: Value | None = None) -> Value:
    moved = op.aten.permute(_conv(op, x, v), _to_last(v.tensor.rank))
    return op.aten.permute(op.aten.linear(moved, w, b), _to_second(v.tensor.rank))


PointwiseLinear.examples = (
    Example(_between, ("f32[N, 5, 4]", "f32[6, 4, 1]", "f32[6]"), constants=(1, 2)),
    Example(_between, ("f32[2, 5, 3, 4]", "f32[6, 4, 1, 1]"), constants=(1,)),
    Example(_two, ("f32[N, 5, 4]", "f32[6, 4, 1]", "f32[5, 6, 1]", "f32[5]"), (1, 2, 3), count=2),
)
PointwiseLinear.counterexamples = (
    Example(
        lambda op, x, w: _between(op, x, w, None, 2),
        ("f32[2, 5, 4]", "f32[6, 4, 1]"),
        constants=(1,),
        reason="not a product at each place",
    ),
    Example(_between, ("f32[2, 5, 4]", "f32[6, 4, 3]"), constants=(1,), reason="not a product at each place"),
    Example(
        lambda op, x, w: _conv(op, op.aten.permute(x, (0, 2, 1)), w),
        ("f32[2, 5, 4]", "f32[6, 4, 1]"),
        constants=(1,),
        reason="behind it",
    ),
    Example(
        lambda op, x, w: op.aten.permute(_conv(op, x, w), (0, 2, 1)),
        ("f32[2, 4, 5]", "f32[6, 4, 1]"),
        constants=(1,),
        reason="to where it has them",
    ),
)
ChannelLinear.examples = (
    Example(_by_channels, ("f32[N, 4, 5, 5]", "f32[3, 4, 2, 2]", "f32[6, 3]", "f32[6]"), constants=(1, 2, 3)),
    Example(_by_channels, ("f32[2, 4, 9]", "f32[3, 4, 3]", "f32[6, 3]"), constants=(1, 2)),
)
ChannelLinear.counterexamples = (
    Example(
        lambda op, x, w: op.aten.permute(op.aten.linear(op.aten.permute(x, (0, 2, 1)), w), (0, 2, 1)),
        ("f32[2, 4, 9]", "f32[6, 4]"),
        constants=(1,),
        reason="no convolution",
    ),
    Example(
        lambda op, x, v, w: op.aten.permute(
            op.aten.linear(op.aten.permute(_conv(op, x, v), (2, 0, 1)), w), (1, 2, 0)
        ),
        ("f32[2, 4, 9]", "f32[3, 4, 3]", "f32[6, 3]"),
        constants=(1, 2),
        reason="to the end and back",
    ),
)
