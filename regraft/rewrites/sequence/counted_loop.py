"""Loops that read and write one row after another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
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
    TensorType,
    Value,
    is_pure,
    refines,
)
from regraft.rewrites.dynamic.loops import unchanged
from regraft.rewrites.dynamic.regions import live_ops, makes_sizes
from regraft.rewrites.dynamic.samples import below, loop
from regraft.rewrites.sequence.counting import Trips, trips_of
from regraft.rewrites.sequence.scans import scan_over
from regraft.rewrites.support import same_dims


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor along ``axis`` from ``first`` on, one a trip, in reverse order if ``back``."""

    axis: int
    first: int
    back: bool


class CountedLoop(Rewrite):
    """while(i < n){h = f(h, x[i]); y[i] = g(h)} = scan(h, x){f(h, x_i), g(h)}, where constants decide n

    Rows that a trip reads at the number of the trip become slices, and rows that it writes there a stacked
    result, so that no trip looks up or copies a tensor of all rows. A tensor is stacked where the trips write
    every row of it, once, and read none. Loops whose trips branch stay as they are.
    """

    stage = "recover"

    def pattern(self, op: PatternBuilder) -> Any:
        return op.call("cf.while", (op.any_operands(),), {})

    def check(self, m: Match) -> Declined | None:
        loop, culprit = m.root, m.root.operands[0] if m.root.operands else None
        refusal = makes_sizes(m)
        if refusal is not None:
            return refusal
        if not all(is_pure(op) for region in loop.regions for op in region.ops):
            return m.decline("a trip has an effect", culprit)
        if any(op.name in ("cf.cond", "cf.while") for op in loop.regions[1].walk()):
            return m.decline("a trip branches", culprit)
        if not all(refines(a.type, r.type) for a, r in zip(loop.operands, loop.results, strict=True)):
            return m.decline("a size changes in the loop", culprit)
        trips = trips_of(loop)
        if trips is None:
            return m.decline("constants do not say how many trips there are", culprit)
        plan = _Plan.of(loop, trips)
        return plan.problem(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        trips = trips_of(m.root)
        assert trips is not None
        return _Plan.of(m.root, trips).build(op)


@dataclass(frozen=True)
class _Plan:
    """What becomes of the values that a loop carries.

    Fields:
        read: rows that the body reads -> the argument that they are of, and which rows.
        written: carried values of which each trip writes one row -> which, and with what.
        numbers: arguments that count, and are read otherwise than as a place -> their values.
    """

    loop: Op
    trips: Trips
    read: Mapping[Value, tuple[Value, Rows]]
    written: Mapping[int, tuple[Op, Rows]]
    numbers: Mapping[Value, tuple[int, ...]]

    @staticmethod
    def of(loop: Op, trips: Trips) -> _Plan:
        body, still = loop.regions[1], unchanged(loop)
        written: dict[int, tuple[Op, Rows]] = {}
        for index in range(len(loop.operands)):
            found = _row_written(loop, index, trips)
            if found is not None:
                written[index] = found
        wanted = [value for i, value in enumerate(body.results) if i not in written and i not in trips.ends]
        wanted += [put.operand("values") for put, _ in written.values()]
        read: dict[Value, tuple[Value, Rows]] = {}
        for op in live_ops(body, wanted):
            source = op.operands[0] if op.operands else None
            if op.name == "aten.index.Tensor" and source in body.args and source.index in still:
                rows = _rows_at(op, trips)
                if rows is not None:
                    read[op.result] = source, rows
        given = {value: argument for value, (argument, _) in read.items()}
        used = {value for op in live_ops(body, wanted, given) for value in op.operands} | set(wanted)
        numbers = {
            argument: tuple(start[argument] for start in trips.starts)
            for argument in body.args
            if argument.index in trips.ends and argument in used
        }
        return _Plan(loop, trips, read, written, numbers)

    def problem(self, m: Match) -> Declined | None:
        for argument, numbers in self.numbers.items():
            if _steps(numbers) is None:
                return m.decline("a number that is read changes unevenly", self.loop.operands[argument.index])
        if not self.read and not self.written:
            return m.decline("no trip reads or writes a row of its own", self.loop.operands[0])
        return None

    def build(self, op: Builder) -> list[Value | None]:
        loop, body, still = self.loop, self.loop.regions[1], unchanged(self.loop)
        ends = self.trips.ends
        kept = [
            i for i in range(len(loop.operands)) if i not in ends and i not in still and i not in self.written
        ]
        carried = [(body.args[i], loop.operands[i], body.results[i]) for i in kept]
        scanned = [(value, self._slices(op, value)) for value in self.read]
        scanned += [(argument, _counted(op, argument, each)) for argument, each in self.numbers.items()]
        if not scanned:
            count = len(self.trips.starts)
            numbers = op.aten.arange.start_step(0, count, 1, dtype=DType.I64)
            scanned = [(loop.regions[0].results[0], numbers)]
        fixed = [(body.args[i], loop.operands[i]) for i in still if i not in ends]
        rows = [put.operand("values") for put, _ in self.written.values()]
        made = scan_over(op, body, carried, scanned, fixed, rows)
        results: dict[int, Value] = dict(zip(kept, made, strict=False))
        results |= {i: loop.operands[i] for i in still}
        for (i, (_, where)), stacked in zip(self.written.items(), made[len(kept) :], strict=True):
            results[i] = _unstacked(op, stacked, where, loop.results[i].tensor)
        for i, number in ends.items():
            type = loop.operands[i].tensor
            value = bool(number) if type.dtype == DType.BOOL else number
            results[i] = op.aten.full(type.shape, value, dtype=type.dtype)
        return [results[i] for i in range(len(loop.operands))]

    def _slices(self, op: Builder, value: Value) -> Value:
        """The rows that ``value`` is, one a trip, each in its shape."""
        argument, rows = self.read[value]
        whole, count = self.loop.operands[argument.index], len(self.trips.starts)
        shape = whole.tensor.shape
        if rows.axis:
            order = (rows.axis, *(axis for axis in range(len(shape)) if axis != rows.axis))
            whole = op.aten.permute(whole, order)
        if rows.first or whole.tensor.shape[0] != count:
            whole = op.aten.slice.Tensor(whole, 0, rows.first, rows.first + count, 1)
        if rows.back:
            whole = op.aten.flip(whole, (0,))
        target = (count, *value.tensor.shape)
        return whole if whole.tensor.shape == target else op.aten.view(whole, target)


def _row_written(loop: Op, index: int, trips: Trips) -> tuple[Op, Rows] | None:
    """The write of one row a trip that makes the carried value ``index``; None when it is made otherwise."""
    body = loop.regions[1]
    argument, put = body.args[index], body.results[index].op
    if put is None or put.name != "aten.index_put" or put.attr("accumulate"):
        return None
    if put.operand("self") is not argument or len(argument.uses) != 1 or len(put.result.uses) != 1:
        return None
    if loop.regions[0].args[index].uses:
        return None
    rows, shape = _rows_at(put, trips), argument.tensor.shape
    if rows is None or rows.first or shape[rows.axis] != len(trips.starts):
        return None
    row = (*shape[: rows.axis], 1, *shape[rows.axis + 1 :])
    values = put.operand("values").tensor.shape
    return (put, rows) if same_dims(values, row) else None


def _rows_at(op: Op, trips: Trips) -> Rows | None:
    """Which rows ``op`` reads or writes; None when it is not one a trip, in a row."""
    *before, index = op.optional_list("indices")
    if index is None or any(each is not None for each in before) or index.tensor.numel != 1:
        return None
    places, size = trips.sequence(index), op.operands[0].tensor.shape[len(before)]
    if places is None or not isinstance(size, int):
        return None
    places = tuple(place + size if place < 0 else place for place in places)
    step = _steps(places)
    low, high = min(places), max(places)
    if step not in (1, -1) or low < 0 or high >= size:
        return None
    return Rows(len(before), low, step == -1)


def _steps(numbers: Sequence[int]) -> int | None:
    """The difference between neighbours, 1 for a single number; None when it is not always the same."""
    steps = {b - a for a, b in itertools.pairwise(numbers)} or {1}
    return steps.pop() if len(steps) == 1 and 0 not in steps else None


def _counted(op: Builder, argument: Value, numbers: Sequence[int]) -> Value:
    step = _steps(numbers)
    assert step is not None
    counted = op.aten.arange.start_step(numbers[0], numbers[0] + step * len(numbers), step, dtype=DType.I64)
    type = argument.tensor
    if type.dtype != DType.I64:
        counted = op.aten._to_copy(counted, dtype=type.dtype)
    shape = (len(numbers), *type.shape)
    return counted if len(shape) == 1 else op.aten.view(counted, shape)


def _unstacked(op: Builder, stacked: Value, rows: Rows, type: TensorType) -> Value:
    """The tensor of ``type`` whose rows, each with an axis of size 1, ``stacked`` holds one after another."""
    shape, axis = type.shape, rows.axis
    rest = (*shape[:axis], *shape[axis + 1 :])
    made = op.aten.view(stacked, (shape[axis], *rest))
    if rows.back:
        made = op.aten.flip(made, (0,))
    if axis == 0:
        return made
    order = (*range(1, axis + 1), 0, *range(axis + 1, len(shape)))
    return op.aten.permute(made, order)


# -- examples ----------------------------------------------------------------------------------


def _cumulated(op: Builder, n: Value, h: Value, x: Value, y: Value, *, at: Any = None) -> Sequence[Value]:
    """``h = relu(h + x[n]); y[n] = h`` for n below 3; ``at`` gives another place to read."""

    def trip(op: Builder, n: Value, h: Value, x: Value, y: Value) -> tuple[Value, ...]:
        place = op.aten.view(n, (1,))
        row = op.aten.index.Tensor(x, (op.aten.view(at(op, n), (1,)) if at else place,))
        h = op.aten.relu(op.aten.add.Tensor(h, row))
        return op.aten.add.Scalar(n, 1), h, x, op.aten.index_put(y, (place,), h, False)

    return loop(op, (n, h, x, y), below(3), trip)


def _at_zero(op: Builder, n: Value) -> Value:
    return op.aten.mul.Scalar(n, 0)


def _zero(op: Builder) -> Value:
    return op.aten.full((), 0, dtype=DType.I64)


def _from_zero(op: Builder, h: Value, x: Value, y: Value, **more: Any) -> Sequence[Value]:
    return _cumulated(op, _zero(op), h, x, y, **more)


def _by_columns(op: Builder, h: Value, x: Value) -> Sequence[Value]:
    """``h = h * x[:, 3 - n]`` for n below 3."""

    def trip(op: Builder, n: Value, h: Value, x: Value) -> tuple[Value, ...]:
        place = op.aten.view(op.aten.add.Scalar(op.aten.neg(n), 3), (1,))
        return op.aten.add.Scalar(n, 1), op.aten.mul.Tensor(h, op.aten.index.Tensor(x, (None, place))), x

    return loop(op, (_zero(op), h, x), below(3), trip)


def _scaled_by_number(op: Builder, h: Value, x: Value) -> Sequence[Value]:
    """``h = h + n * x[n]`` for n below 3."""

    def trip(op: Builder, n: Value, h: Value, x: Value) -> tuple[Value, ...]:
        row = op.aten.index.Tensor(x, (op.aten.view(n, (1,)),))
        scaled = op.aten.mul.Tensor(row, op.aten._to_copy(n, dtype=DType.F32))
        return op.aten.add.Scalar(n, 1), op.aten.add.Tensor(h, scaled), x

    return loop(op, (_zero(op), h, x), below(3), trip)


def _after_first(op: Builder, h: Value, x: Value, *, trips: int = 2) -> Sequence[Value]:
    """``h = x[n] if flag else h + x[n]; flag = not flag`` for n below ``trips``, with a flag that is set."""

    def trip(op: Builder, n: Value, flag: Value, h: Value, x: Value) -> tuple[Value, ...]:
        row = op.aten.index.Tensor(x, (op.aten.view(n, (1,)),))
        h = op.aten.where.self(flag, row, op.aten.add.Tensor(h, row))
        return op.aten.add.Scalar(n, 1), op.aten.bitwise_not(flag), h, x

    return loop(op, (_zero(op), op.aten.full((), True, dtype=DType.BOOL), h, x), below(trips), trip)


def _counted_in_a_vector(op: Builder, h: Value, x: Value) -> Sequence[Value]:
    """``h = relu(h + x[n])`` for n below 3, where n is a vector of one element."""

    def test(op: Any, n: Value, *_: Value) -> Any:
        return op.aten.view(op.aten.lt.Scalar(n, 3), ())

    def trip(op: Builder, n: Value, h: Value, x: Value) -> tuple[Value, ...]:
        row = op.aten.index.Tensor(x, (n,))
        return op.aten.add.Scalar(n, 1), op.aten.relu(op.aten.add.Tensor(h, row)), x

    return loop(op, (op.aten.full((1,), 0, dtype=DType.I64), h, x), test, trip)


_ROWS = ("f32[1, 4]", "f32[3, 4]", "f32[3, 4]")

CountedLoop.examples = (
    Example(_from_zero, _ROWS),
    Example(_from_zero, ("f32[1, B]", "f32[3, B]", "f32[3, B]")),
    Example(lambda op, h, x: _by_columns(op, h, x)[1], ("f32[4, 1]", "f32[4, 5]")),
    Example(lambda op, h, x: _scaled_by_number(op, h, x)[:2], ("f32[1, 4]", "f32[3, 4]")),
    Example(lambda op, h, x: _after_first(op, h, x)[1:3], ("f32[1, 4]", "f32[2, 4]")),
    Example(lambda op, h, x: _counted_in_a_vector(op, h, x)[:2], ("f32[1, 4]", "f32[3, 4]")),
)
CountedLoop.counterexamples = (
    Example(_cumulated, ("i64[]", *_ROWS), reason="how many trips"),
    Example(
        lambda op, h, x, y: _from_zero(op, h, x, y, at=_at_zero)[1],
        ("f32[1, 4]", "f32[B, 4]", "f32[4, 4]"),
        reason="a row of its own",
    ),
    Example(
        lambda op, h, x: _after_first(op, h, x, trips=3)[2],
        ("f32[1, 4]", "f32[3, 4]"),
        reason="changes unevenly",
    ),
)
