"""Cutting a flat graph with markers into regions.

Regions are isolated from above: what an arm or a loop's body takes from around it becomes an operand of the
op and an argument of its regions, found as the import comes across it. Constants are not handed over but
stand in each region anew, and sizes are known in every region inside the one that defines them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from regraft.errors import CaptureError
from regraft.ir import Builder, Location, OpTable, Region, Symbol, Type, Value


@dataclass
class _Open:
    """A condition or a loop of which the end has not been reached.

    Fields:
        outer: the region that the op will stand in.
        operands: what its regions take in the first place: the carried values of a loop.
        regions: those begun so far; the last one is open.
        captured: outer value -> the number of the region argument that stands for it.
        loc: the line that it begins at.
        pred: what a condition tests.
    """

    outer: Region
    operands: list[Value]
    regions: list[Region]
    loc: Location
    pred: Value | None = None
    captured: dict[Value, int] = field(default_factory=dict[Value, int])

    def capture(self, value: Value) -> Value:
        """The argument of the open region that stands for the value ``value`` of the outer one."""
        if value not in self.captured:
            self.captured[value] = len(self.operands) + len(self.captured)
            for region in self.regions:
                region.add_arg(value.type, value.hint)
        return self.regions[-1].args[self.captured[value]]

    def begin(self) -> None:
        """Open the next region, with the arguments of the one before."""
        first = self.regions[0]
        region = Region(first.arg_types, first.symbols)
        for argument, other in zip(region.args, first.args, strict=True):
            argument.hint = other.hint
        self.regions.append(region)

    @property
    def all_operands(self) -> list[Value]:
        return [*self.operands, *self.captured]


class Regions:
    """The regions that an import is in: the function's own, and those of the ops that are open."""

    def __init__(self, table: OpTable, root: Region) -> None:
        self._table = table
        self._root = root
        self._open: list[_Open] = []

    @property
    def current(self) -> Region:
        return self._open[-1].regions[-1] if self._open else self._root

    def here(self, value: Value, loc: Location) -> Value:
        """``value``, made in this region or around it, as a value of this region.

        Raises:
            CaptureError: it was made in another arm.
        """
        depth = self._depth_of(value)
        if depth is None:
            raise CaptureError(
                "a tensor that one arm of a condition makes, or a trip of a loop, is used outside of it",
                location=str(loc),
                hint="make it in both arms, under the same name, or before the condition",
            )
        if depth and value.op is None:
            # A carried value has an argument in the test, and one in the body.
            value = self._open[depth - 1].regions[-1].args[value.index]
        for each in self._open[depth:]:
            value = each.capture(value)
        return value

    def _depth_of(self, value: Value) -> int | None:
        """How many ops are open around the region of ``value``; None when it is closed."""
        home = value.op.parent if value.op is not None else value.owner
        if home is self._root:
            return 0
        for depth, each in enumerate(self._open, start=1):
            if home is each.regions[-1] or (each.pred is None and value.owner is each.regions[0]):
                return depth
        return None

    # -- conditions ------------------------------------------------------------------------------

    def begin_condition(self, pred: Value, loc: Location) -> None:
        self._open.append(_Open(self.current, [], [Region()], loc, pred))

    def begin_else(self) -> None:
        self._open[-1].begin()

    def end_condition(
        self,
        then: Sequence[Value],
        otherwise: Sequence[Value],
        types: Sequence[Type],
        symbols: Sequence[Symbol],
    ) -> tuple[Value, ...]:
        """The op's results: ``then``, values of the first region, or ``otherwise``, values of this one."""
        closed = self._open.pop()
        for region, values in zip(closed.regions, (then, otherwise), strict=True):
            Builder(self._table, region).create("cf.yield", (values,))
        assert closed.pred is not None, "a condition without a predicate"
        builder = Builder(self._table, closed.outer, loc=closed.loc)
        arguments = (closed.pred, closed.all_operands)
        op = builder.create("cf.cond", arguments, result_types=types, regions=closed.regions, symbols=symbols)
        return op.results

    # -- loops -----------------------------------------------------------------------------------

    def begin_loop(
        self, carried: Sequence[Value], types: Sequence[Type], symbols: Sequence[Symbol], loc: Location
    ) -> tuple[Value, ...]:
        """Open the test; what stands for the carried values, in it and in the body."""
        region = Region(types, symbols)
        self._open.append(_Open(self.current, list(carried), [region], loc))
        return tuple(region.args)

    @property
    def carried(self) -> tuple[list[Value], list[Value]]:
        """What the innermost loop begins with, and what stands for it in a trip."""
        opened = self._open[-1]
        return opened.operands, opened.regions[-1].args[: len(opened.operands)]

    def begin_body(self, pred: Value) -> tuple[Value, ...]:
        """Close the test, which found ``pred``; what stands for the carried values in the body."""
        opened = self._open[-1]
        Builder(self._table, opened.regions[0]).create("cf.yield", ((pred,),))
        opened.begin()
        return tuple(opened.regions[1].args[: len(opened.operands)])

    def end_loop(
        self, after: Sequence[Value], types: Sequence[Type], symbols: Sequence[Symbol]
    ) -> tuple[Value, ...]:
        """The op's results for the carried values, of which a trip makes ``after``."""
        closed = self._open.pop()
        body = closed.regions[1]
        kept = body.args[len(closed.operands) :]
        Builder(self._table, body).create("cf.yield", ((*after, *kept),))
        builder = Builder(self._table, closed.outer, loc=closed.loc)
        types = (*types, *(value.type for value in closed.captured))
        op = builder.create(
            "cf.while", (closed.all_operands,), result_types=types, regions=closed.regions, symbols=symbols
        )
        return op.results[: len(closed.operands)]
