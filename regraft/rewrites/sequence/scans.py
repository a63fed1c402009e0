"""How the rewrites of scans look at one and build one anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from regraft.ir import Builder, Op, Region, Scan, TensorType, Trait, Value, clone_op, dims
from regraft.rewrites.batching import batched, obstacle
from regraft.rewrites.dynamic.regions import live_ops

#: Elements, 4 MB in f32: those of all trips outgrow a core's own cache.
_CACHED = 1 << 20
#: Elements of one trip that take longer to bring from memory than a call of a kernel takes.
_ROW = 1 << 11


def live_in(scan: Scan) -> list[Op]:
    """The ops of the body that have effects or that its results depend on."""
    return live_ops(scan.body, scan.body.results)


def is_constant(value: Value) -> bool:
    """Whether ``value`` is made of constants alone, so that any region may make it again."""
    seen, pending = {value}, [value]
    while pending:
        op = pending.pop().op
        if op is None or op.regions or op.symbols or not op.has(Trait.PURE):
            return False
        pending.extend(operand for operand in dict.fromkeys(op.operands) if operand not in seen)
        seen.update(op.operands)
    return True


def is_heavy(scan: Scan, row: TensorType) -> bool:
    """Whether ``row`` for all trips is slower to keep in memory than to make in the trip that reads it.

    Where the number of trips is open, it counts as large; what that costs short sequences is not measured.
    Measured with rows of 8192 elements over 1024 trips on ONNX Runtime: a scan that makes them takes 20 ms,
    one that reads them from memory takes that long to read, and they are to be made besides.
    """
    return dims.le(_ROW, row.numel) is True and dims.le(_CACHED, scan.length * row.numel) is not False


class Outside:
    """Values of a scan's body for all trips at once, built where ``op`` inserts."""

    def __init__(self, op: Builder, scan: Scan, given: Mapping[Value, Value]) -> None:
        """``given`` says what stands, stacked, for values of the body besides the slices."""
        self._op = op
        self._scan = scan
        self._new = {each: scan.operand(each) for each in (*scan.slices, *scan.fixed)} | dict(given)
        self._varying: set[Value] = {*scan.slices, *given}

    def of(self, value: Value) -> Value:
        """``value`` for all trips, stacked where it changes from trip to trip."""
        if value not in self._new:
            op = value.op
            assert op is not None, "what a trip carries is known in the loop alone"
            for operand in op.operands:
                self.of(operand)
            if self._varying.isdisjoint(op.operands):
                made: Sequence[Value] = self._op.insert(clone_op(op, dict(self._new))).results
            else:
                made = batched(self._op, op, self._new, self._varying, self._scan.length)
                self._varying.update(op.results)
            self._new.update(zip(op.results, made, strict=True))
        return self._new[value]

    def stacked(self, value: Value) -> Value:
        """``value`` for all trips, as often as there are trips where it is the same for each."""
        found = self.of(value)
        if value in self._varying:
            return found
        return self._op.aten.expand(found, (self._scan.length, *found.tensor.shape))


def varying_of(scan: Scan, first: Iterable[Value]) -> set[Value]:
    """The values of the body that depend on those of ``first``."""
    found = set(first)
    for op in scan.body.ops:
        if not found.isdisjoint(op.operands):
            found.update(op.results)
    return found


def may_leave(op: Op, varying: Set[Value]) -> bool:
    """Whether ``op`` can run for all trips at once."""
    return not op.has(Trait.TERMINATOR) and obstacle(op, varying) is None


def scan_over(
    op: Builder,
    body: Region,
    carried: Sequence[tuple[Value, Value, Value]],
    scanned: Sequence[tuple[Value, Value]],
    fixed: Sequence[tuple[Value, Value]],
    rows: Sequence[Value],
) -> tuple[Value, ...]:
    """A scan of what is live of ``body``; the carried values after it, and the stacked rows.

    ``carried`` are values of ``body`` with what they start with and what they are after a trip, ``scanned``
    and ``fixed`` values of ``body`` with what they are slices of, or are. Those that nobody reads are left
    out, but for the first that is scanned.
    """
    given = dict((*scanned, *fixed))
    wanted = [*(after for _, _, after in carried), *rows]
    live = live_ops(body, wanted, given)
    read = {value for each in live for value in each.operands} | set(wanted)
    slices = [pair for pair in scanned if pair[0] in read] or list(scanned[:1])
    kept = [pair for pair in fixed if pair[0] in read]
    region = Region()
    mapping: dict[Value, Value] = {}
    for inside, start, _ in carried:
        mapping[inside] = region.add_arg(start.type, inside.hint)
    for inside, whole in slices:
        mapping[inside] = region.add_arg(whole.tensor.with_shape(whole.tensor.shape[1:]), inside.hint)
    for inside, outer in kept:
        mapping[inside] = region.add_arg(outer.type, inside.hint)
    inner = Builder(op.table, region, loc=op.loc)
    for each in live:
        inner.insert(clone_op(each, mapping))
    inner.create("cf.yield", ([mapping[value] for value in wanted],))
    operands = ([start for _, start, _ in carried], [whole for _, whole in slices], [o for _, o in kept])
    made = op.create("cf.scan", tuple(map(tuple, operands)), regions=(region,))
    return made.results
