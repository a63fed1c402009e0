"""Linear layers over a concatenation, and over an embedding.

Heads that draft tokens (zankner/Hydra) read the base model's hidden state beside the tokens proposed so far:
the state's part of the product is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    Exactness,
    Example,
    Match,
    PatternBuilder,
    Recipe,
    Region,
    Rewrite,
    Value,
    Var,
    dims,
)
from regraft.rewrites.linear.layers import why_not_changed
from regraft.rewrites.linear.merge import bring_in
from regraft.rewrites.support import is_inside_alternatives, is_known


class SplitConcatenation(Rewrite):
    """linear(cat(expand(h), x), W, b) = linear(h, V) + linear(x, U, b), where W = [V U] by columns.

    What is repeated for many rows is multiplied once. A concatenation of what differs in every row stays: its
    parts would be multiplied one by one and added up, which saves nothing.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, joined: Var, weight: Var, bias: Var) -> Any:
        return op.aten.linear(joined, weight, op.optional(bias))

    def check(self, m: Match) -> Declined | None:
        cat = m.joined.op
        if cat is None or cat.name != "aten.cat" or cat.attr("dim") != m.joined.tensor.rank - 1:
            return m.decline("the input is not a concatenation of features", m.joined)
        parts = cat.variadic("tensors")
        if not any(map(_is_repeated, parts)):
            return m.decline("no part of the input is repeated for several rows", m.joined)
        if all(map(_is_repeated, parts)) or not all(isinstance(p.tensor.shape[-1], int) for p in parts):
            return m.decline("all parts are repeated, or one has no fixed width", m.joined)
        if m.weight.tensor.rank != 2:
            return m.decline("the weight is a vector", m.weight)
        found = why_not_changed(m.weight)
        return None if found is None else m.decline(found.reason, found.culprit)

    def rewrite(self, op: Builder, m: Match) -> Value:
        cat = m.joined.op
        assert cat is not None
        columns = _columns(op, m.weight, cat.variadic("tensors"))
        rest = [(part, w) for part, w in columns if not _is_repeated(part)]
        widths = [w for _, w in rest]
        others = [part for part, _ in rest]
        weight = widths[0] if len(widths) == 1 else op.aten.cat(tuple(widths), 1)
        x = others[0] if len(others) == 1 else op.aten.cat(tuple(others), m.joined.tensor.rank - 1)
        total = op.aten.linear(x, weight, m.optional("bias"))
        for part, w in columns:
            found = _source(part)
            if found is not None:
                total = op.aten.add.Tensor(total, op.aten.linear(op.aten.view(*found), w))
        return total


def _is_repeated(part: Value) -> bool:
    """Whether ``part`` is fewer rows, repeated."""
    return _source(part) is not None


def _source(part: Value) -> tuple[Value, tuple[Dim, ...]] | None:
    """The rows that ``part`` repeats, and their shape beside the other parts; None when they all differ."""
    shape = part.tensor.shape
    expanded, is_viewed = part, False
    if part.op is not None and part.op.name == "aten.view":
        expanded, is_viewed = part.op.operand("self"), True
    if expanded.op is None or expanded.op.name != "aten.expand":
        return None
    source = expanded.op.operand("self")
    own, wide = source.tensor.shape, expanded.tensor.shape
    repeated = [axis for axis, size in enumerate(wide) if _was_one(own, axis - len(wide), size)]
    if not own or not repeated or repeated[-1] == len(wide) - 1:
        return None
    if not is_viewed:
        return source, own
    # One row, as `repeat` writes it: all that is repeated stands before what is not.
    whole = all(size == 1 or axis in repeated for axis, size in enumerate(wide[: repeated[-1] + 1]))
    one = dims.eq(source.tensor.numel, shape[-1]) is True
    return (source, (*(1,) * (len(shape) - 1), shape[-1])) if whole and one else None


def _was_one(shape: Sequence[Dim], axis: int, size: Dim) -> bool:
    """Whether ``axis`` (from the end) was not there, or of one element, before it had ``size``."""
    missing = len(shape) < -axis
    return missing or (shape[axis] == 1 and dims.eq(size, 1) is not True)


def _columns(op: Builder, weight: Value, parts: tuple[Value, ...]) -> list[tuple[Value, Value]]:
    """Each part with the columns of ``weight`` that it meets."""
    found: list[tuple[Value, Value]] = []
    start: Dim = 0
    for part in parts:
        end = start + part.tensor.shape[-1]
        found.append((part, op.aten.slice.Tensor(weight, 1, start, end, 1)))
        start = end
    return found


FORMS = ("as written", "table")


class MergedTable(Rewrite):
    """alt(x, (E Wᵀ + b)[ids]) = x, for x = linear(E[ids], W, b): a table of results, also of an embedding.

    The table has a row for each word; whether that is worth its memory is for the chooser to say.
    """

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, table: Var, ids: Var, weight: Var, bias: Var) -> Any:
        looked_up = op.aten.embedding(table, ids, op.attr("padding_idx"))
        indexed = op.aten.index.Tensor(table, (ids,))
        rows = op.one_of(
            *(row for made in (looked_up, indexed) for row in (made, op.aten.view(made, op.attr("size"))))
        )
        return op.aten.linear(rows, weight, op.optional(bias))

    def check(self, m: Match) -> Declined | None:
        if is_inside_alternatives(m.root):
            return m.decline("it is a part of alternatives already", m.root.result)
        for value in (m.table, m.weight, m.optional("bias")):
            if value is not None and not is_known(value):
                return m.decline("a weight is not constant", value)
        if m.weight.tensor.rank != 2 or m.table.tensor.rank != 2 or m.ids.tensor.rank < 1:
            return m.decline("the weight is a vector, the table no matrix, or there is one row", m.weight)
        if not m.ids.tensor.dtype.is_integer:
            return m.decline("the rows are picked by a mask", m.ids)
        if dims.eq(_rows(m)[-1], m.table.tensor.shape[1]) is not True:
            return m.decline("a view takes a row apart", m.root.operand("input"))
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        ids = op.aten.view(m.ids, _rows(m)[:-1])
        attrs = {"rows": dims.product(ids.tensor.shape), "forms": FORMS}
        regions = (self._as_written(op, m, ids), self._merged(op, m, ids))
        return op.create("rg.alt", ((ids,),), attrs, regions=regions).result

    def _as_written(self, op: Builder, m: Match, ids: Value) -> Region:
        region = Region([ids.type])
        inner, mapping = Builder(op.table, region, loc=op.loc), {ids: region.args[0]}
        table, weight, bias = _constants(m, mapping, inner)
        row = _looked_up(inner, m, table, region.args[0])
        inner.create("cf.yield", ((inner.aten.linear(row, weight, bias),),))
        return region

    def _merged(self, op: Builder, m: Match, ids: Value) -> Region:
        body = Region()
        inner = Builder(op.table, body)
        inner.create("cf.yield", ((inner.aten.linear(*_constants(m, {}, inner)),),))
        region = Region([ids.type])
        outer = Builder(op.table, region, loc=op.loc)
        results = outer.constant(Recipe(body, "merged_table"))
        outer.create("cf.yield", ((_looked_up(outer, m, results, region.args[0]),),))
        return region


def _looked_up(op: Builder, m: Match, table: Value, ids: Value) -> Value:
    """The rows of ``table``, as the match takes them: an index may count from the end, an embedding's not."""
    if "padding_idx" in m.attrs:
        return op.aten.embedding(table, ids, m.attr("padding_idx"))
    return op.aten.index.Tensor(table, (ids,))


def _rows(m: Match) -> tuple[Dim, ...]:
    """The shape of the layer's input."""
    return m.root.operand("input").tensor.shape


def _constants(m: Match, mapping: dict[Value, Value], inner: Builder) -> tuple[Value, Value, Value | None]:
    """Table, weight and bias inside of a region."""
    bias = m.optional("bias")
    for value in (m.table, m.weight, *(() if bias is None else (bias,))):
        bring_in(value, mapping, inner)
    return mapping[m.table], mapping[m.weight], None if bias is None else mapping[bias]


def _beside_state(op: Builder, h: Value, x: Value, w: Value, b: Value) -> tuple[Value, Value]:
    """A state of one row beside every row of ``x``, read by two layers."""
    rows = x.tensor.shape[0]
    joined = op.aten.cat((op.aten.expand(h, (rows, h.tensor.shape[1])), x), 1)
    return op.aten.linear(joined, w, b), joined


def _copies(op: Builder, h: Value, count: int, axis: int) -> Value:
    """``h`` whole, ``count`` times (axis 0), or each element so often (axis 1), as rows of its width."""
    width = h.tensor.shape[0]
    single = op.aten.view(h, (1, width) if axis == 0 else (width, 1))
    return op.aten.view(
        op.aten.expand(single, (count, width) if axis == 0 else (width, count)), (count, width)
    )


SplitConcatenation.examples = (
    Example(_beside_state, ("f32[1, 4]", "f32[N, 6]", "f32[5, 10]", "f32[5]"), constants=(2, 3)),
    Example(
        lambda op, x, h, y, w: op.aten.linear(op.aten.cat((x, op.aten.expand(h, (2, 3, 4)), y), 2), w),
        ("f32[2, 3, 2]", "f32[2, 1, 4]", "f32[2, 3, 3]", "f32[5, 9]"),
        constants=(3,),
    ),
    Example(
        lambda op, h, x, w: op.aten.linear(op.aten.cat((_copies(op, h, 3, 0), x), 1), w),
        ("f32[4]", "f32[3, 6]", "f32[5, 10]"),
        constants=(2,),
    ),
)
SplitConcatenation.counterexamples = (
    Example(
        lambda op, h, x, w: op.aten.linear(op.aten.cat((_copies(op, h, 3, 1), x), 1), w),
        ("f32[4]", "f32[3, 6]", "f32[5, 10]"),
        constants=(2,),
        reason="no part of the input is repeated",
    ),
    Example(
        lambda op, x, y, w: op.aten.linear(op.aten.cat((x, y), 1), w),
        ("f32[N, 4]", "f32[N, 6]", "f32[5, 10]"),
        constants=(2,),
        reason="no part of the input is repeated",
    ),
    Example(
        lambda op, h, x, w: op.aten.linear(op.aten.cat((op.aten.expand(h, (3, 4)), x), 1), w),
        ("f32[1, 4]", "f32[3, 6]", "f32[5, 10]"),
        reason="the weight is not constant",
    ),
)
MergedTable.examples = (
    Example(
        lambda op, ids, e, w, b: op.aten.linear(op.aten.embedding(e, ids), w, b),
        ("i64[B, S]", "f32[7, 4]", "f32[5, 4]", "f32[5]"),
        constants=(1, 2, 3),
    ),
    Example(
        lambda op, ids, e, w: op.aten.linear(op.aten.view(op.aten.embedding(e, ids), (6, 4)), w),
        ("i64[2, 3]", "f32[7, 4]", "f32[5, 4]"),
        constants=(1, 2),
    ),
    Example(
        lambda op, ids, e, w: op.aten.linear(op.aten.index.Tensor(e, (op.aten.neg(ids),)), w),
        ("i64[B, S]", "f32[7, 4]", "f32[5, 4]"),
        constants=(1, 2),
    ),
)
MergedTable.counterexamples = (
    Example(
        lambda op, ids, e, w: op.aten.linear(op.aten.index.Tensor(e, (ids,)), w),
        ("i64[N]", "f32[7, 2, 4]", "f32[5, 4]"),
        constants=(1, 2),
        reason="the table no matrix",
    ),
    Example(
        lambda op, ids, e, w: op.aten.linear(op.aten.view(op.aten.embedding(e, ids), (2, 12)), w),
        ("i64[2, 3]", "f32[7, 4]", "f32[5, 12]"),
        constants=(1, 2),
        reason="takes a row apart",
    ),
    Example(
        lambda op, ids, e, w: op.aten.linear(op.aten.embedding(e, ids), w),
        ("i64[N]", "f32[7, 4]", "f32[5, 4]"),
        constants=(1,),
        reason="a weight is not constant",
    ),
    Example(
        lambda op, ids, e, w: op.aten.linear(op.aten.relu(op.aten.embedding(e, ids)), w),
        ("i64[N]", "f32[7, 4]", "f32[5, 4]"),
        constants=(1, 2),
        reason="expected aten.embedding",
    ),
)
