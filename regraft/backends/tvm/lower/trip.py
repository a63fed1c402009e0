"""What a trip of a scan does for one strand, in order, and which of its values have memory there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from regraft.backends.tvm.lower.inside import PRODUCT, is_free
from regraft.backends.tvm.lower.kinds import is_elementwise
from regraft.backends.tvm.lower.reduce import REDUCTIONS
from regraft.ir import Op, Scan, Trait, Value, backward_slice, dims


@dataclass(frozen=True)
class Hold:
    """Compute the result of ``op`` at all places of the strand, and keep it."""

    op: Op


@dataclass(frozen=True)
class Emit:
    """Store the row of this number."""

    row: int


@dataclass(frozen=True)
class Turn:
    """Keep what the carried value of this number becomes, which no op of its own computes."""

    carried: int


Event = Hold | Emit | Turn


@dataclass(frozen=True)
class Trip:
    """What a trip does.

    Fields:
        ops: those that its results depend on.
        events: in order. Other ops are computed where one of these reads them.
        in_place: ops that are held in the memory of the carried value that their result is the next of.
    """

    scan: Scan
    ops: Sequence[Op]
    events: Sequence[Event]
    in_place: Mapping[Op, Value]

    @staticmethod
    def of(scan: Scan) -> Trip:
        return _Ordering(scan).found()

    @property
    def held(self) -> list[Op]:
        return [event.op for event in self.events if isinstance(event, Hold)]

    @property
    def turned(self) -> list[Value]:
        """The carried values that ``Turn`` is for."""
        return [self.scan.carried[event.carried] for event in self.events if isinstance(event, Turn)]


@dataclass
class _Ordering:
    scan: Scan
    ops: list[Op] = field(init=False)
    held: dict[Op, None] = field(init=False)

    def __post_init__(self) -> None:
        found = backward_slice(self.scan.body.results)
        self.ops = [op for op in found if not op.has(Trait.CONSTANT_LIKE)]
        self.held = dict.fromkeys(op for op in self.ops if self._is_held(op))

    def found(self) -> Trip:
        events = list(self._events())
        return Trip(self.scan, self.ops, events, dict(self._in_place(events)))

    # -- what is held ----------------------------------------------------------------------------

    def _is_held(self, op: Op) -> bool:
        """Whether the result has memory: others would compute it again and again."""
        if is_free(op):
            return False
        if not is_elementwise(op) or op.result in self.scan.after:
            return True
        reads = list(_readers(op.result))
        return len(reads) > 1 or any(_repeats(op, reader, seen) for reader, seen in reads)

    # -- the order -------------------------------------------------------------------------------

    def _events(self) -> Iterator[Event]:
        rows: dict[Op | None, list[int]] = {}
        for number, row in enumerate(self.scan.rows):
            rows.setdefault(row.op if row.op in self.ops else None, []).append(number)
        yield from map(Emit, rows.get(None, ()))
        for op in self.ops:
            if op in self.held:
                yield Hold(op)
            yield from map(Emit, rows.get(op, ()))
        for number, (argument, after) in enumerate(zip(self.scan.carried, self.scan.after, strict=True)):
            if after is not argument and after.op not in self.held:
                yield Turn(number)

    def _in_place(self, events: Sequence[Event]) -> Iterator[tuple[Op, Value]]:
        """What nobody reads any more when its next value is computed, which reads it place by place."""
        for number, event in enumerate(events):
            if not isinstance(event, Hold) or self.scan.after.count(event.op.result) != 1:
                continue
            argument = self.scan.carried[self.scan.after.index(event.op.result)]
            is_read_later = any(argument in self._carried_of(later) for later in events[number + 1 :])
            if not is_read_later and self._carried_of(event).get(argument, True):
                yield event.op, argument

    def _carried_of(self, event: Event) -> dict[Value, bool]:
        """The carried values that ``event`` reads -> whether each place reads its own place alone."""
        found: dict[Value, bool] = {}

        def visit(value: Value, in_step: bool) -> None:
            if value in self.scan.carried:
                found[value] = found.get(value, True) and in_step
            elif value.op is not None and value.op not in self.held:
                operands_of(value.op, in_step)

        def operands_of(op: Op, in_step: bool) -> None:
            for operand in op.operands:
                same = is_elementwise(op) and _same_shape(operand, op.result)
                visit(operand, in_step and same)

        if isinstance(event, Hold):
            operands_of(event.op, True)
        elif isinstance(event, Emit):
            visit(self.scan.rows[event.row], True)
        else:
            visit(self.scan.after[event.carried], True)
        return found


def _readers(value: Value) -> Iterator[tuple[Op, Value]]:
    """The ops that read ``value`` and are no views, each with the view of it that it reads."""
    for use in value.uses:
        if is_free(use.op):
            yield from _readers(use.op.result)
        else:
            yield use.op, value


def _repeats(op: Op, reader: Op, seen: Value) -> bool:
    """Whether ``reader``, which reads ``op`` as ``seen``, reads places of it several times."""
    if dims.le(seen.tensor.numel, op.result.tensor.numel) is not True:
        return True
    if reader.name == PRODUCT:
        return True
    if reader.name in REDUCTIONS or reader.has(Trait.TERMINATOR):
        return False
    return dims.eq(seen.tensor.numel, reader.result.tensor.numel) is not True


def _same_shape(a: Value, b: Value) -> bool:
    pairs = zip(a.tensor.shape, b.tensor.shape, strict=False)
    return a.tensor.rank == b.tensor.rank and all(dims.eq(x, y) is True for x, y in pairs)
