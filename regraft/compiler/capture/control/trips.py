"""A loop as a region: one trip, which is traced, stands for all.

A trip is tried first, and thrown away, until it is known what every trip keeps of what it is given.
"""

# torch's pytrees are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# A tensor's count of writes has no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from regraft.compiler.capture.control.carried import (
    as_carried,
    carried_parts,
    loaded,
    pairs,
    placeholder,
    settled,
)
from regraft.compiler.capture.control.collecting import Collecting
from regraft.compiler.capture.control.context import (
    Context,
    Given,
    Learnt,
    Unsettled,
    Values,
    refuse,
    shown_name,
    where,
)
from regraft.compiler.capture.control.growing import Element, Growing, has_grown
from regraft.compiler.capture.control.markers import differ
from regraft.compiler.capture.control.meeting import meet, run_arm
from regraft.compiler.capture.control.merging import Merging
from regraft.compiler.capture.control.number import (
    Number,
    Widened,
    as_tensor,
    as_truth,
    dtype_of,
    is_carried,
    kind_of,
)
from regraft.compiler.capture.control.state import (
    CONTAINERS,
    UNBOUND,
    Lost,
    Node,
    Outcome,
    Saved,
    Variables,
    holding,
    shown,
    still_holds,
)
from regraft.compiler.capture.control.structure import flatten, mapped, unflatten
from regraft.compiler.capture.control.tree import RESULT
from regraft.compiler.capture.control.watch import Watch, holder_of, own_list

#: The variable that counts the trips of a loop.
COUNT = "_rg_count"
#: A part of what a loop carries: a variable and, of a size, the numbers of a part of it and of an axis.
Place = tuple[str, int | None, int | None]


@dataclass
class Loop:
    """A loop that is running.

    Fields:
        context: of the capture.
        trip: makes one, given the loop (and what a `for` goes over); it sets the variable ``goes_on``.
        done: what follows once no trip is left.
        variables: what a trip may change and somebody reads later, ``goes_on`` among them.
        last: those of them that are read after the loop.
        leaves: whether a trip may leave the loop.
        appended: the lists with which a trip does nothing but append to them.
    """

    context: Context
    trip: Callable[..., None]
    done: Callable[[], None]
    variables: Variables
    goes_on: str
    last: tuple[str, ...]
    leaves: bool
    appended: tuple[str, ...] = ()

    def on(self) -> Any:
        """What the last trip said about another one."""
        return self.variables.value(self.goes_on)


@dataclass
class Region:
    """A loop as a region.

    Fields:
        test: whether another trip follows; None where only the trip itself says so.
        starts: whether the first trip is made for certain.
        goes_on: what a trip before the region said about another one.
        made: whether a trip is made.
        trips: how many there are, where that is a number or a size; the variable ``COUNT`` then counts them.
        start: what the loop begins with, by variable; its parts that may change are tensors and ``Number``.
    """

    loop: Loop
    test: Callable[[], Any] | None
    starts: bool = False
    goes_on: Any = True
    trips: Any = None
    made: Any = True
    start: list[Any] = field(default_factory=list[Any])

    def __post_init__(self) -> None:
        names = [name for name in self.loop.variables.names if name != self.loop.goes_on]
        self.variables = self.loop.variables.only(names)
        self.saved = Saved.of(self.variables)
        #: What the variables are made of before the loop, and after the trip that was made last.
        self.before = [Node.of(value) for value in self.saved.values]
        self.after = self.before
        self.watch = Watch.of(self.loop.context)
        self.lists = Collecting(self.loop.context, self.trips)
        #: What the loop begins with, and a trip ends with.
        self.given: tuple[list[Tensor], list[Tensor]] = [], []
        #: What the present trip began with, and the count of writes to each.
        self.loaded: list[tuple[Tensor, int]] = []
        #: The containers that the present trip began with, by variable, and what each held.
        self.contents: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        #: The variables to which a trip gives another container than they had.
        self.rebound: set[str] = set()
        self.count: Any = None
        #: Whether a variable that has another type or size before a trip than after it is an exception.
        self.is_asked = False
        self.is_settled = False
        #: Whether the trip that is recorded is the first that may show that nothing else changes.
        self.is_to_show = False
        #: The sizes that trips change: the numbers of a variable, of a part of it, and of an axis.
        self.resized: list[tuple[int, int, int]] = []

    def run(self) -> None:
        loop, context = self.loop, self.loop.context
        if not self.is_settled:
            self._settle()
        flag = [as_truth(self.goes_on)] if loop.leaves else []
        carried = [as_tensor(leaf) for value in self.start for leaf in carried_parts(value)]
        rows = self.lists.tensors
        begin, changing = [*flag, *carried, *rows], self._changing()
        self.given = begin, []
        results = context.tracer.loop(self._tested, self._trip, begin, context.limit, changing)
        for tensors in self.given:
            for given, result in zip(tensors, results, strict=False):  # a trip that is not made gives none
                context.hand_on(given, result)
        self._load(results, left=True)
        self._note_widened()
        self._collect(results[len(results) - len(rows) :])
        self._note_appended(results)
        if not loop.leaves:
            loop.done()
        elif self.test is not None:
            meet(context, results[0], loop.done, lambda: None, loop.variables, loop.last)

    def _tested(self, now: Values) -> Tensor:
        self._load(now)
        test, context = self.test, self.loop.context
        if test is None:
            return now[0]
        watch = Watch.of(context)
        if not self.loop.leaves:
            found = as_truth(test())
        else:
            with context.arm():
                (found,) = context.tracer.cond(now[0], lambda: [as_truth(test())], lambda: [as_truth(False)])
        watch.check()
        return found

    def _trip(self, now: Values) -> list[Tensor]:
        self._load(now)
        on: list[Tensor] = []
        outcome = self._run_trip(on)
        self._check_settled(outcome)
        found = on if self.loop.leaves else []
        rows = iter(now[len(now) - len(self.lists.tensors) :])
        collected: list[Tensor] = []
        for name, start, value in zip(self.variables.names, self.start, outcome.rebuilt(), strict=True):
            if name in self.lists.columns:
                value, new = value[: len(start)], value[len(start) :]
                collected += [self.lists.with_row(next(rows), self.count, each) for each in new]
            if start is not UNBOUND:
                found += self._yielded(start, value)
        self.given[1][:] = *found, *collected
        self._check_written(outcome)
        return [*found, *collected]

    def _run_trip(self, on: list[Tensor]) -> Outcome:
        def trip() -> None:
            self.loop.trip(self.loop)
            on.append(as_truth(self.loop.on()))
            self._check_changed()

        now = Saved.of(self.variables)
        return run_arm(self.loop.context, trip, self.variables, self.saved, self.watch, now)

    def _load(self, tensors: Sequence[Tensor], *, left: bool = False) -> None:
        """Give the variables the values that ``tensors`` carry, in a trip or after the loop was ``left``."""
        self.loaded = [(tensor, tensor._version) for tensor in tensors]
        self.loop.context.note_changes()
        rest = iter(tensors[1:] if self.loop.leaves else tensors)
        values: list[Any] = []
        merging = Merging()
        for start, *sides in zip(self.start, self.before, self.after, strict=True):
            if start is UNBOUND:
                values.append(start)
                continue
            value = mapped(functools.partial(loaded, tensors=rest, left=left), start)
            values.append(merging.merged(value, *sides))
        self.variables.write(values)
        self.loop.context.renew()
        merging.note(self.loop.context, is_loop=True)
        named = zip(self.variables.names, values, strict=True)
        self.contents = {
            name: (value, holding(value)) for name, value in named if isinstance(value, CONTAINERS)
        }
        self._check_growing(values)
        if self.trips is not None:
            self.count = values[self.variables.names.index(COUNT)]

    def _note_widened(self) -> None:
        """A number that trips make a wider one is what it was where there is no trip."""
        if self.made is True:
            return
        found, (file, line) = list(self.variables.read()), where()
        for i, (before, start) in enumerate(zip(self.saved.values, self.start, strict=True)):
            if not isinstance(start, Number) or not is_carried(before) or dtype_of(before) == dtype_of(start):
                continue
            name, types = shown_name(self.variables.names[i]), f"{shown(before)} before it and {shown(start)}"
            message = f"the loop at {file}:{line} makes no trip: {name} is {types} after a trip"
            widened = Widened(as_truth(self.made), kind_of(dtype_of(before)), message)
            found[i] = Number(found[i].value, widened=widened)
        self.variables.write(found)

    def _collect(self, rows: Sequence[Tensor]) -> None:
        """Put what was collected into the lists."""
        rest, found = iter(rows), list(self.variables.read())
        for name, columns in self.lists.columns.items():
            index = self.variables.names.index(name)
            found[index] = self.lists.filled(self.saved.values[index], [next(rest) for _ in columns])
        self.variables.write(found)
        self._check_growing(found)

    def unlike(self) -> frozenset[Place]:
        """What trips do not leave as the loop begins with it, so that a first trip may have to stand apart.

        Nothing where the loop is settled.
        """
        context = self.loop.context
        given, folded = len(context.given), len(context.folded)
        self.is_asked = True
        try:
            self._settle()
        except (NameError, _Unlike) as found:
            self.saved.restore()
            context.renew()
            del context.given[given:], context.folded[folded:]
            return found.places if isinstance(found, _Unlike) else frozenset({("", None, None)})
        finally:
            self.is_asked = False
        self.is_settled = True
        return frozenset()

    def _settle(self) -> None:
        """Find, by trips that are thrown away, types that trips keep, and the sizes that they change.

        The last of them would change nothing: where no trace knows better, the recorded one is to show that.
        """
        self.start = [mapped(as_carried, value) for value in self.saved.values]
        self.lists.columns.clear()
        self.resized.clear()
        self.rebound.clear()
        self.after = self.before
        changes_of_type = 0
        is_known = self._place in self.loop.context.unsettled
        while changes_of_type < _SETTLING:
            after = self._trial()
            found = list(map(self._adapted, self.variables.names, self.start, after))
            kept = [a is b for a, b in zip(found, self.start, strict=True)]
            self.resized = [each for each in self.resized if kept[each[0]]]
            self.start = found
            resized = [each for i in range(len(found)) for each in self._resized(i, after[i])]
            self.resized += resized
            if self.is_asked and (places := self._unlike_sizes(resized)):
                raise _Unlike(places)
            changes = bool(resized) or not all(kept)
            self.is_to_show = changes and not is_known
            if not changes or self.is_to_show:
                return
            changes_of_type += not all(kept)
        refuse("what a loop carries has another type after each trip", "start with tensors of the final type")

    @property
    def _place(self) -> tuple[str, int, str]:
        return (*where(), self.loop.goes_on)

    def _trial(self) -> list[Any]:
        """The variables after a trip that is thrown away."""
        context = self.loop.context
        given, folded = len(context.given), len(context.folded)
        while True:
            try:
                with context.tracer.thrown_away():
                    # Nothing traced before is written to: the trip has tensors of its own.
                    begin = [as_tensor(leaf) for leaf in self._flat()]
                    self._load(context.tracer.stand_ins(begin, self._changing()))
                    outcome = self._run_trip([])
                break
            except Learnt as learnt:  # nothing was recorded: the next trip knows it
                context.learn(learnt)
                self.saved.restore()
                del context.given[given:], context.folded[folded:]
                context.renew()
        del context.given[given:]
        self._note_rebound(outcome)
        return outcome.rebuilt()

    def _check_settled(self, outcome: Outcome) -> None:
        """The trip that is recorded leaves what it is given as it was settled, or the next trace is told."""
        if not self.is_to_show:
            return
        rows = zip(self.variables.names, self.start, outcome.rebuilt(), strict=True)
        with disable_proxy_modes_tracing():  # what is asked is not recorded
            is_settled = self._rebound(outcome) <= self.rebound and all(
                self._is_settled(number, *row) for number, row in enumerate(rows)
            )
        if not is_settled:
            raise Unsettled(self._place)

    def _is_settled(self, number: int, name: str, start: Any, after: Any) -> bool:
        if name in self.lists.columns:
            after, new = after[: len(start)], after[len(start) :]
            if not self.lists.fits(name, new):
                return False
        return self._adapted(name, start, after) is start and not self._resized(number, after)

    def _note_rebound(self, outcome: Outcome) -> None:
        """A container that a trip replaces is still what it was for whoever else holds it."""
        self.rebound |= self._rebound(outcome)
        self.after = outcome.nodes

    def _rebound(self, outcome: Outcome) -> set[str]:
        """The variables to which a trip gives another container than it began with: one that grows is new."""
        rows = zip(self.variables.names, self.saved.values, outcome.values, strict=True)
        changed = [(name, new) for name, old, new in rows if isinstance(old, CONTAINERS) and new is not old]
        return {name for name, new in changed if new is not self.contents.get(name, (None,))[0]}

    def _resized(self, variable: int, after: Any) -> list[tuple[int, int, int]]:
        """The sizes of a variable, of one type before a trip and ``after`` it, now seen to differ."""
        start = self.start[variable]
        if start is UNBOUND:
            return []
        if isinstance(start, Growing) and not isinstance(after, Growing):  # a list that has grown
            parts = range(len(carried_parts(start)))
            return [(variable, i, 0) for i in parts if (variable, i, 0) not in self.resized]
        if self.variables.names[variable] in self.lists.columns:
            after = after[: len(start)]
        return [
            (variable, part, axis)
            for part, pair in enumerate(pairs(start, after))
            if all(isinstance(each, Tensor) for each in pair)
            for axis, sizes in enumerate(zip(*(each.shape for each in pair), strict=True))
            if (variable, part, axis) not in self.resized and differ(*sizes)
        ]

    def _unlike_sizes(self, resized: Sequence[tuple[int, int, int]]) -> frozenset[Place]:
        """Those of the sizes that trips change that are none of lists that grow."""
        names = self.variables.names
        return frozenset(
            (names[variable], part, axis)
            for variable, part, axis in resized
            if not isinstance(self.start[variable], Growing)
        )

    def _changing(self) -> list[int]:
        """The sizes that trips change, as ``markers`` has them."""
        counts = [len(carried_parts(value)) for value in self.start]
        first = 1 if self.loop.leaves else 0
        return [
            each
            for variable, part, axis in self.resized
            for each in (first + sum(counts[:variable]) + part, axis)
        ]

    def _flat(self) -> list[Any]:
        flag = [as_truth(True)] if self.loop.leaves else []
        return [*flag, *(leaf for value in self.start for leaf in carried_parts(value))]

    def _adapted(self, name: str, start: Any, after: Any) -> Any:
        """What ``name`` starts with, given its value after a trip; ``start`` itself where that will do."""
        if start is UNBOUND and after is UNBOUND:
            return start
        if start is UNBOUND and (self.starts or name == RESULT):
            # The first trip sets it before anybody reads it.
            return mapped(placeholder, after)
        if start is UNBOUND or after is UNBOUND:
            return self._lose(name, Lost("is set only inside a loop", "give it a value before the loop"))
        if isinstance(start, list) and has_grown(start, after):
            starts = isinstance(after, list) and self._starts_to_collect(name, after[len(start) :])
            if name not in self.lists.columns and not starts:
                grown = self._starts_to_grow(name, start, after)
                return self._no_growth(name) if grown is None else grown
            after = after[: len(start)]
        leaves, spec = flatten(start)
        others, other_spec = flatten(after)
        if spec != other_spec:
            reason = f"is {shown(start)} before a trip and of another structure after it"
            return self._lose(name, Lost(reason, "keep its structure, such as the length of a list"))
        found = [settled(a, b) for a, b in zip(leaves, others, strict=True)]
        lost = next((each for each in found if isinstance(each, Lost)), None)
        if lost is not None:
            return self._lose(name, lost)
        same_parts = all(a is b for a, b in zip(found, leaves, strict=True))
        return start if same_parts else unflatten(found, spec)

    def _starts_to_collect(self, name: str, new: Sequence[Any]) -> bool:
        """Whether ``name`` is a list to which each trip appends tensors like ``new``, and nothing else."""
        container = self.saved.values[self.variables.names.index(name)]
        if self.trips is None or self.loop.leaves or name not in self.loop.appended:
            return False
        if holder_of(self.loop.context, name, container) is not None:
            return False
        return self.lists.starts(name, container, new)

    def _starts_to_grow(self, name: str, start: Sequence[Any], after: Any) -> Growing | None:
        """What ``name``, a list, starts with, of which a trip makes ``after``; None where that cannot be."""
        container = self.saved.values[self.variables.names.index(name)]
        new = [after.element_type] if isinstance(after, Growing) else map(Element.like, after[len(start) :])
        if holder_of(self.loop.context, name, container) is not None:
            return None
        found = Growing.starting(start, list(new))
        if found is not None:
            self.loop.context.holds(found, container)
        return found

    def _no_growth(self, name: str) -> Any:
        """``_lose`` for a list that cannot grow; by name what else holds it, and would not see that."""
        container = self.saved.values[self.variables.names.index(name)]
        holder = holder_of(self.loop.context, name, container)
        if holder is None or self.is_asked:
            return self._lose(name, Lost("is a list that grows", "append tensors of one shape to it"))
        refuse(
            f"{shown_name(name)} is a list that grows in a loop, and {holder} holds it too", own_list(name)
        )

    def _check_written(self, outcome: Outcome) -> None:
        """A list holds the tensors it was given: no trip may write to what an earlier one has appended."""
        lists = [self.lists, *(value for value in outcome.rebuilt() if isinstance(value, Growing))]
        held = self.loop.context.is_held
        for (tensor, version), *given in zip(self.loaded, *self.given, strict=True):
            if tensor._version == version:
                continue
            if not any(map(held, given)) and not any(each.may_hold(tensor) for each in lists):
                continue
            refuse(
                "a loop writes to a tensor that it may append to a list, which would hold the new values",
                "append a copy, such as x.clone(), or make a new tensor in place of writing to it",
            )

    def _check_changed(self) -> None:
        """A list that a trip changes, one that stands for all, must not be in a list that holds it as it was.

        Nor may somebody else hold it where the trip gives the variable another one.
        """
        context = self.loop.context
        before = dict(zip(self.variables.names, self.saved.values, strict=True))
        for name, (container, parts) in self.contents.items():
            if still_holds(container, parts):
                continue
            holder = holder_of(context, name, before[name]) if name in self.rebound else None
            if holder is not None:
                refuse(f"{shown_name(name)} changes in a loop, where {holder} holds it too", own_list(name))
            if any(map(context.is_given, (before[name], self.variables.value(name)))):
                refuse(f"{shown_name(name)} changes in a loop, where another list may hold it", Given.hint)

    def _note_appended(self, results: Sequence[Tensor]) -> None:
        """A tensor that the loop leaves may be one that is in a list too."""
        for value in self.variables.read():
            for tensor in results if isinstance(value, Growing) else ():
                if value.may_hold(tensor):
                    self.loop.context.copied(value.rows, tensor, is_kept=True)

    def _check_growing(self, values: Sequence[Any]) -> None:
        """A list that grows is another object from here on: no name but the variable's may be its."""
        for name, value in zip(self.variables.names, values, strict=True):
            if isinstance(value, Growing) and self.variables.value(name) is not value:
                refuse(
                    f"{shown_name(name)} is a list that grows, in a loop that a tensor ends, and not the "
                    "function's own",
                    "append to a list that the function makes itself",
                )

    def _lose(self, name: str, lost: Lost) -> Any:
        if self.is_asked and self._is_set(name):
            raise _Unlike(frozenset({(name, None, None)}))
        before = self.saved.values[self.variables.names.index(name)]
        if isinstance(before, CONTAINERS):
            refuse(
                f"{shown_name(name)} {lost.reason}, in a loop that a tensor ends",
                "write to a tensor that is made before the loop instead",
            )
        self.loop.context.lose(name, lost)
        return UNBOUND

    def _is_set(self, name: str) -> bool:
        """Whether ``name`` has a value before the loop."""
        return self.saved.values[self.variables.names.index(name)] is not UNBOUND

    def _yielded(self, start: Any, after: Any) -> list[Tensor]:
        found: list[Tensor] = []
        for held, now in pairs(start, after):
            tensor, dtype = as_tensor(now), as_tensor(held).dtype
            found.append(tensor if tensor.dtype == dtype else tensor.to(dtype))
        return found


class _Unlike(Exception):
    """Variables have another type, or other sizes, before the first trip than after it."""

    def __init__(self, places: frozenset[Place]) -> None:
        super().__init__("the first trip is unlike the others")
        self.places = places


_SETTLING = 4
