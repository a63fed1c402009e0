"""Batches of products with large constant matrices, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    DType,
    Exactness,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
    dims,
)
from regraft.rewrites.canonical import Atom, Groups
from regraft.rewrites.linear.feature_order import (
    Route,
    along_which,
    end_of_way,
    find_route,
    route_to,
)
from regraft.rewrites.support import is_computed_at_compile_time

FORMS = ("one row", "blocks apart")
#: Elements of a matrix from which on it costs more to pack it at each call than to have a node of its own.
_LARGE = 1 << 16
#: Columns of a matrix from which on a product with it is as fast as one with more.
_WIDE = 128
#: Beyond so many matrices a node for each is too much.
_MOST = 8


class BlocksApart(Rewrite):
    """x[b, m, k] @ W[b, k, n] = cat(linear(x[0], W[0]ᵀ), linear(x[1], W[1]ᵀ), ...), where x is moved before.

    A library packs a constant matrix once and a batch of them at each call: ONNX Runtime takes 1.4 times as
    long for 16 rows and blocks of 512 x 512. Blocks whose features are dealt out to the blocks of another
    such product hand them over in pieces, through elementwise ops too.
    """

    stage = "fuse"
    exactness = Exactness.REASSOCIATES
    after = ("ShuffledFeatures",)

    def pattern(self, op: PatternBuilder, x: Var, weight: Var) -> Any:
        return op.aten.matmul(x, weight)

    def check(self, m: Match) -> Declined | None:
        found = _why_not(m.root)
        return None if found is None else m.decline(found.reason, found.culprit)

    def rewrite(self, op: Builder, m: Match) -> Value:
        count, wide, out = m.weight.tensor.shape
        made: list[Value] = []
        for index, part in enumerate(_parts(op, m.root)):
            matrix = op.aten.view(op.aten.slice.Tensor(m.weight, 0, index, index + 1, 1), (wide, out))
            made.append(op.aten.linear(part, op.aten.permute(matrix, (1, 0))))
        assert len(made) == count
        return op.aten.cat(tuple(made), 0)


def _why_not(product: Op) -> Declined | None:
    """Why ``product`` stays a batch, if it does."""
    found = why_not_blocks(product)
    if found is not None:
        return found
    if not _has_rows(product):
        return Declined("one row may come, which is multiplied by matrices as they are", product.operands[0])
    route = route_to(product)
    if isinstance(route, Declined):
        return route
    maker = route.source.op
    if maker is not None and maker.name == "aten.matmul" and _why_not(maker) is None:
        return Declined("the blocks before it come first", route.source)
    end = end_of_way(product.result)
    if end is not None and not isinstance(find_route(end), Declined):
        return Declined("its features are to stand in another order", product.result)
    return None


def why_not_blocks(product: Op) -> Declined | None:
    """Why ``product`` is no batch of a few large constant matrices, if it is none."""
    if product.name != "aten.matmul" or product.definition.opaque:
        return Declined("it is no product", product.result)
    x, weight = product.operands
    if not is_computed_at_compile_time(weight):
        return Declined("the matrices are not constant", weight)
    if x.tensor.rank != 3 or weight.tensor.rank != 3 or weight.tensor.dtype != DType.F32:
        return Declined("it is no batch of matrices of f32", x)
    count, wide, out = weight.tensor.shape
    if x.tensor.shape[0] != count or dims.le(count, _MOST) is not True or dims.le(2, count) is not True:
        return Declined("the matrices are too many, or not as many as parts", weight)
    if dims.le(_LARGE, wide * out) is not True:
        return Declined("the matrices are small", weight)
    return None


def _has_rows(product: Op) -> bool:
    """Whether ``product`` is never one of a single row, or stands where it is not."""
    around = product.parent.parent if product.parent is not None else None
    if around is not None and around.name == "rg.alt" and around.attr("forms") == FORMS:
        return product.parent is around.regions[1]
    return dims.le(2, product.operands[0].tensor.shape[1]) is True


def _parts(op: Builder, product: Op) -> list[Value]:
    """What each matrix multiplies, ``[1, m, k]``."""
    x = product.operand("self")
    count = x.tensor.shape[0]
    assert isinstance(count, int)
    route = route_to(product)
    assert isinstance(route, Route), route
    blocks = _blocks_of(route)
    if blocks is None:
        return [op.aten.slice.Tensor(x, 0, index, index + 1, 1) for index in range(count)]
    return [_dealt(op, route, blocks, index) for index in range(count)]


def _blocks_of(route: Route) -> Sequence[Value] | None:
    """The results of blocks that ``route`` deals out to others, each a piece of neighbouring features.

    None where it moves them in another way, or a constant on it cannot be taken apart.
    """
    made = route.source.op
    if made is None or made.name != "aten.cat" or made.attr("dim") != 0:
        return None
    first, last = route.layouts[0], route.layouts[-1]
    if len(first) != 3 or any(len(groups[0]) != 1 or not groups[2] for groups in (first, last)):
        return None
    (block,), rows, (target, *rest) = first
    if [list(group) for group in last] != [[target], list(rows), [block, *rest]]:
        return None
    if any(part.tensor.shape[0] != 1 for part in made.operands):
        return None
    follow = all(
        _follows(constant, groups, last)
        for each, groups in zip(route.maps, route.layouts[1:-1], strict=True)
        for constant in each.operands
        if is_computed_at_compile_time(constant)
    )
    return made.operands if follow else None


def _follows(constant: Value, groups: Groups, last: Groups) -> bool:
    """Whether ``constant`` has a number for each of the features that a block reads, or one for all."""
    inside, features = along_which(constant, groups), list(last[2])
    among = [atom in inside for atom in features]
    return all(atom in (*last[0], *features) for atom in inside) and (all(among) or not any(among))


def _dealt(op: Builder, route: Route, blocks: Sequence[Value], index: int) -> Value:
    """The features that the block ``index`` reads: a piece of each of ``blocks``."""
    size = dims.product(atom.size for atom in route.layouts[0][2][1:])
    start, end = index * size, (index + 1) * size
    alone = len(route.source.uses) == 1
    pieces = tuple(_piece(op, each, start, end, alone=alone and len(each.uses) == 1) for each in blocks)
    value = op.aten.cat(pieces, 2)
    for each, groups in zip(route.maps, route.layouts[1:-1], strict=True):
        arguments = each.arguments()
        for name, argument in arguments.items():
            if isinstance(argument, Value):
                known = is_computed_at_compile_time(argument)
                arguments[name] = (
                    _of_block(op, argument, groups, route.layouts[-1], index) if known else value
                )
        value = op.create(each.name, (), arguments).result
    return value


def _piece(op: Builder, block: Value, start: Dim, end: Dim, *, alone: bool) -> Value:
    """Features of ``block``, made apart from the others where their part of the matrix is wide and large.

    ``alone``: nothing else reads ``block``, which would be made a second time.
    """

    def part(value: Value, axis: int) -> Value:
        return op.aten.slice.Tensor(value, axis, start, end, 1)

    layer = block.op
    if not alone or layer is None or layer.name != "aten.linear":
        return part(block, 2)
    weight, bias = layer.operand("weight"), layer.optional("bias")
    large = dims.le(_LARGE, (end - start) * weight.tensor.shape[1]) is True
    if not large or dims.le(_WIDE, end - start) is not True or not is_computed_at_compile_time(weight):
        return part(block, 2)
    return op.aten.linear(layer.operand("input"), part(weight, 0), None if bias is None else part(bias, 0))


def _of_block(op: Builder, constant: Value, groups: Groups, last: Groups, index: int) -> Value:
    """``constant``, broadcast to ``groups``, for the features that the block ``index`` reads."""
    inside = along_which(constant, groups)
    wanted = [atom for atom in (*last[0], *last[2]) if atom in inside]
    if not wanted:
        return op.aten.view(constant, (1,))
    apart = op.aten.view(constant, tuple(atom.size for atom in inside))
    turned = op.aten.permute(apart, tuple(inside.index(atom) for atom in wanted))
    if wanted[0] is last[0][0]:
        turned = op.aten.slice.Tensor(turned, 0, index, index + 1, 1)
    return op.aten.view(turned, (_number(wanted, last[2]),))


def _number(atoms: Sequence[Atom], features: Sequence[Atom]) -> Dim:
    return dims.product(atom.size for atom in atoms if atom in features)


def by_blocks(op: Builder, x: Value, weight: Value) -> Value:
    """Rows of ``x[N, b k]`` in parts, each times a matrix of its own."""
    count, wide, _ = weight.tensor.shape
    split = op.aten.view(x, (x.tensor.shape[0], count, wide))
    return op.aten.matmul(op.aten.permute(split, (1, 0, 2)), weight)


def mixed(op: Builder, x: Value, first: Value, bias: Value, second: Value) -> Value:
    """Two such products; half of the features that each block makes is read by each of the second ones."""
    made = op.aten.view(by_blocks(op, x, first), (2, x.tensor.shape[0], 2, 128))
    flat = op.aten.view(op.aten.permute(made, (1, 2, 0, 3)), (x.tensor.shape[0], 512))
    return by_blocks(op, op.aten.relu(op.aten.add.Tensor(flat, bias)), second)


_MATRICES = "f32[2, 256, 256]"

BlocksApart.examples = (
    Example(by_blocks, ("f32[9, 512]", _MATRICES), constants=(1,)),
    Example(mixed, ("f32[9, 512]", _MATRICES, "f32[512]", _MATRICES), constants=(1, 2, 3), count=2),
    Example(mixed, ("f32[9, 512]", _MATRICES, "f32[1]", _MATRICES), constants=(1, 2, 3), count=2),
    Example(mixed, ("f32[3, 512]", _MATRICES, "f32[3, 1]", _MATRICES), constants=(1, 2, 3), count=2),
)
BlocksApart.counterexamples = (
    Example(by_blocks, ("f32[9, 512]", _MATRICES), reason="not constant"),
    Example(by_blocks, ("f32[9, 64]", "f32[2, 32, 32]"), constants=(1,), reason="are small"),
    Example(by_blocks, ("f32[9, 2304]", "f32[9, 256, 256]"), constants=(1,), reason="too many"),
    Example(by_blocks, ("f32[1, 512]", _MATRICES), constants=(1,), reason="one row may come"),
    Example(by_blocks, ("f32[N, 512]", _MATRICES), constants=(1,), reason="one row may come"),
    Example(
        lambda op, x, w: op.aten.matmul(x, w),
        ("f32[2, 9, 256]", _MATRICES),
        constants=(1,),
        reason="nothing moves before it",
    ),
    Example(
        lambda op, x, w: op.aten.matmul(op.aten.permute(x, (1, 0, 2)), w),
        ("f32[9, 1, 256]", _MATRICES),
        constants=(1,),
        reason="as many as parts",
    ),
)
