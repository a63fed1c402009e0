"""Shuffles of features, moved into the weights on either side."""

from __future__ import annotations

from collections.abc import Sequence
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
    Value,
    Var,
)
from regraft.rewrites.canonical import Atom, Groups
from regraft.rewrites.linear.feature_order import Route, Side, along_which, find_route, shape_along
from regraft.rewrites.support import is_computed_at_compile_time


class ShuffledFeatures(Rewrite):
    """f(moves(x @ V)) @ W = f(moves(x @ V')) @ W', features of V' and W' in an order in which less is moved.

    Between block-diagonal products each block's features are dealt out to all blocks of the next one
    (Monarch: Dao et al. 2022, arXiv:2204.00595): one by one, or, in another order, in pieces. ``f`` is
    elementwise, and its constants have the new order; it may be missing, and so may either product.
    """

    stage = "fuse"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, a: Var, b: Var, c: Var) -> Any:
        return op.one_of(
            op.aten.linear(a, b, op.optional(c)),
            op.aten.matmul(a, b),
            op.aten.view(a, op.attr("size")),
            op.aten.permute(a, op.attr("dims")),
        )

    def check(self, m: Match) -> Declined | None:
        found = find_route(m.root)
        return m.decline(found.reason, found.culprit) if isinstance(found, Declined) else None

    def rewrite(self, op: Builder, m: Match) -> Value:
        found = find_route(m.root)
        assert not isinstance(found, Declined), found
        old, new = found
        value = new.source
        if new.maker is not None and list(old.made) != list(new.made):
            value = _remade(op, new.maker, old.made, new.made)
        maps = zip(new.maps, old.layouts[1:-1], new.layouts[1:-1], strict=True)
        for piece in new.pieces():
            for step in piece:
                value = op.create(step.name, (value,), dict(step.attributes)).result
            following = next(maps, None)
            if following is not None:
                value = _mapped(op, value, *following)
        return value if new.reader is None else _read(op, value, new.reader, old, new)


def _remade(op: Builder, maker: Side, old: Sequence[Atom], new: Sequence[Atom]) -> Value:
    """The maker's product with its features in the order ``new``."""
    arguments = maker.op.arguments()
    arguments[maker.weight] = _reordered(op, arguments[maker.weight], maker.along, old, new)
    bias: Value | None = arguments.get("bias")
    if bias is not None:
        arguments["bias"] = _reordered(op, bias, 0, old, new)
    return op.create(maker.op.name, (), arguments).result


def _read(op: Builder, value: Value, reader: Side, old: Route, new: Route) -> Value:
    """The reader's product of ``value``, with its features in the order of ``new``."""
    arguments = reader.op.arguments()
    arguments[reader.other] = value
    if list(old.read) != list(new.read):
        weight = arguments[reader.weight]
        arguments[reader.weight] = _reordered(op, weight, reader.along, old.read, new.read)
    return op.create(reader.op.name, (), arguments).result


def _mapped(op: Builder, value: Value, each: Op, old: Groups, new: Groups) -> Value:
    """The elementwise op ``each`` of ``value``, which stands in the layout ``new`` and not ``old``."""
    arguments = each.arguments()
    for name, argument in arguments.items():
        if isinstance(argument, Value):
            known = is_computed_at_compile_time(argument)
            arguments[name] = _turned(op, argument, old, new) if known else value
    return op.create(each.name, (), arguments).result


def _turned(op: Builder, constant: Value, old: Groups, new: Groups) -> Value:
    """``constant``, which is broadcast to the layout ``old``, for ``new``."""
    before = along_which(constant, old)
    after = [atom for group in new for atom in group if atom in before]
    shape = shape_along(before, new)
    assert shape is not None, "the route was chosen so that constants follow"
    rank = constant.tensor.rank
    if all(size == 1 for size in shape[: len(shape) - rank]):
        shape = shape[len(shape) - rank :]
    if before == after and shape == constant.tensor.shape:
        return constant
    apart = op.aten.view(constant, tuple(atom.size for atom in before))
    return op.aten.view(op.aten.permute(apart, tuple(before.index(atom) for atom in after)), shape)


def _reordered(op: Builder, value: Value, axis: int, old: Sequence[Atom], new: Sequence[Atom]) -> Value:
    """``value`` with the atoms of ``axis``, which are ``old``, in the order ``new``."""
    shape = value.tensor.shape
    apart = (*shape[:axis], *(atom.size for atom in old), *shape[axis + 1 :])
    among = tuple(axis + old.index(atom) for atom in new)
    order = (*range(axis), *among, *range(axis + len(old), len(apart)))
    return op.aten.view(op.aten.permute(op.aten.view(value, apart), order), shape)


def _dealt(op: Builder, x: Value, first: Value, second: Value, *, by_rows: bool = False) -> Value:
    """Two block-diagonal products; each block's features are dealt out to the blocks of the second one."""
    rows, (blocks, width, inner) = x.tensor.shape[0], first.tensor.shape
    split = op.aten.permute(op.aten.view(x, (rows, blocks, width)), (1, 0, 2))
    made = op.aten.matmul(split, first)
    if by_rows:
        return op.aten.matmul(op.aten.permute(made, (1, 0, 2)), second)
    flat = op.aten.view(op.aten.permute(made, (1, 0, 2)), (rows, inner, blocks))
    return op.aten.matmul(op.aten.permute(flat, (2, 0, 1)), second)


def _interleaved(op: Builder, made: Value) -> Value:
    """Results of blocks ``[b, N, s]`` as rows of ``s`` features of each block in turn."""
    blocks, rows, width = made.tensor.shape
    return op.aten.view(op.aten.permute(made, (1, 2, 0)), (rows, blocks * width))


def _mlp(op: Builder, x: Value, first: Value, bias: Value, second: Value) -> Value:
    """A block-diagonal layer, a bias, an activation, and a dense layer."""
    raised = op.aten.add.Tensor(_interleaved(op, op.aten.matmul(x, first)), bias)
    return op.aten.linear(op.aten.relu(raised), second)


def _normalised(op: Builder, x: Value, first: Value, second: Value) -> Value:
    mixed = op.aten.softmax.int(_interleaved(op, op.aten.matmul(x, first)), -1)
    return op.aten.linear(mixed, second)


def _turned_round(op: Builder, x: Value, first: Value, bias: Value, second: Value) -> Value:
    """The channel shuffle of Zhang et al. 2018, arXiv:1707.01083, between linear layers."""
    made = op.aten.view(op.aten.linear(x, first, bias), (x.tensor.shape[0], 2, 32))
    return op.aten.linear(op.aten.view(op.aten.permute(made, (0, 2, 1)), (x.tensor.shape[0], 64)), second)


def _used_twice(op: Builder, x: Value, first: Value, second: Value) -> tuple[Value, Value]:
    mixed = _interleaved(op, op.aten.matmul(x, first))
    return op.aten.linear(mixed, second), op.aten.exp(mixed)


def _before_rows(op: Builder, x: Value, first: Value, second: Value) -> Value:
    made = op.aten.permute(op.aten.matmul(first, x), (1, 0, 2))
    return op.aten.matmul(second, op.aten.view(made, (64, x.tensor.shape[2])))


_BLOCKS = ("f32[2, N, 16]", "f32[2, 16, 32]")

ShuffledFeatures.examples = (
    Example(_dealt, ("f32[N, 8]", "f32[2, 4, 32]", "f32[2, 32, 3]"), constants=(1, 2)),
    Example(_mlp, (*_BLOCKS, "f32[64]", "f32[5, 64]"), constants=(1, 2, 3)),
    Example(_mlp, (*_BLOCKS, "f32[1, 1]", "f32[5, 64]"), constants=(1, 2, 3)),
    Example(_mlp, (*_BLOCKS, "f32[64]", "f32[5, 64]"), constants=(2, 3)),
    Example(_turned_round, ("f32[N, 8]", "f32[64, 8]", "f32[64]", "f32[5, 64]"), constants=(1, 2, 3)),
    Example(  # nothing reads them in an order of its own
        lambda op, x, first, second: op.aten.softmax.int(_dealt(op, x, first, second), 0),
        ("f32[N, 8]", "f32[2, 4, 32]", "f32[2, 32, 3]"),
        constants=(1,),
    ),
    Example(  # features before rows
        _before_rows, ("f32[2, 16, N]", "f32[2, 32, 16]", "f32[5, 64]"), constants=(1, 2)
    ),
)
ShuffledFeatures.counterexamples = (
    Example(  # whole rows move: that is no order of features
        lambda op, x, first, second: _dealt(op, x, first, second, by_rows=True),
        ("f32[2, 8]", "f32[2, 4, 32]", "f32[2, 32, 3]"),
        constants=(1, 2),
        reason="in no other order",
    ),
    Example(_dealt, ("f32[N, 8]", "f32[2, 4, 32]", "f32[2, 32, 3]"), reason="no constant weight"),
    Example(_mlp, (*_BLOCKS, "f32[64]", "f32[5, 64]"), constants=(1, 3), reason="nothing moves before it"),
    Example(
        _normalised, ("f32[2, N, 16]", "f32[2, 16, 32]", "f32[5, 64]"), (2,), reason="nothing moves before it"
    ),
    Example(
        _used_twice, ("f32[2, N, 16]", "f32[2, 16, 32]", "f32[5, 64]"), (2,), reason="read elsewhere too"
    ),
    Example(  # pieces of four elements are no better than single ones
        _mlp, ("f32[2, N, 16]", "f32[2, 16, 4]", "f32[8]", "f32[5, 8]"), (1, 2, 3), reason="in no other order"
    ),
    Example(  # views that part a row otherwise than its features
        lambda op, x, first, second: op.aten.linear(
            op.aten.view(
                op.aten.permute(op.aten.view(op.aten.linear(x, first), (24, 4, 16)), (0, 2, 1)), (32, 48)
            ),
            second,
        ),
        ("f32[32, 8]", "f32[48, 8]", "f32[5, 48]"),
        constants=(1, 2),
        reason="another way than they were put together",
    ),
)
