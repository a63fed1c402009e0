"""Loops that read and write one row after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    DType,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    TensorType,
    Value,
    dims,
    is_pure,
    refines,
)
from regraft.rewrites.dynamic.loops import unchanged
from regraft.rewrites.dynamic.regions import live_ops, makes_sizes
from regraft.rewrites.dynamic.samples import below, loop
from regraft.rewrites.sequence.counting import Line, Trips, trips_of
from regraft.rewrites.sequence.scans import scan_over
from regraft.rewrites.support import same_dims


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor along ``axis``, one a trip."""

    axis: int
    places: Line


class CountedLoop(Rewrite):
    """while(i < n){h = f(h, x[i]); y[i] = g(h)} = scan(h, x){f(h, x_i), g(h)}, where n is a number or a size

    Rows that a trip reads at the number of the trip, or at places that are as far from each other in all
    trips, become slices, and rows that it writes there a stacked result, so that no trip looks up or copies a
    tensor of all rows. A tensor is stacked where a trip writes one row of it, each another, and reads none.
    Loops whose trips branch stay as they are.
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
            return m.decline("constants and sizes do not say how many trips there are", culprit)
        plan = _Plan.of(loop, trips)
        if not plan.read and not plan.written:
            return m.decline("no trip reads or writes a row of its own", culprit)
        return None

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
        fixed: arguments that are the same in each trip.
    """

    loop: Op
    trips: Trips
    read: Mapping[Value, tuple[Value, Rows]]
    written: Mapping[int, tuple[Op, Rows]]
    numbers: Mapping[Value, Line]
    fixed: Sequence[Value]

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
        lines = {argument: trips.line(argument) for argument in body.args if argument.index in trips.ends}
        numbers = {a: line for a, line in lines.items() if line is not None and line.step and a in used}
        counting = {a.index for a, line in lines.items() if line is not None and line.step}
        fixed = [a for a in body.args if a.index in (still | set(trips.ends)) - counting]
        return _Plan(loop, trips, read, written, numbers, fixed)

    def build(self, op: Builder) -> list[Value | None]:
        loop, body, still = self.loop, self.loop.regions[1], unchanged(self.loop)
        ends, count = self.trips.ends, self.trips.count
        kept = [
            i for i in range(len(loop.operands)) if i not in ends and i not in still and i not in self.written
        ]
        carried = [(body.args[i], loop.operands[i], body.results[i]) for i in kept]
        scanned = [(value, self._slices(op, value)) for value in self.read]
        scanned += [(argument, self._counted(op, argument, line)) for argument, line in self.numbers.items()]
        if not scanned:
            scanned = [(loop.regions[0].results[0], _places(op, Line(0, 1), count))]
        fixed = [(argument, loop.operands[argument.index]) for argument in self.fixed]
        rows = [put.operand("values") for put, _ in self.written.values()]
        made = scan_over(op, body, carried, scanned, fixed, rows)
        results: dict[int, Value] = dict(zip(kept, made, strict=False))
        results |= {i: loop.operands[i] for i in still}
        for (i, (_, where)), stacked in zip(self.written.items(), made[len(kept) :], strict=True):
            results[i] = self._with_rows(op, loop.operands[i], stacked, where)
        for i, number in ends.items():
            results[i] = _number(op, number, loop.operands[i].tensor)
        return [results[i] for i in range(len(loop.operands))]

    def _slices(self, op: Builder, value: Value) -> Value:
        """The rows that ``value`` is, one a trip, each in its shape."""
        argument, rows = self.read[value]
        whole, count = self.loop.operands[argument.index], self.trips.count
        shape = whole.tensor.shape
        if rows.axis:
            order = (rows.axis, *(axis for axis in range(len(shape)) if axis != rows.axis))
            whole = op.aten.permute(whole, order)
        whole = _taken(op, whole, rows.places, count)
        target = (count, *value.tensor.shape)
        return whole if whole.tensor.shape == target else op.aten.view(whole, target)

    def _counted(self, op: Builder, argument: Value, line: Line) -> Value:
        counted = _places(op, line, self.trips.count)
        shape = (self.trips.count, *argument.tensor.shape)
        return counted if len(shape) == 1 else op.aten.view(counted, shape)

    def _with_rows(self, op: Builder, start: Value, stacked: Value, rows: Rows) -> Value:
        """``start`` with the rows that ``stacked`` holds one after another, each with an axis of size 1."""
        shape, axis, count = start.tensor.shape, rows.axis, self.trips.count
        made = op.aten.view(stacked, (count, *shape[:axis], *shape[axis + 1 :]))
        is_whole = _is_whole(rows.places, count, shape[axis])
        if _are_neighbours(rows.places, count, shape[axis]) and rows.places.step == -1:
            made = op.aten.flip(made, (0,))
        if axis:
            made = op.aten.permute(made, (*range(1, axis + 1), 0, *range(axis + 1, len(shape))))
        if is_whole:
            return made
        low, size = _lowest(rows.places, count), shape[axis]
        if not _are_neighbours(rows.places, count, size):
            index = (*(None for _ in range(axis)), _places(op, rows.places, count))
            return op.aten.index_put(start, index, made, False)
        before = [op.aten.slice.Tensor(start, axis, 0, low, 1)] if low != 0 else []
        is_last = dims.eq(low + count, size) is True
        after = [] if is_last else [op.aten.slice.Tensor(start, axis, low + count, size, 1)]
        return op.aten.cat((*before, made, *after), axis)


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
    if rows is None:
        return None
    size = shape[rows.axis]
    # torch refuses to write nothing at places of an axis that has none.
    if not _are_neighbours(rows.places, trips.count, size) and dims.le(1, size) is not True:
        return None
    row = (*shape[: rows.axis], 1, *shape[rows.axis + 1 :])
    values = put.operand("values").tensor.shape
    return (put, rows) if same_dims(values, row) else None


def _rows_at(op: Op, trips: Trips) -> Rows | None:
    """Which rows ``op`` reads or writes; None when it is not one a trip, each another."""
    *before, index = op.optional_list("indices")
    if index is None or any(each is not None for each in before) or index.tensor.numel != 1:
        return None
    places = trips.places(index, op.operands[0].tensor.shape[len(before)])
    return None if places is None or not places.step else Rows(len(before), places)


def _is_whole(places: Line, count: Dim, size: Dim) -> bool:
    """Whether ``count`` of ``places`` are all those of an axis, in a row."""
    is_from_first = _lowest(places, count) == 0 and dims.eq(count, size) is True
    return is_from_first and _are_neighbours(places, count, size)


def _are_neighbours(places: Line, count: Dim, size: Dim) -> bool:
    """Whether ``count`` of ``places`` are a part of an axis, in a row; also where there is no trip."""
    low = _lowest(places, count)
    return abs(places.step) == 1 and dims.le(0, low) is True and dims.le(low + count, size) is True


def _lowest(places: Line, count: Dim) -> Dim:
    """The first from the front of ``count`` places; for none, any one."""
    return places.first if places.step > 0 else places.first + places.step * (count - 1)


def _taken(op: Builder, whole: Value, places: Line, count: Dim) -> Value:
    """The rows of ``whole`` at ``count`` places along its first axis."""
    if not _is_whole(places, count, whole.tensor.shape[0]):
        low, step = _lowest(places, count), abs(places.step)
        whole = op.aten.slice.Tensor(whole, 0, low, low + step * count, step)
    return whole if places.step > 0 else op.aten.flip(whole, (0,))


def _places(op: Builder, line: Line, count: Dim) -> Value:
    """The numbers of ``line`` in ``count`` trips."""
    end = line.first + line.step * count
    return op.aten.arange.start_step(line.first, end, line.step, dtype=DType.I64)


def _number(op: Builder, number: Dim, type: TensorType) -> Value:
    """A tensor of ``type``, of one element, that holds ``number``."""
    if isinstance(number, int):
        value = bool(number) if type.dtype == DType.BOOL else number
        return op.aten.full(type.shape, value, dtype=type.dtype)
    held = op.rg.dim_value(number)
    return op.aten.view(held, type.shape) if type.shape else held


# -- examples ----------------------------------------------------------------------------------


def _zero(op: Builder) -> Value:
    return op.aten.full((), 0, dtype=DType.I64)


def _cumulated(
    op: Builder, h: Value, x: Value, y: Value, *, n: Value | None = None, trips: Dim | None = None
) -> Sequence[Value]:
    """``h = relu(h + x[n]); y[n] = h`` for n from 0 on below ``trips``, else below the length of ``x``."""

    def trip(op: Builder, n: Value, h: Value, x: Value, y: Value) -> tuple[Value, ...]:
        place = op.aten.view(n, (1,))
        h = op.aten.relu(op.aten.add.Tensor(h, op.aten.index.Tensor(x, (place,))))
        return op.aten.add.Scalar(n, 1), h, x, op.aten.index_put(y, (place,), h, False)

    test = below(x.tensor.shape[0] if trips is None else trips)
    return loop(op, (_zero(op) if n is None else n, h, x, y), test, trip)


def _longer(op: Builder, x: Value) -> Value:
    """Rows of ones, two more than ``x`` has."""
    length, *others = x.tensor.shape
    return op.aten.full((length + 2, *others), 1.0, dtype=x.tensor.dtype)


def _at_zero(op: Builder, h: Value, x: Value) -> Sequence[Value]:
    """``h = h + x[0 * n]``."""

    def trip(op: Builder, n: Value, h: Value, x: Value) -> tuple[Value, ...]:
        row = op.aten.index.Tensor(x, (op.aten.view(op.aten.mul.Scalar(n, 0), (1,)),))
        return op.aten.add.Scalar(n, 1), op.aten.add.Tensor(h, row), x

    return loop(op, (_zero(op), h, x), below(3), trip)


def _by_columns(op: Builder, h: Value, x: Value, *, trips: Dim, first: Dim, step: int) -> Sequence[Value]:
    """``h = h * x[:, first + step * n]`` for n below ``trips``."""

    def trip(op: Builder, n: Value, h: Value, x: Value) -> tuple[Value, ...]:
        scaled, start = op.aten.mul.Scalar(n, step), _number(op, first, TensorType(DType.I64, ()))
        place = op.aten.view(op.aten.add.Tensor(scaled, start), (1,))
        return op.aten.add.Scalar(n, 1), op.aten.mul.Tensor(h, op.aten.index.Tensor(x, (None, place))), x

    return loop(op, (_zero(op), h, x), below(trips), trip)


def _from_behind(op: Builder, h: Value, x: Value) -> Sequence[Value]:
    size = x.tensor.shape[1]
    return _by_columns(op, h, x, trips=size, first=size - 1, step=-1)


def _every_other(op: Builder, h: Value, x: Value, *, beyond: int = 0) -> Sequence[Value]:
    """Every second column, the last of which lies ``beyond`` the others."""
    trips = dims.floordiv(x.tensor.shape[1], 2) + beyond
    return _by_columns(op, h, x, trips=trips, first=1, step=2)


def _scaled_by_number(op: Builder, h: Value, x: Value) -> Sequence[Value]:
    """``h = h + n * x[n]``, for each row."""

    def trip(op: Builder, n: Value, h: Value, x: Value) -> tuple[Value, ...]:
        row = op.aten.index.Tensor(x, (op.aten.view(n, (1,)),))
        scaled = op.aten.mul.Tensor(row, op.aten._to_copy(n, dtype=DType.F32))
        return op.aten.add.Scalar(n, 1), op.aten.add.Tensor(h, scaled), x

    return loop(op, (_zero(op), h, x), below(x.tensor.shape[0]), trip)


def _after_first(op: Builder, h: Value, x: Value) -> Sequence[Value]:
    """``h = x[n] if flag else h + x[n]; flag = not flag`` for each row, with a flag that is set."""

    def trip(op: Builder, n: Value, flag: Value, h: Value, x: Value) -> tuple[Value, ...]:
        row = op.aten.index.Tensor(x, (op.aten.view(n, (1,)),))
        h = op.aten.where.self(flag, row, op.aten.add.Tensor(h, row))
        return op.aten.add.Scalar(n, 1), op.aten.bitwise_not(flag), h, x

    start = (_zero(op), op.aten.full((), True, dtype=DType.BOOL), h, x)
    return loop(op, start, below(x.tensor.shape[0]), trip)


def _counted_in_a_vector(op: Builder, h: Value, x: Value) -> Sequence[Value]:
    """``h = relu(h + x[n])`` for n below 3, where n is a vector of one element."""

    def test(op: Any, n: Value, *_: Value) -> Any:
        return op.aten.view(op.aten.lt.Scalar(n, 3), ())

    def trip(op: Builder, n: Value, h: Value, x: Value) -> tuple[Value, ...]:
        row = op.aten.index.Tensor(x, (n,))
        return op.aten.add.Scalar(n, 1), op.aten.relu(op.aten.add.Tensor(h, row)), x

    return loop(op, (op.aten.full((1,), 0, dtype=DType.I64), h, x), test, trip)


CountedLoop.examples = (
    Example(_cumulated, ("f32[1, 4]", "f32[3, 4]", "f32[3, 4]")),
    Example(_cumulated, ("f32[1, B]", "f32[3, B]", "f32[3, B]")),
    Example(_cumulated, ("f32[1, 4]", "f32[T, 4]", "f32[T, 4]")),
    Example(_cumulated, ("f32[1, 4]", "f32[3, 4]", "f32[5, 4]")),
    Example(lambda op, h, x: _cumulated(op, h, x, _longer(op, x))[1:4:2], ("f32[1, 4]", "f32[T, 4]")),
    Example(lambda op, h, x: _by_columns(op, h, x, trips=3, first=3, step=-1)[1], ("f32[4, 1]", "f32[4, 5]")),
    Example(lambda op, h, x: _from_behind(op, h, x)[1], ("f32[4, 1]", "f32[4, T]")),
    Example(lambda op, h, x: _every_other(op, h, x)[1], ("f32[4, 1]", "f32[4, T]")),
    Example(lambda op, h, x: _scaled_by_number(op, h, x)[:2], ("f32[1, 4]", "f32[3, 4]")),
    Example(lambda op, h, x: _scaled_by_number(op, h, x)[:2], ("f32[1, 4]", "f32[T, 4]")),
    Example(lambda op, h, x: _after_first(op, h, x)[1:3], ("f32[1, 4]", "f32[2, 4]")),
    Example(lambda op, h, x: _after_first(op, h, x)[1:3], ("f32[1, 4]", "f32[3, 4]")),
    Example(lambda op, h, x: _counted_in_a_vector(op, h, x)[:2], ("f32[1, 4]", "f32[3, 4]")),
)
CountedLoop.counterexamples = (
    Example(
        lambda op, n, h, x, y: _cumulated(op, h, x, y, n=n),
        ("i64[]", "f32[1, 4]", "f32[3, 4]", "f32[3, 4]"),
        reason="how many trips",
    ),
    Example(lambda op, h, x: _at_zero(op, h, x)[1], ("f32[1, 4]", "f32[B, 4]"), reason="a row of its own"),
    Example(
        lambda op, h, x: _every_other(op, h, x, beyond=1)[1],
        ("f32[4, 1]", "f32[4, T]"),
        reason="a row of its own",
    ),
)
