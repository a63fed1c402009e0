"""Writes a scan as one TIR function: strands side by side, and all trips of each. Imports TVM.

The values of a strand are on the stack, lanes last; what ``lower/trip.py`` does not hold is an expression,
evaluated where its element is wanted, as in every kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import sym
from tvm.script.ir_builder import tirx as T

from regraft.backends.tvm import stack
from regraft.backends.tvm.cluster import Cluster, Sweep
from regraft.backends.tvm.kernel import BYTES, LANES, TVM_TYPES, Built, Kernel, written
from regraft.backends.tvm.lower.apart import Axis
from regraft.backends.tvm.lower.indexing import ravel
from regraft.backends.tvm.lower.inside import PRODUCT
from regraft.backends.tvm.lower.kinds import Expr
from regraft.backends.tvm.lower.matmul import factors
from regraft.backends.tvm.lower.reduce import REDUCTIONS, Fold, axes_of, sum_of
from regraft.backends.tvm.lower.scan import Strands
from regraft.backends.tvm.lower.trip import Emit, Event, Hold
from regraft.errors import BackendError
from regraft.ir import Dim, DType, Op, Symbol, Value, dims


def build(sweep: Sweep, symbols: Sequence[Symbol], name: str) -> Built:
    """The kernel of ``sweep`` as the TIR function ``name``."""
    return written(lambda sizes: _SweepKernel(sweep, sizes), (*sweep.inputs, *sweep.results), symbols, name)


class _SweepKernel(Kernel):
    """The kernel of a scan.

    Fields:
        places: the place of the strands that are being written along each of their axes.
        width: how many strands run side by side.
    """

    def __init__(self, sweep: Sweep, sizes: Mapping[Symbol, Expr]) -> None:
        self.strands = Strands.of(sweep.root)
        self.trip, self.scan = self.strands.trip, self.strands.scan
        super().__init__(Cluster(sweep.root, dict.fromkeys(self.trip.ops), memories=sweep.memories), sizes)
        self.places: dict[Axis, Expr] = {}
        self.width = 1
        self._first: Expr = 0
        self._lane: Expr = 0
        self._number: Expr = None
        self._stacks: dict[Value, Any] = {}
        self._next: dict[Value, Any] = {}

    # -- strands ---------------------------------------------------------------------------------

    def write(self) -> None:
        strands, lane = self.strands, self.strands.lane
        if lane is None:
            self._run([], 0, 1)
            return
        width = strands.width

        def block(place: list[Expr]) -> None:
            *outer, number = place
            first = self.bind(self.place(number) * T.int64(width))
            self.tiles(
                self.at_most(width, lane.size, first),
                tuple(dict.fromkeys((width, LANES, 1))),
                lambda start, count: self._run(outer, first + start, count),
            )

        sizes = (*(axis.size for axis in strands.outer), dims.ceildiv(lane.size, width))
        work = dims.product((self.scan.length, width, max(strands.elements, 1)))
        self.rows(sizes, block, work, is_large=True)

    def _run(self, outer: Sequence[Expr], first: Expr, width: int) -> None:
        """All trips of ``width`` strands, the first of which is at ``first``."""
        self.places = dict(zip(self.strands.outer, outer, strict=True))
        self.width, self._first = width, first
        self._stacks, self._next = {}, {}
        for value in self.strands.hoisted:
            self._fill(value, self._stack_of(value), lambda index, value=value: self.at(value, index))
        for argument in self.scan.carried:
            start = self.scan.operand(argument)
            self._fill(argument, self._stack_of(argument), lambda i, start=start: self.at(start, i))
        for op in self.trip.held:
            if op in self.trip.in_place:
                self._stacks[op.result] = self._stacks[self.trip.in_place[op]]
            else:
                self._stacks[op.result] = self._stack_of(op.result)
        for argument in self.trip.turned:
            self._next[argument] = self._stack_of(argument)
        with T.serial(T.int64(0), self.size(self.scan.length)) as number, self.scope():
            self._number = number
            for event in self.trip.events:
                self._do(event)
            self._carry_on()
        for argument, result in zip(self.scan.carried, self.cluster.root.results, strict=False):
            self._save(argument, result, [])

    # -- trips -----------------------------------------------------------------------------------

    def _do(self, event: Event) -> None:
        if isinstance(event, Emit):
            self._save(self.scan.rows[event.row], self.scan.stacked(event.row), [self._number])
        elif isinstance(event, Hold):
            self._hold(event.op)
        else:
            argument, after = self.scan.carried[event.carried], self.scan.after[event.carried]
            self._fill(argument, self._next[argument], lambda index: self.at(after, index), is_known=False)

    def _carry_on(self) -> None:
        """Let what is carried be what this trip has made of it."""
        for argument, after in zip(self.scan.carried, self.scan.after, strict=True):
            made = self._next.get(argument, self._stacks.get(after))
            mine = self._stacks[argument]
            if made is None or made is mine:
                continue
            for index in self._indices(argument):
                slot = self._slot(argument, index)
                T.buffer_store(mine, made[slot], [slot])

    def _hold(self, op: Op) -> None:
        if op.name == PRODUCT:
            self._fold(op, sum_of(op.result.tensor.dtype), op.operands[0].tensor.shape[-1:], self._product)
        elif op.name in REDUCTIONS:
            how, axes = REDUCTIONS[op.name], axes_of(op)

            def term(op: Op, index: Sequence[Expr], inner: Sequence[Expr]) -> Expr:
                return how.term(self, op, axes.place(axes.kept_place(index), inner))

            fold = how.how(op.result.tensor.dtype)
            self._fold(op, fold, axes.sizes(axes.reduced), term, lambda x: how.last(self, op, x))
        else:
            self._fill(op.result, self._stacks[op.result], lambda index: self._computed(op, index))

    def _product(self, op: Op, index: Sequence[Expr], depth: Sequence[Expr]) -> Expr:
        left, right = factors(op, index, depth[0])
        return self.math.times(self.at(op.operands[0], left), self.at(op.operands[1], right))

    def _fold(
        self,
        op: Op,
        how: Fold,
        sizes: Sequence[Dim],
        term: Callable[[Op, Sequence[Expr], Sequence[Expr]], Expr],
        last: Callable[[Expr], Expr] = lambda folded: folded,
    ) -> None:
        """Hold ``op``, whose elements are those of ``term`` at all places of ``sizes``, combined."""
        value = op.result
        with self._inner_places(value) as inner:
            total = self.accumulators(how, self._lanes_of(value))
            with self.loops(sizes) as folded:
                for index in self._side_by_side(value, inner):
                    total.add(self._lane, term(op, index, folded))
            for index in self._side_by_side(value, inner):
                self._keep(value, self._stacks[value], index, last(total[self._lane]))

    # -- memory ----------------------------------------------------------------------------------

    def at(self, value: Value, index: Sequence[Expr]) -> Expr:
        """The element of ``value`` at ``index``: on the stack, in memory, or computed."""
        if value in self._stacks:
            found = self._stacks[value][self._slot(value, index)]
            return self.of_byte(found) if _is_bool(value) else found
        if value.owner is not self.scan.body:
            return super().at(value, index)
        before = [self._number] if value in self.scan.slices else []
        return super().at(self.scan.operand(value), [*before, *index])

    def _stack_of(self, value: Value) -> Any:
        """Memory for all places that a strand has of ``value``, for each of the strands."""
        count = self._lanes_of(value)
        for axis in self.strands.inner(value):
            count *= value.tensor.shape[axis]
        dtype = value.tensor.dtype
        return stack.on_stack((count,), TVM_TYPES[BYTES.get(dtype, dtype)])

    def _keep(self, value: Value, memory: Any, index: Sequence[Expr], element: Expr) -> None:
        """Let ``memory`` have ``element`` at the place ``index`` of ``value``."""
        kept = self.byte(element) if _is_bool(value) else element
        T.buffer_store(memory, kept, [self._slot(value, index)])

    def _fill(
        self, value: Value, memory: Any, element: Callable[[Sequence[Expr]], Expr], *, is_known: bool = True
    ) -> None:
        """Write ``element(index)`` for each place of ``value``; from then on they are read in ``memory``."""
        for index in self._indices(value):
            self._keep(value, memory, index, element(index))
        if is_known:
            self._stacks[value] = memory

    def _save(self, value: Value, out: Value, before: Sequence[Expr]) -> None:
        """Store ``value`` at ``before`` in ``out``; of strands that have the same, the first one does."""
        labels = self.strands.labels_of(value)
        same = [self.places[axis] for axis in self.strands.outer if axis not in labels]
        if self.strands.lane is not None and self.strands.lane not in labels:
            same.append(self._first)
        with self._where([self.place(place) < T.int64(1) for place in same]):
            for index in self._indices(value):
                self.put(out, [*before, *index], self.at(value, index))

    @contextmanager
    def _where(self, conditions: Sequence[Expr]) -> Iterator[None]:
        if not conditions:
            yield
            return
        holds = conditions[0]
        for condition in conditions[1:]:
            holds = T.And(holds, condition)
        with T.If(holds), T.Then(), self.scope():
            yield

    # -- places ----------------------------------------------------------------------------------

    def _lanes_of(self, value: Value) -> int:
        is_spread = self.strands.lane is not None and self.strands.lane in self.strands.labels_of(value)
        return self.width if is_spread else 1

    def _indices(self, value: Value) -> Iterator[list[Expr]]:
        """The places of ``value`` that these strands have, in loops that write them all."""
        with self._inner_places(value) as inner:
            yield from self._side_by_side(value, inner)

    @contextmanager
    def _inner_places(self, value: Value) -> Iterator[list[Expr]]:
        sizes = [value.tensor.shape[axis] for axis in self.strands.inner(value)]
        with self.loops(sizes) as places:
            yield places

    def _side_by_side(self, value: Value, inner: Sequence[Expr]) -> Iterator[list[Expr]]:
        """The places of ``value`` at ``inner`` along its inner axes, in a loop over lanes."""
        for lane in self.each_lane(self._lanes_of(value)):
            self._lane = lane
            if self.strands.lane is not None:
                self.places[self.strands.lane] = self._first + lane
            yield self._index(value, inner)

    def _index(self, value: Value, inner: Sequence[Expr]) -> list[Expr]:
        found: list[Expr] = [0] * value.tensor.rank
        for axis, place in zip(self.strands.inner(value), inner, strict=True):
            found[axis] = place
        for axis, label in enumerate(self.strands.labels_of(value)):
            if label is not None:
                found[axis] = self.places[label]
        return found

    def _slot(self, value: Value, index: Sequence[Expr]) -> Expr:
        """Where the element of ``value`` at ``index`` is on the stack."""
        for place, label in zip(index, self.strands.labels_of(value), strict=True):
            if label is not None and not _is_same(place, self.places[label]):
                raise BackendError(f"a strand of a scan reads another one's {value.tensor}", backend="tvm")
        inner = self.strands.inner(value)
        shape = [value.tensor.shape[axis] for axis in inner]
        lanes = self._lanes_of(value)
        offset = self.place(ravel([index[axis] for axis in inner], shape, self.size))
        return offset if lanes == 1 else offset * T.int64(lanes) + self._lane


def _is_bool(value: Value) -> bool:
    return value.tensor.dtype == DType.BOOL


def _is_same(a: Expr, b: Expr) -> bool:
    return a is b or sym.Analyzer().can_prove_equal(a, b)
