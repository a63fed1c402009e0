"""Writes packed matrix products as TIR. Imports TVM.

The body of a tile is written out by Python, so that every sum has a fixed place in a local buffer and LLVM
keeps it in a register; a place that is computed at run time would put all of them into memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from regraft.backends.tvm.stack import on_stack
from regraft.backends.tvm.templates import functions
from regraft.backends.tvm.templates.problem import Argument, Axis, Extra, FeedForward, Gemm, Step
from regraft.backends.tvm.templates.tile import Tile

Expr = Any
"""A TIR expression, or a Python number."""

_PAIR_DOT = "regraft_bf16_pair_dot"
#: TVM has no vectors of bf16 that it could hand to the instruction, so that pairs travel as i32.
_PAIR_DOT_SOURCE = f"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define linkonce_odr <16 x float> @{_PAIR_DOT}(<16 x float> %c, <16 x i32> %a, <16 x i32> %b) alwaysinline {{
  %x = bitcast <16 x i32> %a to <32 x bfloat>
  %y = bitcast <16 x i32> %b to <32 x bfloat>
  %d = call <16 x float>
    @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %c, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %d
}}
"""

#: Steps of k in one turn of the loop: more made nothing faster.
_UNROLL = 4


def gemm_function(problem: Gemm, tile: Tile, arguments: Sequence[Argument], symbol: str) -> Any:
    """The TIR function of one product."""

    def body(buffers: Mapping[str, Any], rows: Expr) -> None:
        Product(problem, tile, buffers, rows if problem.rows is None else problem.rows).write()

    return function(arguments, symbol, body)


def feed_forward_function(
    problem: FeedForward, tiles: Sequence[Tile], arguments: Sequence[Argument], chunk: int, symbol: str
) -> Any:
    """The TIR function of two products, chunk by chunk of the rows."""

    def body(buffers: Mapping[str, Any], rows: Expr) -> None:
        most = chunk if problem.rows is None else min(chunk, problem.rows)
        hidden = T.alloc_buffer((T.int64(most), T.int64(problem.first.columns)), problem.first.out_dtype)
        first = {**_named(buffers, "first"), "x": buffers["x"], "out": hidden}
        second = {**buffers, **_named(buffers, "second"), "x": hidden}

        def write(start: Expr, count: Expr) -> None:
            Product(problem.first, tiles[0], first, count, start, has_whole_out=False).write()
            Product(problem.second, tiles[1], second, count, start, has_whole_x=False).write()

        if problem.rows is None:
            with T.serial(T.int64(0), T.ceildiv(rows, T.int64(chunk))) as number:
                write(number * chunk, T.bind(T.min(rows - number * chunk, T.int64(chunk))))
            return
        whole, rest = divmod(problem.rows, chunk)
        if whole:
            with T.serial(T.int64(0), T.int64(whole)) as number:
                write(number * chunk, chunk)
        if rest:
            write(T.int64(whole * chunk), rest)

    return function(arguments, symbol, body)


def _named(buffers: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The buffers of one part, by the names that they have in a product of its own."""
    start = f"{part}_"
    return {name.removeprefix(start): b for name, b in buffers.items() if name.startswith(start)}


def function(
    arguments: Sequence[Argument], symbol: str, body: Callable[[Mapping[str, Any], Expr], None]
) -> Any:
    """A TIR function with a buffer for each argument; ``body`` hears of the number of rows too.

    Rows of the same call are one number, whichever buffer they are read off.
    """
    with IRBuilder() as builder, T.prim_func():
        T.func_name(symbol)
        T.func_attr({"tirx.noalias": True, "global_symbol": symbol})
        handles = [T.arg(argument.name, T.handle()) for argument in arguments]
        rows = T.int64() if any(None in a.shape for a in arguments) else None
        buffers = {}
        for argument, handle in zip(arguments, handles, strict=True):
            shape = tuple(rows if size is None else T.int64(size) for size in argument.shape)
            buffers[argument.name] = T.match_buffer(handle, shape, argument.dtype, align=64)
        if any(argument.dtype == "int32" for argument in arguments):  # pairs of bf16
            with T.attr(T.int32(0), "pragma_import_llvm", _PAIR_DOT_SOURCE):
                body(buffers, rows)
        else:
            body(buffers, rows)
    return builder.get()


@dataclass(frozen=True)
class Place:
    """Where an element stands: a number along each axis."""

    batch: Expr
    row: Expr
    column: Expr = 0
    depth: Expr = 0

    def along(self, axes: Sequence[Axis], has_batch: bool) -> list[Expr]:
        numbers = {"batch": self.batch, "rows": self.row, "columns": self.column, "depth": self.depth}
        kept = [axis for axis in axes if axis != "batch" or has_batch]
        return [numbers[axis] for axis in kept] or [0]


@dataclass(frozen=True)
class Task:
    """What one turn of the parallel loop works on."""

    batch: Expr
    block: Expr
    split: Expr
    panels: Sequence[Callable[[Expr, int], Expr]]
    """For each product, the vector of weights at a step of k: ``panel(k, vector)``."""


Store = Callable[[int, Place, Sequence[Expr], Expr], None]
"""Given the row in the tile, the place, a value of each product, and the lane."""


@dataclass
class Product:
    """Writes one product into the function that is being built.

    Fields:
        buffers: by the names of the template's arguments.
        rows: how many there are: a Python number where it is known.
        first_row: which row of the extras, and of ``x`` and ``out`` if those are whole, the first one is.
        has_whole_x, has_whole_out: whether ``x`` and ``out`` have all rows, or those from ``first_row`` on.
    """

    problem: Gemm
    tile: Tile
    buffers: Mapping[str, Any]
    rows: Expr
    first_row: Expr = 0
    has_whole_x: bool = True
    has_whole_out: bool = True
    _x: Any = field(init=False, default=None)

    @property
    def _has_batch(self) -> bool:
        return self.problem.batch > 1

    def write(self) -> None:
        problem, tile = self.problem, self.tile
        self._x = self._prepared() if problem.prologue else self.buffers["x"]
        blocks = -(-problem.columns // tile.width)
        with T.parallel(T.int64(0), T.int64(problem.batch * blocks * tile.splits)) as number:
            block = T.floordiv(number, T.int64(tile.splits))
            split = T.floormod(number, T.int64(tile.splits))
            batch = T.floordiv(block, T.int64(blocks))
            task = self._task(batch, T.floormod(block, T.int64(blocks)), split)
            if tile.depth == problem.turns:
                self._rows_of(task, 0)
            else:
                with T.serial(T.int64(0), T.int64(problem.turns // tile.depth)) as part:
                    self._rows_of(task, part)

    # -- x ---------------------------------------------------------------------------------------

    def _x_at(self, place: Place) -> Expr:
        return self._x[tuple(place.along(self.problem.x_axes(), self._has_batch))]

    def _x_row(self, row: Expr) -> Expr:
        return row + self.first_row if self.has_whole_x else row

    def _prepared(self) -> Any:
        """``x`` after the prologue, in a buffer of its own, which is read once for each block of columns."""
        problem, raw = self.problem, self.buffers["x"]
        prepared = T.alloc_buffer(raw.shape, "float32")
        rows = T.int64(self.rows) if isinstance(self.rows, int) else self.rows
        with T.parallel(T.int64(0), rows) as row, T.serial(T.int64(0), T.int64(problem.batch)) as batch:

            def store(k: Expr) -> None:
                place = Place(batch, self._x_row(row), depth=k)
                at = place.along(problem.x_axes(), self._has_batch)
                value = self._apply(problem.prologue, [raw[tuple(at)]], Place(batch, row, depth=k))
                T.buffer_store(prepared, value, at)

            self._along(problem.depth, store)
        return prepared

    def _along(self, size: int, body: Callable[[Expr], None]) -> None:
        """``body`` for each number below ``size``, as vectors where they are whole."""
        lanes = self.tile.lanes
        if size >= lanes:
            with T.serial(T.int64(0), T.int64(size // lanes)) as outer, _lanes(lanes) as lane:
                body(outer * lanes + lane)
        if size % lanes:
            with T.serial(T.int64(size - size % lanes), T.int64(size)) as rest:
                body(rest)

    # -- weights ---------------------------------------------------------------------------------

    def _task(self, batch: Expr, block: Expr, split: Expr) -> Task:
        read = self._packed if self.problem.is_constant else self._panel
        panels = [read(self.buffers[name], batch, block) for name in self.problem.weight_names]
        return Task(batch, block, split, panels)

    def _packed(self, weight: Any, batch: Expr, block: Expr) -> Callable[[Expr, int], Expr]:
        before = (batch, block) if self._has_batch else (block,)
        return lambda k, vector: weight[(*before, k, self._vector(vector * self.tile.lanes))]

    def _panel(self, weight: Any, batch: Expr, block: Expr) -> Callable[[Expr, int], Expr]:
        """The same of a weight that comes with the call: a task packs its block for itself."""
        problem, width = self.problem, self.tile.width
        panel = T.alloc_buffer((T.int64(problem.depth * width),), "float32")
        before = (batch,) if self._has_batch else ()

        def copy(k: Expr, column: Expr) -> None:
            source = block * width + column
            at = (source, k) if problem.is_transposed else (k, source)
            value = weight[(*before, *at)]
            if problem.columns % width:
                value = T.if_then_else(source < problem.columns, value, T.float32(0))
            T.buffer_store(panel, value, [k * width + column])

        is_whole = problem.columns % width == 0 and not problem.is_transposed
        outer, inner = (width, problem.depth) if problem.is_transposed else (problem.depth, width)
        with T.serial(T.int64(0), T.int64(outer)) as first:
            loop = T.vectorized if is_whole else T.serial
            with loop(T.int64(0), T.int64(inner)) as second:
                copy(*((second, first) if problem.is_transposed else (first, second)))
        return lambda k, vector: panel[self._vector(k * width + vector * self.tile.lanes)]

    def _vector(self, start: Expr) -> Expr:
        return T.ramp(T.int64(start) if isinstance(start, int) else start, T.int64(1), self.tile.lanes)

    # -- tiles -----------------------------------------------------------------------------------

    def _rows_of(self, task: Task, part: Expr) -> None:
        """All tiles of a task's share of the rows, over one part of k."""
        size, splits = self.tile.rows, self.tile.splits
        if isinstance(self.rows, int):
            whole, rest = divmod(self.rows, size)
            left_over = [rest] if rest else []
        else:
            whole, rest = T.floordiv(self.rows, T.int64(size)), T.floormod(self.rows, T.int64(size))
            left_over = list(range(1, size))
        if not isinstance(whole, int) or whole > 0:
            low = T.floordiv(task.split * whole, T.int64(splits))
            high = T.floordiv((task.split + 1) * whole, T.int64(splits))
            with T.serial(low, high) as number:
                self._tile(task, part, number * size, size)
        for count in left_over:
            is_last = task.split == splits - 1
            with T.If(is_last if isinstance(rest, int) else T.And(is_last, rest == count)), T.Then():
                self._tile(task, part, whole * size, count)

    def _tile(self, task: Task, part: Expr, row: Expr, count: int) -> None:
        """The sums of ``count`` rows from ``row`` on, over one part of k."""
        problem, tile = self.problem, self.tile
        sums = on_stack((problem.products * count * tile.width,), "float32")
        for product in range(problem.products):
            for i in range(count):
                for vector in range(tile.vectors):
                    at = [T.ramp(self._sum(product, i, vector, count), 1, tile.lanes)]
                    T.buffer_store(sums, T.broadcast(T.float32(0), tile.lanes), at)
        start = part * tile.depth

        def step(k: Expr) -> None:
            self._add_products(task, sums, k, row, count)

        turns = tile.depth // _UNROLL
        if turns:
            with T.serial(T.int64(0), T.int64(turns)) as turn:
                for inner in range(_UNROLL):
                    step(start + turn * _UNROLL + inner)
        for k in range(turns * _UNROLL, tile.depth):
            step(T.int64(k) + start)
        self._end(task, sums, row, count, part)

    def _sum(self, product: int, row: int, vector: int, count: int) -> int:
        """Where a vector of sums begins."""
        return ((product * count + row) * self.tile.vectors + vector) * self.tile.lanes

    def _add_products(self, task: Task, sums: Any, k: Expr, row: Expr, count: int) -> None:
        """One step of k."""
        lanes = self.tile.lanes
        for i in range(count):
            place = Place(task.batch, self._x_row(row + i), depth=k)
            element = T.broadcast(self._x_at(place), lanes)
            for product, panel in enumerate(task.panels):
                for vector in range(self.tile.vectors):
                    at = T.ramp(self._sum(product, i, vector, count), 1, lanes)
                    T.buffer_store(sums, self._added(sums[at], element, panel(k, vector)), [at])

    def _added(self, sums: Expr, element: Expr, weights: Expr) -> Expr:
        """A vector of sums with the products of an element of ``x``, or of a pair, added to it."""
        if self.problem.group == 1:
            return sums + element * weights
        return T.call_pure_extern(sums.ty.dtype, _PAIR_DOT, sums, element, weights)

    # -- results ---------------------------------------------------------------------------------

    def _end(self, task: Task, sums: Any, row: Expr, count: int, part: Expr) -> None:
        """What becomes of a tile's sums: sums over a part of k wait in ``out`` until the last part."""
        parts = self.problem.turns // self.tile.depth
        out = self.buffers["out"]

        def put(row: int, place: Place, values: Sequence[Expr], lane: Expr) -> None:
            T.buffer_store(out, values[0], self._out_index(place))

        def add(row: int, place: Place, values: Sequence[Expr], lane: Expr) -> None:
            index = self._out_index(place)
            T.buffer_store(out, values[0] + out[tuple(index)], index)

        if parts == 1:
            self._finish(task, sums, row, count, is_begun=False)
            return
        with T.If(part == 0):
            with T.Then():
                self._each(task, sums, row, count, put)
            with T.Else(), T.If(part < parts - 1):
                with T.Then():
                    self._each(task, sums, row, count, add)
                with T.Else():
                    self._finish(task, sums, row, count, is_begun=True)

    def _finish(self, task: Task, sums: Any, row: Expr, count: int, is_begun: bool) -> None:
        """The epilogue of a tile, and what it stores; ``is_begun`` when earlier sums wait in ``out``."""
        problem, out = self.problem, self.buffers["out"]
        squares = self._zero_squares(count) if problem.has_row_squares else None
        rounded = None
        if problem.out_dtype != "float32":
            rounded = on_stack((self.tile.lanes,), "float32")

        def store(row: int, place: Place, values: Sequence[Expr], lane: Expr) -> None:
            index = self._out_index(place)
            if is_begun:
                values = [values[0] + out[tuple(index)]]
            result = self._apply(problem.epilogue, values, place)
            if rounded is not None:
                # TVM's simplifier puts a copy of what is rounded into each of the bit operations.
                T.buffer_store(rounded, result, [lane])
                result = functions.bf16_bits(rounded[lane])
            T.buffer_store(out, result, index)
            if squares is not None:
                stored = _number(out[tuple(index)])
                at = row * self.tile.lanes + lane
                T.buffer_store(squares, squares[at] + stored * stored, [at])

        self._each(task, sums, row, count, store)
        if squares is not None:
            self._store_squares(task, squares, row, count)

    def _each(self, task: Task, sums: Any, row: Expr, count: int, store: Store) -> None:
        """``store`` for each element of a tile that is inside the matrix, as vectors where they are whole."""
        lanes, columns = self.tile.lanes, self.problem.columns
        for i in range(count):
            for vector in range(self.tile.vectors):
                start = task.block * self.tile.width + vector * lanes
                offsets = [self._sum(p, i, vector, count) for p in range(self.problem.products)]

                def element(
                    source: Any, at: Sequence[int], lane: Expr, i: int = i, start: Expr = start
                ) -> None:
                    place = Place(task.batch, row + i, start + lane)
                    store(i, place, [source[first + lane] for first in at], lane)

                if columns % self.tile.width == 0:
                    with _lanes(lanes) as lane:
                        element(sums, offsets, lane)
                    continue
                with T.If(start + lanes <= columns), T.Then(), _lanes(lanes) as lane:
                    element(sums, offsets, lane)
                if vector == columns % self.tile.width // lanes and columns % lanes:
                    is_last = task.block == columns // self.tile.width
                    with T.If(is_last), T.Then():
                        self._copied(sums, offsets, columns % lanes, element)

    def _copied(self, sums: Any, offsets: Sequence[int], size: int, element: Callable[..., None]) -> None:
        """``element`` for the first ``size`` lanes of a vector that is not whole.

        They are read off a copy: a loop over lanes of the sums themselves would keep these in memory.
        """
        lanes = self.tile.lanes
        copy = on_stack((len(offsets) * lanes,), "float32")
        for number, offset in enumerate(offsets):
            source = sums[T.ramp(offset, 1, lanes)]
            T.buffer_store(copy, source, [T.ramp(number * lanes, 1, lanes)])
        with T.serial(T.int64(0), T.int64(size)) as lane:
            element(copy, [number * lanes for number in range(len(offsets))], lane)

    def _apply(self, steps: Sequence[Step], values: Sequence[Expr], place: Place) -> Expr:
        """The steps in turn, each intermediate value computed once."""
        if not steps:
            (value,) = values
            return value
        extras = [self._extra(extra, place) for extra in steps[0].extras]
        result = steps[0].emit(functions, *values, *extras)
        if len(steps) == 1:
            return result
        return functions.bound(result, lambda value: self._apply(steps[1:], [value], place))

    def _extra(self, extra: Extra, place: Place) -> Expr:
        whole = Place(place.batch, place.row + self.first_row, place.column, place.depth)
        return _number(self.buffers[extra.name][tuple(whole.along(extra.axes, self._has_batch))])

    def _out_index(self, place: Place) -> list[Expr]:
        row = place.row + self.first_row if self.has_whole_out else place.row
        own = Place(place.batch, row, place.column)
        return own.along(self.problem.out_axes(), self._has_batch)

    def _zero_squares(self, count: int) -> Any:
        squares = on_stack((count * self.tile.lanes,), "float32")
        with T.serial(T.int64(0), T.int64(count * self.tile.lanes)) as at:
            T.buffer_store(squares, T.float32(0), [at])
        return squares

    def _store_squares(self, task: Task, squares: Any, row: Expr, count: int) -> None:
        out, lanes = self.buffers["row_squares"], self.tile.lanes
        with T.serial(T.int64(0), T.int64(count)) as i:
            place = Place(task.batch, row + i + self.first_row)
            index = (*place.along(("batch", "rows"), self._has_batch), task.block)
            T.buffer_store(out, T.float32(0), list(index))
            with T.serial(T.int64(0), T.int64(lanes)) as lane:
                T.buffer_store(out, out[index] + squares[i * lanes + lane], list(index))


def _lanes(count: int) -> Any:
    """A loop that becomes one vector."""
    return T.vectorized(T.int64(0), T.int64(count))


def _number(stored: Expr) -> Expr:
    """What is stored as f32: itself, or the number that bits of bf16 stand for."""
    return functions.of_bf16_bits(stored) if stored.ty.dtype == "uint16" else stored
