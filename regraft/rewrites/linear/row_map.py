"""Row maps: sub-graphs that send each row of an input through one affine map with constant weights.

``find_row_map`` walks back from a result through products with constants and what only moves elements,
scales or adds, to the one value that all of it depends on. The dense matrix of a map is what it makes of
the identity, and its bias what it makes of zero: no rule has to know a structure (low rank, block-diagonal
with any shuffle, LoRA) by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

from regraft.ir import Declined, Op, TensorType, Value
from regraft.rewrites.linear.layers import is_moderate
from regraft.rewrites.linear.layout import (
    Layout,
    batched,
    features,
    is_row_major,
    layout_of_input,
    same,
    varies_by_features_only,
    viewed,
    width,
)
from regraft.rewrites.support import is_known

PRODUCTS = ("aten.linear", "aten.matmul")
"""The ops that a merge saves."""

SCALES = ("aten.mul.Scalar", "aten.div.Scalar", "aten.neg", "aten.mul.Tensor", "aten.div.Tensor")
"""The ops that a merge saves as well, where they end a map."""

_MAX_OPS = 40
_MAX_AHEAD = 8

Layouts = Mapping[Value, Layout]
Outcome = Layout | Declined


@dataclass(frozen=True)
class RowMap:
    """An affine map of the rows of ``source``.

    Fields:
        source: ``x[..., n]``; everything else the map reads is constant.
        ops: the map's ops in order; the result of the last one is the map's.
        layouts: rows and features of ``source`` and of every result.
    """

    source: Value
    ops: tuple[Op, ...]
    layouts: Layouts

    @property
    def result(self) -> Value:
        return self.ops[-1].result

    @property
    def products(self) -> int:
        return sum(op.name in PRODUCTS for op in self.ops)

    @property
    def width(self) -> int:
        """Features of one row of the result."""
        return width(self.layouts[self.result])

    @property
    def is_linear(self) -> bool:
        """Whether zero is sent to zero: nothing is added but other parts of the map."""
        return all(bias_of(op, self.layouts) is None and number_of(op) == 0 for op in self.ops)


def number_of(op: Op) -> float:
    """The number that ``op`` adds to every element."""
    return op.attr("other") if op.name == "aten.add.Scalar" else 0


def bias_of(op: Op, layouts: Layouts) -> Value | None:
    """The constant that ``op`` adds, if it adds one."""
    if op.name == "aten.linear":
        return op.optional("bias")
    if op.name in ("aten.add.Tensor", "aten.sub.Tensor"):
        return next((v for v in op.operands if v not in layouts), None)
    return None


def find_row_map(root: Op) -> RowMap | Declined:
    """The row map with the most products that ends in ``root``; at least two.

    Where one source does not do, one further back is tried.
    """
    best: RowMap | None = None
    failure: Declined | None = None
    for source, ops in _sources(root):
        products = sum(op.name in PRODUCTS for op in ops)
        if products < 2 or (best is not None and products <= best.products):
            continue
        layouts = _layouts(source, ops)
        if isinstance(layouts, Declined):
            failure = layouts
        else:
            best = RowMap(source, ops, layouts)
    return best or failure or _too_short(root)


def longer_map(found: RowMap) -> Op | None:
    """An op further on that ends a map of which ``found`` is a part: one of more products, or scaled."""
    op = found.ops[-1]
    for _ in range(_MAX_AHEAD):
        if len(op.result.uses) != 1:
            return None
        (op,) = op.result.users
        if not _is_followed(op):
            return None
        longer = find_row_map(op)
        if isinstance(longer, RowMap) and longer.products >= found.products + (op.name not in SCALES):
            return op
    return None


# -- walking back ------------------------------------------------------------------------------


def _is_followed(op: Op) -> bool:
    """Whether a map may have ``op`` in it; a use that the op table does not cover is another op."""
    return op.name in RULES and not op.definition.opaque


def _sources(root: Op) -> Iterator[tuple[Value, tuple[Op, ...]]]:
    """Values that everything from them to ``root`` depends on alone, with the ops between, nearest first."""
    if not _is_followed(root):
        return
    inside: dict[Op, None] = {root: None}
    while len(inside) < _MAX_OPS:
        needed = _needed(inside)
        if len(needed) == 1:
            yield needed[0], tuple(reversed(inside))
        # The latest producer comes first, so that `inside` is in the order of execution, reversed.
        producers = [v.op for v in needed if v.op is not None and _blocker(v, inside) is None]
        if not producers:
            return
        inside[reduce(lambda a, b: b if a.comes_before(b) else a, producers)] = None


def _needed(inside: Mapping[Op, None]) -> list[Value]:
    read = dict.fromkeys(v for op in inside for v in op.operands if v.op not in inside)
    return [v for v in read if not is_known(v)]


def _blocker(value: Value, inside: Mapping[Op, None]) -> str | None:
    """Why the walk cannot pass ``value``."""
    if value.op is None:
        return "an argument"
    if not _is_followed(value.op):
        return value.op.name
    if any(user not in inside for user in value.users):
        return f"a result of {value.op.name} that is used elsewhere"
    return None


def _too_short(root: Op) -> Declined:
    """What keeps the map that ends in ``root`` from having two products."""
    inside: dict[Op, None] = {root: None}
    for _, ops in _sources(root):
        inside = dict.fromkeys(reversed(ops))
    needed = _needed(inside)
    if len(needed) != 1:
        return Declined("it does not depend on one input alone", root.result)
    reason = _blocker(needed[0], inside) or f"more than {_MAX_OPS} ops"
    return Declined(f"fewer than two products with constants, and before them {reason}", needed[0])


# -- rows and features -------------------------------------------------------------------------


def _layouts(source: Value, ops: tuple[Op, ...]) -> Layouts | Declined:
    first = layout_of_input(source.tensor) if isinstance(source.type, TensorType) else None
    if first is None or len(first) < 2:
        return Declined("the input has no axis of rows, or a symbolic number of features", source)
    layouts: dict[Value, Layout] = {source: first}
    for op in ops:
        outcome = RULES[op.name](op, layouts)
        if isinstance(outcome, Declined):
            return outcome
        layouts[op.result] = outcome
    result = ops[-1].result
    if not is_row_major(layouts[result]):
        return Declined("features stand before rows in the result", result)
    return layouts


def _linear(op: Op, layouts: Layouts) -> Outcome:
    x, weight, bias = op.operand("input"), op.operand("weight"), op.optional("bias")
    if x not in layouts or not is_known(weight) or (bias is not None and not is_known(bias)):
        return Declined("a weight is not constant", weight)
    out = weight.tensor.shape[0]
    if features(layouts[x][-1]) is None or not isinstance(out, int):
        return Declined("rows are summed up", x)
    return (*layouts[x][:-1], (out,))


def _matmul(op: Op, layouts: Layouts) -> Outcome:
    a, b = op.operand("self"), op.operand("other")
    if a in layouts and b in layouts:
        return Declined("a product of two values that depend on the input is not linear", op.result)
    weight = b if a in layouts else a
    if not is_known(weight) or weight.tensor.rank < 2:
        return Declined("a weight is not a constant matrix", weight)
    x = layouts[a if a in layouts else b]
    if len(x) < 2:
        return Declined("a product with a vector", op.result)
    contracted = x[-1] if a in layouts else x[-2]
    batch = batched(x[:-2], weight.tensor.shape[:-2])
    new = weight.tensor.shape[-1 if a in layouts else -2]
    if features(contracted) is None or batch is None or not isinstance(new, int):
        return Declined("rows are summed up, or meet a weight of their own", op.result)
    return (*batch, x[-2], (new,)) if a in layouts else (*batch, (new,), x[-1])


def _view(op: Op, layouts: Layouts) -> Outcome:
    found = viewed(layouts[op.operand("self")], op.result.tensor.shape)
    return found or Declined("a view takes a row apart", op.result)


def _permute(op: Op, layouts: Layouts) -> Outcome:
    layout = layouts[op.operand("self")]
    return tuple(layout[axis] for axis in op.site.ints("dims"))


def _scale(op: Op, layouts: Layouts) -> Outcome:
    number = op.attrs.get("other", 1)
    if not is_moderate(number):
        return Declined("the factor is not a number, or a weight may overflow by it", op.result)
    return layouts[op.operand("self")]


def _raise(op: Op, layouts: Layouts) -> Outcome:
    number = op.attr("other")
    if isinstance(number, bool) or op.attr("alpha") != 1:
        return Declined("the summand is not a number", op.result)
    return layouts[op.operand("self")]


def _times(op: Op, layouts: Layouts) -> Outcome:
    a, b = op.operand("self"), op.operand("other")
    x, factor = (a, b) if a in layouts else (b, a)
    if factor in layouts or not is_known(factor) or (op.name == "aten.div.Tensor" and x is b):
        return Declined("the factor is not constant", factor)
    if not varies_by_features_only(layouts[x], factor.tensor.shape):
        return Declined("the factor differs between rows", factor)
    return layouts[x]


def _plus(op: Op, layouts: Layouts) -> Outcome:
    a, b = op.operand("self"), op.operand("other")
    if op.attr("alpha") != 1:
        return Declined("attribute 'alpha' is not 1", op.result)
    if a in layouts and b in layouts:
        if not same(layouts[a], layouts[b]):
            return Declined("the summands hold their rows at different places", op.result)
        return layouts[a]
    x, addend = (a, b) if a in layouts else (b, a)
    if not varies_by_features_only(layouts[x], addend.tensor.shape):
        return Declined("the summand differs between rows", addend)
    return layouts[x]


def _cut(op: Op, layouts: Layouts) -> Outcome:
    layout, axis = layouts[op.operand("self")], op.site.int("dim")
    size = op.result.tensor.shape[axis]
    if features(layout[axis]) is None or not isinstance(size, int):
        return Declined("rows are left out", op.result)
    return (*layout[:axis], (size,), *layout[axis + 1 :])


def _join(op: Op, layouts: Layouts) -> Outcome:
    parts, axis = op.variadic("tensors"), op.site.int("dim")
    if any(part not in layouts for part in parts):
        return Declined("a part does not depend on the input", op.result)
    first, *others = (layouts[part] for part in parts)
    sizes = [features(layouts[part][axis]) for part in parts]
    alike = all(same(_without(each, axis), _without(first, axis)) for each in others)
    if None in sizes or not alike:
        return Declined("the parts hold their rows at different places", op.result)
    return (*first[:axis], (sum(size or 0 for size in sizes),), *first[axis + 1 :])


def _pick(op: Op, layouts: Layouts) -> Outcome:
    """Features in another order, some of them perhaps left out or taken twice."""
    layout = layouts[op.operand("self")]
    given = [(axis, index) for axis, index in enumerate(op.arguments()["indices"]) if index is not None]
    if len(given) != 1 or given[0][1] in layouts:
        return Declined("an index depends on the input, or there are several", op.result)
    ((axis, index),) = given
    (*_, count) = index.tensor.shape or (None,)
    if not is_known(index) or index.tensor.rank != 1 or not index.tensor.dtype.is_integer:
        return Declined("the index is no constant list of numbers", index)
    if features(layout[axis]) is None or not isinstance(count, int):
        return Declined("rows are picked", op.result)
    return (*layout[:axis], (count,), *layout[axis + 1 :])


def _without(layout: Layout, axis: int) -> Layout:
    return (*layout[:axis], *layout[axis + 1 :])


#: Op -> rows and features of its result. What is not listed ends a map.
RULES: Mapping[str, Callable[[Op, Layouts], Outcome]] = {
    "aten.linear": _linear,
    "aten.matmul": _matmul,
    "aten.view": _view,
    "aten.permute": _permute,
    "aten.slice.Tensor": _cut,
    "aten.cat": _join,
    "aten.index.Tensor": _pick,
    "aten.mul.Scalar": _scale,
    "aten.div.Scalar": _scale,
    "aten.neg": _scale,
    "aten.add.Scalar": _raise,
    "aten.mul.Tensor": _times,
    "aten.div.Tensor": _times,
    "aten.add.Tensor": _plus,
    "aten.sub.Tensor": _plus,
}
