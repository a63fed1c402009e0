"""Products with constants, one after the other or side by side, as one dense product."""

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
from regraft.rewrites.linear.dense import dense_bias, dense_weight
from regraft.rewrites.linear.row_map import RowMap, find_row_map, longer_map
from regraft.rewrites.support import is_inside_alternatives, same_dims

FORMS = ("as written", "merged")


class MergedLinear(Rewrite):
    """alt(f(x), linear(x, W, b)) = f(x), with W the map of the identity and b that of zero.

    ``f`` sends each row of ``x`` through products with constant matrices, between which elements only move,
    are scaled or added: two linear layers of low rank, block-diagonal products with any shuffle between, a
    layer with a LoRA branch (Hu et al. 2021, arXiv:2106.09685). Which form is faster depends on the number of
    rows and on the machine, so that both are kept and the compiler chooses.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, a: Var, b: Var, c: Var) -> Any:
        return op.one_of(
            op.aten.linear(a, b, op.optional(c)),
            op.aten.matmul(a, b),
            op.aten.add.Tensor(a, b),
            op.aten.sub.Tensor(a, b),
            op.aten.permute(a, op.attr("dims")),
            op.aten.view(a, op.attr("size")),
            op.aten.mul.Tensor(a, b),
            op.aten.div.Tensor(a, b),
            op.aten.mul.Scalar(a, op.attr("factor")),
            op.aten.div.Scalar(a, op.attr("divisor")),
            op.aten.neg(a),
        )

    def check(self, m: Match) -> Declined | None:
        if is_inside_alternatives(m.root):
            return m.decline("it is a part of alternatives already", m.root.result)
        found = find_row_map(m.root)
        if isinstance(found, Declined):
            return found
        longer = longer_map(found)
        if longer is not None:
            return m.decline(f"it is a part of the longer map that ends in {longer.name}", longer.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        found = find_row_map(m.root)
        assert isinstance(found, RowMap), found
        rows = dims.product(found.source.tensor.shape[:-1])
        regions = (_as_written(op, found), _merged(op, found))
        attrs = {"rows": rows, "forms": FORMS}
        return op.create("rg.alt", ((found.source,),), attrs, regions=regions).result


def _as_written(op: Builder, found: RowMap) -> Region:
    region = Region([found.source.type])
    mapping = {found.source: region.args[0]}
    inner = Builder(op.table, region, loc=op.loc)
    for each in found.ops:
        for value in each.operands:
            bring_in(value, mapping, inner)
        inner.insert(clone_op(each, mapping))
    inner.create("cf.yield", ((mapping[found.result],),))
    return region


def bring_in(value: Value, mapping: dict[Value, Value], inner: Builder) -> None:
    """Clone the constant ``value``, with what it is computed from, unless it is there already."""
    if value in mapping:
        return
    maker: Op | None = value.op
    assert maker is not None, "only constants and values of the map are read"
    for operand in maker.operands:
        bring_in(operand, mapping, inner)
    inner.insert(clone_op(maker, mapping))


def _merged(op: Builder, found: RowMap) -> Region:
    region = Region([found.source.type])
    inner = Builder(op.table, region, loc=op.loc)
    weight = inner.constant(dense_weight(found, op.table))
    bias = None if found.is_linear else inner.constant(dense_bias(found, op.table))
    result = inner.aten.linear(region.args[0], weight, bias)
    shape = found.result.tensor.shape
    if not same_dims(result.tensor.shape, shape):
        result = inner.aten.view(result, shape)
    inner.create("cf.yield", ((result,),))
    return region


def _low_rank(op: Builder, x: Value, a: Value, b: Value, inner: str | None = None) -> Value:
    hidden = op.aten.linear(x, a)
    return op.aten.linear(op.call(f"aten.{inner}", (hidden,), {}) if inner else hidden, b)


def _inner_used(op: Builder, hidden: Value, b: Value) -> tuple[Value, Value]:
    return op.aten.linear(hidden, b), op.aten.relu(hidden)


def _lora(op: Builder, x: Value, w: Value, bias: Value, a: Value, b: Value) -> Value:
    """``x W + b + s (x A) B``: Hu et al. 2021."""
    return op.aten.add.Tensor(
        op.aten.linear(x, w, bias), op.aten.mul.Scalar(op.aten.linear(op.aten.linear(x, a), b), 0.25)
    )


def _monarch(op: Builder, x: Value, first: Value, second: Value, *, shuffled: bool = True) -> Value:
    """Two block-diagonal products with the shuffle of CLAIRE-Labo/StructuredFFN's BlockShuffle between."""
    rows, blocks = x.tensor.shape[0], first.tensor.shape[0]
    split = op.aten.permute(op.aten.view(x, (rows, blocks, first.tensor.shape[1])), (1, 0, 2))
    hidden = op.aten.permute(op.aten.matmul(split, first), (1, 0, 2))
    width, groups = dims.product(hidden.tensor.shape[1:]), second.tensor.shape[0]
    if shuffled:
        flat = op.aten.view(hidden, (rows, dims.floordiv(width, groups), groups))
        mixed = op.aten.permute(flat, (2, 0, 1))
    else:
        mixed = op.aten.permute(op.aten.view(hidden, (rows, groups, dims.floordiv(width, groups))), (1, 0, 2))
    out = op.aten.permute(op.aten.matmul(mixed, second), (1, 2, 0))
    return op.aten.view(out, (rows, dims.product(out.tensor.shape[1:])))


def _dora(op: Builder, x: Value, w: Value, a: Value, b: Value, magnitude: Value) -> Value:
    """A scale of each output behind the sum of both branches."""
    return op.aten.mul.Tensor(op.aten.add.Tensor(op.aten.linear(x, w), _low_rank(op, x, a, b)), magnitude)


MergedLinear.examples = (
    Example(_dora, ("f32[N, 8]", "f32[6, 8]", "f32[2, 8]", "f32[6, 2]", "f32[6]"), constants=(1, 2, 3, 4)),
    Example(
        lambda op, x, a, b: op.aten.neg(op.aten.div.Scalar(_low_rank(op, x, a, b), 4.0)),
        ("f32[N, 8]", "f32[3, 8]", "f32[6, 3]"),
        constants=(1, 2),
    ),
    Example(_low_rank, ("f32[B, S, 8]", "f32[3, 8]", "f32[6, 3]"), constants=(1, 2)),
    Example(_lora, ("f32[N, 8]", "f32[6, 8]", "f32[6]", "f32[2, 8]", "f32[6, 2]"), constants=(1, 2, 3, 4)),
    Example(_monarch, ("f32[N, 8]", "f32[2, 4, 3]", "f32[2, 3, 5]"), constants=(1, 2)),
    Example(
        lambda op, x, a, c, b: op.aten.linear(op.aten.add.Tensor(op.aten.linear(x, a), c), b, None),
        ("f32[N, 4]", "f32[3, 4]", "f32[1, 3]", "f32[5, 3]"),
        constants=(1, 2, 3),
    ),
    Example(
        lambda op, x, a, b, c: op.aten.linear(op.aten.linear(op.aten.linear(x, a), b), c),
        ("f32[2, N, 4]", "f32[3, 4]", "f32[3, 3]", "f32[5, 3]"),
        constants=(1, 2, 3),
    ),
)
MergedLinear.counterexamples = (
    Example(
        lambda op, x, a, b: _low_rank(op, x, a, b, "relu"),
        ("f32[N, 8]", "f32[3, 8]", "f32[6, 3]"),
        constants=(1, 2),
        reason="before them aten.relu",
    ),
    Example(_low_rank, ("f32[N, 8]", "f32[3, 8]", "f32[6, 3]"), constants=(2,), reason="one input alone"),
    Example(
        lambda op, x, a, b: _inner_used(op, op.aten.linear(x, a), b),
        ("f32[N, 8]", "f32[3, 8]", "f32[6, 3]"),
        constants=(1, 2),
        reason="a result of aten.linear that is used elsewhere",
    ),
    Example(
        lambda op, x, a, b: op.aten.matmul(op.aten.matmul(a, x), b),
        ("f32[N, 8]", "f32[5, 7]", "f32[8, 3]"),
        constants=(1, 2),
        reason="rows are summed up",
    ),
)
