"""Block-diagonal layers of any number of rows: as batches for one row, one by one for more."""

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
    Region,
    Rewrite,
    Value,
    Var,
    clone_op,
    dims,
)
from regraft.rewrites.linear.blocks import FORMS, by_blocks, mixed, why_not_blocks
from regraft.rewrites.linear.feature_order import Route, end_of_way, find_route, route_to
from regraft.rewrites.linear.merge import bring_in
from regraft.rewrites.support import is_inside_alternatives

_LONGEST = 8


class OneRowOfBlocks(Rewrite):
    """alt(f(x), f(x)) = f(x), for large block-diagonal layers f of any number of rows: one row, or more.

    ``BlocksApart`` rewrites the second form, which takes half as long again for one row and less for two.
    """

    stage = "fuse"
    exactness = Exactness.EXACT
    after = ("ShuffledFeatures",)

    def pattern(self, op: PatternBuilder, a: Var, b: Var) -> Any:
        return op.one_of(
            op.aten.matmul(a, b),
            op.aten.view(a, op.attr("size")),
            op.aten.permute(a, op.attr("dims")),
        )

    def check(self, m: Match) -> Declined | None:
        if is_inside_alternatives(m.root):
            return m.decline("it is a part of alternatives already", m.root.result)
        found = _layers(m.root)
        return m.decline(found.reason, found.culprit) if isinstance(found, Declined) else None

    def rewrite(self, op: Builder, m: Match) -> Value:
        found = _layers(m.root)
        assert not isinstance(found, Declined), found
        source, ops = found
        product = next(each for each in ops if each.name == "aten.matmul")
        rows = product.operands[0].tensor.shape[1]
        attrs = {"rows": rows, "forms": FORMS, "cuts": (2,), "order": (0, 1)}
        regions = tuple(_written(op, source, ops) for _ in FORMS)
        return op.create("rg.alt", ((source,),), attrs, regions=regions).result


def _layers(root: Op) -> tuple[Value, list[Op]] | Declined:
    """The layers that end in ``root``, and what they read."""
    product, ops = root, [root]
    if root.name != "aten.matmul":
        route = route_to(root)
        if isinstance(route, Declined):
            return route
        maker = route.source.op
        if maker is None or len(route.source.uses) != 1:
            return Declined("no product makes what it moves", route.source)
        product, ops = maker, [maker, *route.ops]
    elif end_of_way(root.result) is not None:
        return Declined("what it makes is moved on", root.result)
    for _ in range(_LONGEST):
        found = why_not_blocks(product) or _why_not_open(product)
        if found is not None:
            return found
        route = route_to(product)
        if isinstance(route, Declined):
            return route
        ops = [*route.ops, *ops]
        maker = route.source.op
        if maker is None or why_not_blocks(maker) is not None or route.maker is None:
            return _settled(root, route, ops)
        product, ops = maker, [maker, *ops]
    return Declined("there are too many layers", root.result)


def _why_not_open(product: Op) -> Declined | None:
    rows = product.operands[0].tensor.shape[1]
    if isinstance(rows, int) or dims.le(2, rows) is True:
        return Declined("the number of rows is known to be one, or not to be", product.result)
    return None


def _settled(root: Op, route: Route, ops: list[Op]) -> tuple[Value, list[Op]] | Declined:
    """The layers, once their features stand in the order in which least is moved."""
    ends = [root, *(op for op in ops if op.name == "aten.matmul")]
    if any(not isinstance(find_route(end), Declined) for end in ends):
        return Declined("its features are to stand in another order", root.result)
    return route.source, ops


def _written(op: Builder, source: Value, ops: list[Op]) -> Region:
    region = Region([source.type])
    mapping = {source: region.args[0]}
    inner = Builder(op.table, region, loc=op.loc)
    inside = {result for each in ops for result in each.results}
    for each in ops:
        for value in each.operands:
            if value not in inside:
                bring_in(value, mapping, inner)
        inner.insert(clone_op(each, mapping))
    inner.create("cf.yield", ((mapping[ops[-1].result],),))
    return region


def _joined(op: Builder, x: Value, weight: Value) -> Value:
    """The results of blocks side by side."""
    made = by_blocks(op, x, weight)
    return op.aten.view(op.aten.permute(made, (1, 2, 0)), (x.tensor.shape[0], 512))


_MATRICES = "f32[2, 256, 256]"

OneRowOfBlocks.examples = (
    Example(by_blocks, ("f32[N, 512]", _MATRICES), constants=(1,)),
    Example(_joined, ("f32[N, 512]", _MATRICES), constants=(1,)),
    Example(mixed, ("f32[N, 512]", _MATRICES, "f32[512]", _MATRICES), constants=(1, 2, 3)),
)
OneRowOfBlocks.counterexamples = (
    Example(by_blocks, ("f32[1, 512]", _MATRICES), constants=(1,), reason="is known to be one"),
    Example(by_blocks, ("f32[7, 512]", _MATRICES), constants=(1,), reason="or not to be"),
    Example(by_blocks, ("f32[N, 512]", _MATRICES), reason="not constant"),
    Example(by_blocks, ("f32[N, 64]", "f32[2, 32, 32]"), constants=(1,), reason="are small"),
)
