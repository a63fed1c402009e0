"""Writes one kernel as a TIR function: what the lowerings are written against. Imports TVM.

Memory is flat and row-major: a value in memory is a buffer, a shape and offsets. What is not in memory is an
expression, evaluated where its element is wanted (``at``). Lowerings write loops and give each element to
``finish``, which evaluates what follows in the same kernel and stores the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from regraft.backends.tvm import schedule, stack
from regraft.backends.tvm.cluster import Cluster, is_last_move
from regraft.backends.tvm.lower import LOWERINGS
from regraft.backends.tvm.lower.elementwise import calls_library
from regraft.backends.tvm.lower.indexing import ravel, unravel
from regraft.backends.tvm.lower.kinds import Expr, Loops, Pointwise, lowest
from regraft.backends.tvm.lower.reduce import Fold
from regraft.backends.tvm.scalars import Scalars
from regraft.backends.tvm.templates import functions
from regraft.ir import Dim, DType, Op, Symbol, Value
from regraft.ir import Expr as Size

#: What kernels compute elements in, by TVM's names.
TVM_TYPES: Mapping[DType, str] = {
    DType.F32: "float32",
    DType.F64: "float64",
    DType.I64: "int64",
    DType.I32: "int32",
    DType.I16: "int16",
    DType.I8: "int8",
    DType.U8: "uint8",
    DType.BOOL: "bool",
    DType.BF16: "float32",
}
#: What memory holds: of bf16 the bits (``templates.functions``).
MEMORY_TYPES: Mapping[DType, str] = {**TVM_TYPES, DType.BF16: "uint16"}

#: Bools are bytes: TVM has vectors of them, but chooses by none that has a name, and has no memory for one.
BYTES: Mapping[DType, DType] = {DType.BOOL: DType.I8}

#: Numbers that are computed side by side.
LANES = 16


@dataclass(frozen=True)
class Built:
    """A kernel. Its parameters are ``buffers``, each flat, its results last, and then ``symbols``."""

    function: Any
    buffers: tuple[Value, ...]
    symbols: tuple[str, ...]


def build(cluster: Cluster, symbols: Sequence[Symbol], name: str) -> Built:
    """The kernel of ``cluster`` as the TIR function ``name``."""
    buffers = (*cluster.inputs, cluster.result)
    return written(lambda sizes: Kernel(cluster, sizes), buffers, symbols, name)


def written(
    make: Callable[[Mapping[Symbol, Expr]], Kernel],
    buffers: Sequence[Value],
    symbols: Sequence[Symbol],
    name: str,
) -> Built:
    """The TIR function ``name`` that the kernel writes which ``make`` gives for the values of ``symbols``."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        handles = [T.arg(f"b{i}", T.handle()) for i in range(len(buffers))]
        sizes = {symbol: T.arg(symbol.name, T.int64()) for symbol in symbols}
        kernel = make(sizes)
        for value, handle in zip(buffers, handles, strict=True):
            shape = (kernel.size(value.tensor.numel),)
            kernel.buffers[value] = T.match_buffer(handle, shape, MEMORY_TYPES[value.tensor.dtype], align=64)
        kernel.write()
    return Built(builder.get(), tuple(buffers), tuple(symbol.name for symbol in symbols))


class Local:
    """Sums or extrema in registers, ``lanes`` of them side by side in each place."""

    def __init__(self, kernel: Kernel, how: Fold, lanes: int, places: int = 1) -> None:
        self.kernel, self.how, self.lanes = kernel, how, lanes
        self.buffer = stack.on_stack((places * lanes,), TVM_TYPES[how.dtype])
        start = kernel.number(how.start, how.dtype)
        for place in range(places):
            T.buffer_store(self.buffer, kernel.splat(start, lanes), [kernel.vector(place * lanes, lanes)])

    def __getitem__(self, place: Expr) -> Expr:
        return self.buffer[place]

    def add(self, place: Expr, value: Expr) -> None:
        """Combine ``value`` with what is in ``place``."""
        T.buffer_store(self.buffer, self.how.combine(self.kernel, self.buffer[place], value), [place])


class Sums(Local):
    """Sums of vectors: a place is a whole vector."""

    def __getitem__(self, place: int) -> Expr:
        return self.buffer[self.kernel.vector(place * self.lanes, self.lanes)]

    def add(self, place: int, value: Expr) -> None:
        found = self.how.combine(self.kernel, self[place], value)
        T.buffer_store(self.buffer, found, [self.kernel.vector(place * self.lanes, self.lanes)])


class Row:
    """Scratch memory for one row, of the thread that allocates it."""

    def __init__(self, kernel: Kernel, count: Dim, dtype: DType) -> None:
        self.kernel = kernel
        is_small = isinstance(count, int) and count * dtype.bits <= 8 * stack.MOST
        allocate = stack.on_stack if is_small else T.alloc_buffer
        self.buffer = allocate((kernel.size(count),), TVM_TYPES[dtype])

    def __getitem__(self, place: Expr) -> Expr:
        return self.buffer[place]

    def keep(self, place: Expr, value: Expr) -> Expr:
        """``value``, which is there from now on."""
        value = self.kernel.bind(value)
        T.buffer_store(self.buffer, value, [place])
        return value


class Variable:
    """One number that changes."""

    def __init__(self, kernel: Kernel, dtype: DType, start: Any) -> None:
        self.buffer = stack.on_stack((1,), TVM_TYPES[dtype])
        self.set(kernel.number(start, dtype))

    @property
    def value(self) -> Expr:
        return self.buffer[0]

    def set(self, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [0])


@dataclass
class Kernel:
    """The kernel that is being written.

    Fields:
        cluster: the ops that it computes.
        sizes: the symbols' values.
        buffers: the memory of each value that has some.
    """

    cluster: Cluster
    sizes: Mapping[Symbol, Expr]
    buffers: dict[Value, Any] = field(default_factory=dict[Value, Any])
    _known: list[dict[Any, Expr]] = field(default_factory=lambda: [{}])
    _given: Expr | None = None
    _is_lazy: bool = False
    _settled: tuple[Any, Expr] | None = None
    """Memory for what is settled, one number a lane, and the lane."""

    @property
    def math(self) -> Scalars:
        return Scalars(self.bind, self.settle)

    @cached_property
    def _has_no_vectors(self) -> bool:
        return self._binds_what_is_chosen or any(calls_library(op) for op in self.cluster.inlined)

    @cached_property
    def _binds_what_is_chosen(self) -> bool:
        """Whether a value that TVM makes lane by lane would be bound: only the last lane's would be there."""
        anchor, root = self.cluster.anchor, self.cluster.root
        lowering = None if anchor is None else LOWERINGS[anchor.name]
        is_bound = root is not anchor or root.result.tensor.dtype == DType.BF16
        return isinstance(lowering, Loops) and lowering.chooses and is_bound

    def write(self) -> None:
        anchor = self.cluster.anchor
        if anchor is None:
            schedule.pointwise(self, self.cluster)
            return
        lowering = LOWERINGS[anchor.name]
        assert isinstance(lowering, Loops)
        lowering.emit(self, anchor)

    # -- elements --------------------------------------------------------------------------------

    def is_computed(self, value: Value) -> bool:
        """Whether elements of ``value`` are computed where they are read; else they are in memory."""
        return value.op is not None and value.op in self.cluster.inlined

    def at(self, value: Value, index: Sequence[Expr]) -> Expr:
        """The element of ``value`` at ``index``."""
        op = value.op
        if op is not None and op in self.cluster.inlined:
            return self._computed(op, index)
        source = self.cluster.memory(value)
        found = self.buffers[source][self.place(ravel(index, value.tensor.shape, self.size))]
        return functions.of_bf16_bits(found) if value.tensor.dtype == DType.BF16 else found

    def _computed(self, op: Op, index: Sequence[Expr]) -> Expr:
        if op is self.cluster.anchor:
            assert self._given is not None, "the anchor's element is not known yet"
            return self._given
        key = (op, *(place if isinstance(place, int) else id(place) for place in index))
        for known in self._known:
            if key in known:
                return known[key][1]
        lowering = LOWERINGS[op.name]
        assert isinstance(lowering, Pointwise)
        found = lowering.emit(self, op, index)
        if len(op.result.uses) > 1:
            found = self.bind(found)
        self._known[-1][key] = (tuple(index), found)  # the places are kept: their ids stay theirs
        return found

    def finish(self, index: Sequence[Expr], value: Expr) -> None:
        """Element ``index`` of the anchor is ``value``: compute what follows and store it."""
        last = self._last.result
        with self.scope():
            found = value if last.op is self.cluster.anchor else self.after(value, index)
            self.store(index if last is self.cluster.result else self._permuted(index), found)

    @property
    def _last(self) -> Op:
        """The op that gives elements at the anchor's places: the root, or what it permutes."""
        root = self.cluster.root
        if root is self.cluster.anchor or not is_last_move(root):
            return root
        (moved,) = root.operands
        assert moved.op is not None, "the anchor is before the root"
        return moved.op

    def _permuted(self, index: Sequence[Expr]) -> list[Expr]:
        """Where the root has what is at ``index`` of its operand."""
        return [index[axis % len(index)] for axis in self.cluster.root.attr("dims")]

    def after(self, value: Expr, index: Sequence[Expr]) -> Expr:
        """The element at ``index`` of what follows the anchor, where that of the anchor is ``value``."""
        self._given = self.bind(value)
        found = self.at(self._last.result, index)
        self._given = None
        return found

    def store(self, index: Sequence[Expr], value: Expr) -> None:
        """Write element ``index`` of the result."""
        self.put(self.cluster.result, index, value)

    def put(self, out: Value, index: Sequence[Expr], value: Expr) -> None:
        """Write element ``index`` of ``out``, which is in memory."""
        offset = self.place(ravel(index, out.tensor.shape, self.size))
        value = functions.bf16_bits(self.bind(value)) if out.tensor.dtype == DType.BF16 else value
        T.buffer_store(self.buffers[out], value, [offset])

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is bound here is not known outside."""
        self._known.append({})
        yield
        self._known.pop()

    def bind(self, value: Expr) -> Expr:
        """``value``, computed once; but not where it may not be computed at all."""
        if self._is_lazy or isinstance(value, (int, float, tirx.Var, tirx.IntImm, tirx.FloatImm)):
            return value
        if hasattr(value, "ty") and functions.scalar_type(value) == "bool":
            return self.of_byte(T.bind(self.byte(value)))
        return T.bind(value)

    def byte(self, value: Expr) -> Expr:
        """A bool as the number that stands for it where it has a name or memory."""
        return self.cast(value, DType.BOOL, BYTES[DType.BOOL])

    def of_byte(self, value: Expr) -> Expr:
        """The bool that ``byte`` gave ``value`` for."""
        return value > self.like(0, value)

    def settle(self, value: Expr) -> Expr:
        """``value``, computed once and read from memory.

        What is bound TVM's passes put back where it is used, so that functions of functions would grow.
        """
        if self._is_lazy or self._settled is None or functions.scalar_type(value) != "float32":
            return self.bind(value)
        memory, lane = self._settled
        T.buffer_store(memory, value, [lane])
        return T.bind(memory[lane])

    # -- numbers ---------------------------------------------------------------------------------

    def size(self, dim: Dim) -> Expr:
        """A size as an i64."""
        if isinstance(dim, int):
            return T.int64(dim)
        total: Expr = None
        for monomial, coefficient in dim.terms:
            term: Expr = None
            for atom in monomial:
                value = self.sizes[atom] if isinstance(atom, Symbol) else self._call(atom.fn, *atom.args)
                term = value if term is None else term * value
            term = T.int64(coefficient) if term is None else term * T.int64(coefficient)
            total = term if total is None else total + term
        return total

    def _call(self, fn: str, left: Dim, right: Dim) -> Expr:
        functions = {"floordiv": T.floordiv, "mod": T.floormod, "min": T.min, "max": T.max}
        return functions[fn](self.size(left), self.size(right))

    def place(self, value: Expr) -> Expr:
        """A place or an index as an i64."""
        if isinstance(value, int):
            return T.int64(value)
        return self.math.cast(value, "int64")

    def number(self, value: Any, dtype: DType) -> Expr:
        """A number, or a size, as an element of ``dtype``; integers wrap around, as torch's do."""
        if isinstance(value, Size):
            return self.cast(self.size(value), DType.I64, dtype)
        name = TVM_TYPES[dtype]
        if dtype.is_float:
            return _float(float(value), name)
        return tirx.IntImm(name, _wrapped(int(value), dtype) if dtype != DType.BOOL else int(bool(value)))

    def like(self, value: Any, other: Expr) -> Expr:
        """A number of the type of ``other``, in as many lanes."""
        return self.math.like(value, other)

    def zero(self, other: Expr) -> Expr:
        return self.math.like(0, other)

    def one(self, other: Expr) -> Expr:
        return self.math.like(1, other)

    def true(self) -> Expr:
        return tirx.IntImm("bool", 1)

    def cast(self, value: Expr, source: DType, to: DType) -> Expr:
        if source == to:
            return value
        if to == DType.BOOL:
            return self.math.differ(value, self.zero(value))
        value = self.math.cast(value, TVM_TYPES[to])
        return functions.rounded_to_bf16(self.bind(value)) if to == DType.BF16 else value

    def only_if(self, condition: Expr, value: Callable[[], Expr], other: Expr) -> Expr:
        """``value()`` where ``condition`` holds, else ``other``; only then is it read."""
        with self.scope():
            self._is_lazy, before = True, self._is_lazy
            found = value()
            self._is_lazy = before
        return T.if_then_else(condition, found, other)

    def require(self, condition: Expr, message: str, kind: str) -> None:
        """Let the call fail with the exception ``kind`` where ``condition`` is false."""
        with T.Assert(condition, message, kind):
            pass

    # -- vectors ---------------------------------------------------------------------------------

    def vector(self, start: Expr, lanes: int) -> Expr:
        """``lanes`` places from ``start`` on."""
        return T.ramp(self.place(start), T.int64(1), lanes) if lanes > 1 else self.place(start)

    def splat(self, value: Expr, lanes: int) -> Expr:
        return T.broadcast(value, lanes) if lanes > 1 else value

    def each_lane(self, lanes: int) -> Iterator[Expr]:
        """The lanes of a vector, in a loop that becomes one; of a single number, 0."""
        outside, memory = self._settled, stack.on_stack((lanes,), "float32")
        with self.scope():
            if lanes == 1:
                self._settled = memory, T.int64(0)
                yield T.int64(0)
            else:
                with T.vectorized(T.int64(0), T.int64(lanes)) as lane:
                    self._settled = memory, lane
                    yield lane
        self._settled = outside

    def lanes(self, count: Dim | Expr, body: Callable[[Expr], None]) -> None:
        """``body(place)`` for each place below ``count``, as vectors and then one by one."""

        def block(start: Expr, lanes: int) -> None:
            for lane in self.each_lane(lanes):
                body(start + lane)

        self.blocks(count, block)

    def blocks(self, count: Dim | Expr, body: Callable[[Expr, int], None]) -> None:
        """``body(start, lanes)`` for whole vectors and then for single places."""
        self.tiles(count, (LANES, 1), body)

    def tiles(self, count: Dim | Expr, sizes: Sequence[int], body: Callable[[Expr, int], None]) -> None:
        """``body(start, size)``: as many of each size as are whole, the largest first."""
        if isinstance(count, Size):
            count = self.size(count)
        start: Expr = 0
        for size in (1,) if self._has_no_vectors else sizes:
            is_known = isinstance(count, int)
            turns = count // size if is_known else self.bind(T.floordiv(count, T.int64(size)))
            self._repeat(turns, start, size, body)
            done = turns * size
            start = (
                start + done if isinstance(start, int) and is_known else self.bind(self.place(start) + done)
            )
            count = count - done if is_known else self.bind(count - done)

    def _repeat(self, turns: Expr, start: Expr, size: int, body: Callable[[Expr, int], None]) -> None:
        if isinstance(turns, int) and turns < 2:
            if turns:
                with self.scope():
                    body(self.place(start), size)
            return
        with T.serial(T.int64(0), self.place(turns)) as turn, self.scope():
            body(self.bind(self.place(start) + turn * T.int64(size)), size)

    # -- loops -----------------------------------------------------------------------------------

    @contextmanager
    def loops(self, sizes: Sequence[Dim]) -> Iterator[list[Expr]]:
        """Loops over all places of ``sizes``, in order."""
        frames = [T.serial(T.int64(0), self.size(size)) for size in sizes]
        places = [frame.__enter__() for frame in frames]
        with self.scope():
            yield places
        for frame in reversed(frames):
            frame.__exit__(None, None, None)

    def rows(
        self,
        sizes: Sequence[Dim],
        body: Callable[[list[Expr]], None],
        work: Dim,
        *,
        is_large: bool = False,
    ) -> None:
        """``body(place)`` for each place of ``sizes``, by all threads if the ``work`` of all is worth it."""
        schedule.rows(self, sizes, body, work, is_large)

    def each(self, shape: Sequence[Dim], body: Callable[[list[Expr]], None]) -> None:
        """``body(place)`` for each place of ``shape``, neighbours as vectors."""
        if not shape:
            body([])
            return
        *outer, last = shape
        self.rows(outer, lambda place: self.lanes(last, lambda j: body([*place, j])), last)

    def unraveled(self, offset: Expr, sizes: Sequence[Dim]) -> list[Expr]:
        """The place of ``offset`` among ``sizes``, for an offset that is there."""
        return [self.bind(place) for place in unravel(offset, sizes, self._divisor)]

    def _divisor(self, size: Dim) -> Expr:
        """A size that is not 0, so that TVM sees it: it refuses what it takes for a division by zero."""
        return T.int64(size) if isinstance(size, int) else T.max(self.size(size), T.int64(1))

    def at_most(self, limit: int, total: Dim, first: Expr) -> Expr:
        """How many of ``total`` places from ``first`` on, a multiple of ``limit``, there are in one block."""
        if isinstance(total, int) and (total <= limit or total % limit == 0):
            return min(total, limit)
        return self.bind(T.min(self.size(total) - first, T.int64(limit)))

    # -- folds -----------------------------------------------------------------------------------

    def accumulators(self, how: Fold, lanes: int) -> Local:
        return Local(self, how, lanes)

    def sums(self, places: int, lanes: int, dtype: DType) -> Sums:
        return Sums(self, Fold(dtype, 0, lambda k, a, b: k.math.plus(a, b)), lanes, places)

    def variable(self, dtype: DType, start: Any) -> Variable:
        return Variable(self, dtype, start)

    def scratch(self, count: Dim, dtype: DType) -> Row:
        return Row(self, count, dtype)

    def fold_row(self, how: Fold, count: Dim, term: Callable[[Expr], Expr]) -> Expr:
        return self.fold(how, (count,), lambda place: term(place[0]))

    def fold(self, how: Fold, sizes: Sequence[Dim], term: Callable[[list[Expr]], Expr]) -> Expr:
        """All ``term(place)`` combined; the places of the last axis are spread over lanes."""
        *outer, last = sizes or (1,)
        is_short = isinstance(last, int) and last < LANES
        lanes = 1 if is_short or self._has_no_vectors else LANES
        total = self.accumulators(how, lanes)
        with self.loops(outer) as before:

            def block(start: Expr, width: int) -> None:
                for lane in self.each_lane(width):
                    total.add(lane, term([*before, start + lane] if sizes else []))

            self.tiles(last, (lanes, 1) if lanes > 1 else (1,), block)
        return self._joined(total, lanes)

    def _joined(self, total: Local, lanes: int) -> Expr:
        """The first ``lanes`` places combined half with half, as vectors, in place.

        TVM's simplifier puts bound expressions back wherever they are used: only in memory do halves of
        halves not grow.
        """
        while lanes > 1:
            lanes //= 2
            for lane in self.each_lane(lanes):
                total.add(lane, total[lane + T.int64(lanes)])
        return self.bind(total[0])


def _wrapped(value: int, dtype: DType) -> int:
    """``value`` modulo the count of numbers that ``dtype`` has, as one of these."""
    return (value - lowest(dtype)) % (1 << dtype.bits) + lowest(dtype)


def _float(value: float, name: str) -> Expr:
    if math.isfinite(value):
        return tirx.FloatImm(name, value)
    if math.isnan(value):
        return tirx.FloatImm(name, float("nan"))
    infinity = tirx.infinity(name)
    return infinity if value > 0 else -infinity
