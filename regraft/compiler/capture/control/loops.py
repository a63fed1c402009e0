"""Loops of converted code.

Three ways to run one:

- Python's, as long as nothing that the trace does not know decides.
- *Nested*: a loop over Python values that a tensor may leave. The trips after such a decision are made in
  the arm that goes on, so that exits nest and nothing is written twice.
- *As a region* (``trips``): where a tensor decides about the next trip, or where one trip stands for many. A
  trip then says in a variable (``goes_on``) whether another may follow. A first trip that is given what no
  other leaves (a state of another size, ``None``) stands before the region.
"""

# torch's objects are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from regraft.compiler.capture.control.bounds import at_least
from regraft.compiler.capture.control.carried import as_carried, placeholder
from regraft.compiler.capture.control.context import shown_name, where
from regraft.compiler.capture.control.exact import check
from regraft.compiler.capture.control.meeting import meet, run_arm
from regraft.compiler.capture.control.number import Number, as_tensor, as_truth, unwrapped
from regraft.compiler.capture.control.sequences import Items, Span
from regraft.compiler.capture.control.sequences import Sequence as Unknown
from regraft.compiler.capture.control.state import (
    CONTAINERS,
    KEPT,
    UNBOUND,
    Lost,
    Saved,
    Variables,
    met,
    shown,
)
from regraft.compiler.capture.control.structure import flatten, mapped
from regraft.compiler.capture.control.trips import COUNT, Loop, Place, Region
from regraft.errors import CaptureError

#: A loop that makes more trips than this becomes a region, where its trips are the same.
LONG = 32


@dataclass
class Run(Loop):
    """A loop that is running, with what it knows of others.

    Fields:
        outer: the loop around it that ``done`` goes on with.
        nested: whether the next trip is made where ``next`` is called.
        site: where a `while` is.
    """

    outer: Run | None = None
    site: Any = None
    nested: bool = False
    depth: int = 0
    rest: Callable[[], None] | None = None

    def next(self) -> bool:
        """The end of a trip after which another may follow. Whether that is still to be made."""
        if not self.nested or self.context.depth == self.depth:
            return True
        assert self.rest is not None, "a nested run knows its rest"
        self.rest()
        return False

    @property
    def read_after(self) -> tuple[str, ...]:
        """The variables that are read after an arm that ends a trip and, where it can, makes the others."""
        if not self.nested:
            return self.variables.names
        return self.last if self.outer is None else self.outer.read_after

    def each(self, iterable: Iterable[Any]) -> None:
        """``for`` over ``iterable``, nested where a tensor leaves it."""
        items = Items(iter(iterable))

        def rest() -> None:
            outer, self.depth = (self.depth, items.made), self.context.depth
            try:
                for item in items:
                    self.trip(self, item)
                    if self.on() is not True:
                        break
                else:
                    self.done()
            finally:
                self.depth, items.made = outer

        self.nested, self.rest = True, rest
        rest()

    def over(self, items: range | Unknown) -> None:
        """``for`` over many indices, or over as much as a call knows, one trip standing for all of them."""
        if isinstance(items, range):
            items = Unknown(len(items), Span(items.start, items.stop, items.step).at)
        test = at_least(items.length, 1) or as_tensor(items.length) > 0
        self._run(
            self._counted(items),
            test,
            lambda: self.trip(self, items.at(0)),
            lambda: self._counted(items.rest, goes_on=self.on()),
        )

    def _counted(self, items: Unknown, goes_on: Any = True) -> Region:
        """The loop over ``items`` as a region that counts its trips."""
        count: list[Any] = [0]
        trip, variables = self.trip, self.variables

        def one(run: Loop) -> None:
            trip(run, items.at(count[0]))
            count[0] = count[0] + 1

        def put(*values: Any) -> None:
            variables.put(*values[:-1])
            if values[-1] is not KEPT:
                count[0] = values[-1]

        gets = (*variables.gets, lambda: count[0])
        loop = replace(self, trip=one, variables=Variables((*variables.names, COUNT), gets, put))
        trips, length = items.count, items.length
        if isinstance(trips, Number):
            return Region(loop, lambda: count[0] < length, goes_on=goes_on)
        starts = statically_known_true(trips >= 1)
        return Region(loop, lambda: count[0] < length, starts=starts, goes_on=goes_on, trips=trips)

    def _run(self, region: Region, test: Any, first: Callable[[], None], later: Callable[[], Region]) -> None:
        """``region``; where that helps, the ``first`` trip, if ``test`` holds, before ``later`` ones."""
        region.made = test
        unlike = region.unlike()
        if not unlike or not self._helps(unlike, first, later):
            return region.run()
        left: dict[str, Any] = {}

        def trips() -> None:
            first()
            if self.on() is not False:
                later().run()
            left.update({name: self.variables.value(name) for name in self.last})

        def none() -> None:
            self.done()
            self._check_types(left)

        if test is True:
            return trips()
        meet(self.context, test, trips, none, self.variables, self.last)

    def _check_types(self, left: dict[str, Any]) -> None:
        """After no trip: a call fails in which a variable has another type than trips have ``left`` it."""
        values = [self.variables.value(name) for name in self.variables.names]
        for i, name in enumerate(self.variables.names):
            if name in left and not _can_meet(left[name], values[i]):
                file, line = where()
                types = f"{shown(values[i])} before it and {shown(left[name])} after a trip"
                message = f"the loop at {file}:{line} makes no trip: {shown_name(name)} is {types}"
                check(as_truth(False), message)
                values[i] = mapped(placeholder, left[name])
        self.variables.write(values)

    def _helps(
        self, unlike: frozenset[Place], first: Callable[[], None], later: Callable[[], Region]
    ) -> bool:
        """Whether trips after the ``first`` leave one of the parts that are ``unlike`` as they find it."""
        context, saved, found = self.context, Saved.of(self.variables), list[bool]()
        given, folded = len(context.given), len(context.folded)

        def trips() -> None:
            first()
            if self.on() is not False:
                found.append(not unlike <= later().unlike())

        try:
            with context.tracer.thrown_away():
                run_arm(context, trips, self.variables, saved)
        except (CaptureError, NameError):  # the region says what is wrong
            saved.restore()
            context.renew()
            return False
        finally:
            del context.given[given:], context.folded[folded:]
        return found == [True]

    def repeat(self, test: Callable[[], Any] | None) -> None:
        """``while test()``; without end where there is no test."""
        while True:
            holds = True if test is None else test()
            if self.context.tracer.undecided(unwrapped(holds)):
                return self._while(test, holds)
            if not holds:
                return self.done()
            if self.leaves and self.context.traces and self._decides():
                return self._while(test, True)
            self.trip(self)
            if self.on() is not True:
                return None

    def _while(self, test: Callable[[], Any] | None, holds: Any) -> None:
        """The loop as a region; ``holds`` is what the test has said about the first trip."""
        if test is not None and self.site in self.context.folded:
            holds = self._asked_of_numbers(test)
        self._run(
            Region(self, test, starts=holds is True),
            holds,
            lambda: self.trip(self),
            lambda: Region(self, test, goes_on=self.on()),
        )

    def _asked_of_numbers(self, test: Callable[[], Any]) -> Any:
        """``test``, of numbers that torch does not know: of those it does, it takes ``0 < size`` for true."""

        def unknown(leaf: Any) -> Any:
            return Number(as_tensor(leaf)) if isinstance(leaf, torch.SymInt) else as_carried(leaf)

        saved = Saved.of(self.variables)
        self.variables.write([mapped(unknown, value) for value in saved.values])
        try:
            return test()
        finally:
            saved.restore()

    def _decides(self) -> bool:
        """Whether a tensor decides, in the trip that comes next, about the one after it."""
        found: list[Any] = []

        def trip() -> None:
            self.trip(self)
            found.append(unwrapped(self.on()))

        saved = Saved.of(self.variables)
        with self.context.tracer.thrown_away():
            run_arm(self.context, trip, self.variables, saved)
        return self.context.tracer.undecided(found[0])


def _can_meet(value: Any, other: Any) -> bool:
    """Whether a variable may be ``value`` on one path and ``other`` on another; containers may be."""
    if any(each is UNBOUND or isinstance(each, CONTAINERS) for each in (value, other)):
        return True
    (leaves, spec), (others, other_spec) = flatten(value), flatten(other)
    return spec == other_spec and not any(isinstance(met(*p), Lost) for p in zip(leaves, others, strict=True))
