"""Writes to the elements that a mask picks, of what is computed from these elements one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    DType,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Symbol,
    Trait,
    Value,
    Var,
    is_speculatable,
)
from regraft.rewrites.support import same_dims


class MaskedWrite(Rewrite):
    """put(x, nonzero(m), f(y[nonzero(m)], c)) = put(x, m, f(y, c)) = where(m, f(y, c), x), f elementwise

    So ``y[y > 0] *= 2`` computes nothing that is as long as values say.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder, x: Var, y: Var) -> Any:
        return op.call("aten.index_put", (x, op.any_operands(), y), {})

    def check(self, m: Match) -> Declined | None:
        found = _picks(m.root.optional_list("indices"))
        if found is None:
            return m.decline("the indices are not the places of one mask", m.x)
        shape = found.mask.tensor.shape
        if not same_dims(m.x.tensor.shape[found.first : found.first + len(shape)], shape):
            return m.decline("the sizes of the mask are not known to fit", found.mask)
        culprit = None if _is_number(m.y) else _Whole(m.x, found).culprit(m.y)
        if culprit is not None:
            return m.decline("a value is no elementwise function of what the mask picks", culprit)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        found = _picks(m.root.optional_list("indices"))
        assert found is not None, "checked"
        whole = op.aten.view(m.y, ()) if _is_number(m.y) else _Whole(m.x, found).built(op, m.y)
        mask, behind = found.mask, m.x.tensor.rank - found.first - found.mask.tensor.rank
        if behind:
            mask = op.aten.view(mask, (*mask.tensor.shape, *(1,) * behind))
        return op.aten.where.self(mask, whole, m.x)


@dataclass(frozen=True)
class _Picks:
    """The axes from ``first`` on are indexed by ``mask``, or by its ``places``, the result of nonzero."""

    mask: Value
    first: int
    places: Value | None = None


def _is_number(value: Value) -> bool:
    return value.tensor.numel == 1


class _Whole:
    """What values at the places of a mask are where they are computed for all places."""

    def __init__(self, x: Value, picks: _Picks) -> None:
        self.axes = x.tensor.shape[: picks.first + picks.mask.tensor.rank]
        self.rank = x.tensor.rank
        self.picks = picks
        self._fits: dict[Value, Value | None] = {}
        self._built: dict[Value, Value] = {}

    def culprit(self, value: Value) -> Value | None:
        """The value below ``value`` that is known at the places alone; None where there is none."""
        if value not in self._fits:
            self._fits[value] = self._culprit(value)
        return self._fits[value]

    def _culprit(self, value: Value) -> Value | None:
        op = value.op
        if self._is_same(value) or self._source(value) is not None:
            return None
        if op is None or len(op.results) != 1:
            return value
        if op.name == "aten.full":
            return None
        if op.name == "aten.expand":
            return None if self._is_same(op.operand("self")) else value
        if not op.has(Trait.ELEMENTWISE) or not is_speculatable(op):
            return value
        culprits = (self.culprit(operand) for operand in op.operands)
        return next((each for each in culprits if each is not None), None)

    def _is_same(self, value: Value) -> bool:
        """Whether ``value`` has no axis for the places."""
        return value.tensor.rank <= self.rank - len(self.axes)

    def _source(self, value: Value) -> Value | None:
        """What ``value`` picks at the places; None where it is something else."""
        op = value.op
        if op is None or op.name != "aten.index.Tensor":
            return None
        source = op.operand("self")
        fits = source.tensor.rank == self.rank and same_dims(source.tensor.shape[: len(self.axes)], self.axes)
        return source if fits and _picks(op.optional_list("indices")) == self.picks else None

    def built(self, b: Builder, value: Value) -> Value:
        if value not in self._built:
            self._built[value] = self._make(b, value)
        return self._built[value]

    def _make(self, b: Builder, value: Value) -> Value:
        if self._is_same(value):
            return value
        source, op = self._source(value), value.op
        if source is not None:
            return source
        assert op is not None, "checked"
        if op.name == "aten.full":
            return b.aten.full((), op.attr("fill_value"), dtype=value.tensor.dtype)
        if op.name == "aten.expand":
            return op.operand("self")
        made = {name: self._operand(b, given) for name, given in op.arguments().items()}
        return b.create(op.name, (), made).result

    def _operand(self, b: Builder, given: Any) -> Any:
        return self.built(b, given) if isinstance(given, Value) else given


def _picks(indices: Sequence[Value | None]) -> _Picks | None:
    """The one mask that ``indices`` are, or of which they are the places, in order."""
    first = next((i for i, index in enumerate(indices) if index is not None), len(indices))
    given = [index for index in indices[first:] if index is not None]
    if len(given) == 1 == len(indices) - first and given[0].tensor.dtype is DType.BOOL:
        return _Picks(given[0], first)
    columns = [_column(index) for index in indices[first:]]
    if not columns or columns[0] is None:
        return None
    places = columns[0][0]
    assert places.op is not None, "nonzero"
    mask = places.op.operand("self")
    in_order = columns == [(places, axis) for axis in range(len(columns))]
    return _Picks(mask, first, places) if in_order and mask.tensor.rank == len(columns) else None


def _column(index: Value | None) -> tuple[Value, int] | None:
    """``nonzero(m)`` and which of its columns ``index`` is."""
    while index is not None and index.op is not None and index.op.name == "aten.view":
        index = index.op.operand("self")
    op = None if index is None else index.op
    if op is None or index is None:
        return None
    if op.name == "aten.nonzero":
        return (index, 0) if index.tensor.shape[1] == 1 else None
    source = op.operands[0].op if op.name == "aten.slice.Tensor" and op.attr("dim") == 1 else None
    if source is None or source.name != "aten.nonzero" or op.result.tensor.shape[1] != 1:
        return None
    start = op.attr("start") or 0
    return (source.result, start) if isinstance(start, int) and start >= 0 else None


# -- examples ----------------------------------------------------------------------------------


def _columns(op: Builder, mask: Value) -> list[Value]:
    places: Op = op.create("aten.nonzero", (mask,), symbols=(Symbol("len0", 0),))
    found = places.result
    length, rank = found.tensor.shape[0], mask.tensor.rank
    parts = [op.aten.slice.Tensor(found, 1, axis, axis + 1, 1) for axis in range(rank)]
    return [op.aten.view(part, (length,)) for part in parts]


def _doubled(op: Builder, x: Value, *, other: bool = False, summed: bool = False) -> Value:
    """``x[x > 0] *= 2``; ``other`` reads the places of another mask, ``summed`` mixes what is picked."""
    columns = _columns(op, op.aten.gt.Scalar(x, 0))
    picked = op.aten.index.Tensor(x, columns[::-1] if other else columns)
    value = op.aten.cumsum(picked, 0) if summed else op.aten.mul.Scalar(picked, 2)
    return op.aten.index_put(x, columns, value)


def _rows(op: Builder, x: Value, y: Value, row: Value) -> Value:
    """``x[y[:, 0] > 0] = relu(y[y[:, 0] > 0] + row)``, of whole rows."""
    first = op.aten.view(op.aten.slice.Tensor(y, 1, 0, 1, 1), (y.tensor.shape[0],))
    columns = _columns(op, op.aten.gt.Scalar(first, 0))
    value = op.aten.relu(op.aten.add.Tensor(op.aten.index.Tensor(y, columns), row))
    return op.aten.index_put(x, columns, value)


def _behind(op: Builder, x: Value) -> Value:
    """``x[:, m] = -x[:, m]`` with a mask ``m`` over the second axis."""
    mask = op.aten.gt.Scalar(op.aten.sum.dim_IntList(x, (0,)), 0)
    columns = [None, *_columns(op, mask)]
    return op.aten.index_put(x, columns, op.aten.neg(op.aten.index.Tensor(x, columns)))


def _filled(op: Builder, x: Value, y: Value) -> Value:
    """``x[x[:, 0] > 0] = y``"""
    first = op.aten.view(op.aten.slice.Tensor(x, 1, 0, 1, 1), (x.tensor.shape[0],))
    return op.aten.index_put(x, [op.aten.gt.Scalar(first, 0)], y)


def _by_number(op: Builder, x: Value) -> Value:
    index = op.aten.arange.start_step(0, 1, 1, dtype=DType.I64)
    return op.aten.index_put(x, [index], op.aten.neg(op.aten.index.Tensor(x, [index])))


MaskedWrite.examples = (
    Example(_doubled, ("f32[B, 3]",)),
    Example(_rows, ("f32[B, 3]", "f32[B, 3]", "f32[3]")),
    Example(_behind, ("f32[4, 5]",)),
    Example(_filled, ("f32[B, 3]", "f32[3]")),
    Example(_filled, ("f32[B, 3]", "f32[1, 1]")),
)
MaskedWrite.counterexamples = (
    Example(lambda op, x: _doubled(op, x, other=True), ("f32[3, 3]",), reason="no elementwise function"),
    Example(lambda op, x: _doubled(op, x, summed=True), ("f32[B, 3]",), reason="no elementwise function"),
    Example(_by_number, ("f32[B, 3]",), reason="not the places of one mask"),
)
