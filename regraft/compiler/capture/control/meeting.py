"""Two arms of a condition, and the variables where they meet."""

# torch's pytrees are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from regraft.compiler.capture.control.choices import note_choices
from regraft.compiler.capture.control.context import (
    Context,
    Grown,
    Grows,
    Learnt,
    MayBeNone,
    OneSided,
    refuse,
    shown_name,
    where,
)
from regraft.compiler.capture.control.convert import original
from regraft.compiler.capture.control.growing import Element, Growing
from regraft.compiler.capture.control.merging import Merging
from regraft.compiler.capture.control.number import (
    SYMBOLIC,
    Number,
    as_tensor,
    as_truth,
    is_carried,
    unwrapped,
)
from regraft.compiler.capture.control.optional import (
    Maybe,
    are_unlike,
    dtype_held,
    in_place_of,
    may_be_none,
)
from regraft.compiler.capture.control.state import (
    CONTAINERS,
    UNBOUND,
    Lost,
    Node,
    Outcome,
    Part,
    Saved,
    Variables,
    forms,
    met,
    shown,
)
from regraft.compiler.capture.control.structure import flatten, unflatten
from regraft.compiler.capture.control.tree import RESULT
from regraft.compiler.capture.control.watch import Watch, holder_of, own_list

_Arm = Callable[[], object]
NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})
#: How often a function may be under way at once; looked at where so many arms are around one another.
_LEVELS, _LOOK = 64, 16


def meet(
    context: Context,
    test: Any,
    then: _Arm,
    otherwise: _Arm,
    variables: Variables,
    live: Sequence[str],
    optional: Sequence[str] = (),
    goes_on: str | None = None,
    unread: Mapping[str, Sequence[str]] = NOTHING,
) -> None:
    """Run both arms, of which a call takes one by ``test``, and give ``variables`` the values that go on.

    They are what the arms may change; only the ``live`` ones are read later, the ``optional`` ones by code
    that knows ``Maybe``. ``goes_on`` is the one that says whether a loop, of which a trip ends here, goes on.
    ``unread`` has for flags among them the variables that nobody reads where the flag is true.
    """
    _check_depth(context)
    _let_grow(context, then, otherwise, variables)
    every, variables, place = variables, variables.only(live), where()
    saved = Saved.of(variables)
    before = Saved.of(every, live)
    outcomes: list[Outcome] = []
    joined: list[_Joined] = []
    lifted = _lifted(context, otherwise, variables, before, (*optional, *chain(*unread.values())))

    def lift(index: int, outcome: Outcome, other: Any, leaves: bool | None) -> None:
        is_missing = outcome.values[index] is UNBOUND
        if not is_missing or variables.names[index] in _unread(variables, unread, outcome):
            outcome.lift(index, other, leaves)

    def first() -> Sequence[Tensor]:
        outcomes.append(run_arm(context, then, variables, before, live=saved))
        for index, other in lifted.items():
            lift(index, outcomes[0], other.values[index], _leaves(variables, goes_on, outcomes[0], other))
        return outcomes[0].tensors()

    def second() -> Sequence[Tensor]:
        outcomes.append(run_arm(context, otherwise, variables, before, live=saved))
        leaves = _leaves(variables, goes_on, outcomes[1], outcomes[0])
        for index in lifted:
            lift(index, outcomes[1], outcomes[0].rebuilt()[index], leaves)
        missing = [_unread(variables, unread, outcome) for outcome in outcomes]
        learnt = _learnt(
            place, variables, optional, *outcomes, may_leave=leaves is not None, missing=missing[0]
        )
        if learnt is not None and learnt.place not in context.optional:
            raise learnt
        _check_held(context, variables, outcomes, [i for i, o in lifted.items() if isinstance(o, Maybe)])
        joined.extend(_join(n, i, *outcomes, may_miss=n in missing[1]) for i, n in enumerate(variables.names))
        return [tensor for each in joined for tensor in each.yielded]

    results = iter(context.tracer.cond(unwrapped(test), first, second))
    values = [
        each.finished(context, name, results) for name, each in zip(variables.names, joined, strict=True)
    ]
    _hand_on(context, values, outcomes)
    note_choices(values, [outcome.values for outcome in outcomes], test)
    merging = Merging()
    kept = [
        _in_place(context, merging, name, value, saved.values[i], [o.nodes[i] for o in outcomes])
        for i, (name, value) in enumerate(zip(variables.names, values, strict=True))
    ]
    variables.write(kept)
    context.renew()
    merging.note(context)


def _hand_on(context: Context, values: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
    """A tensor that is in a list on a path, in eager, still is where the paths have met."""
    for i, value in enumerate(values):
        results = [] if value is UNBOUND else flatten(value)[0]
        for leaves in (outcome.leaves[i] for outcome in outcomes):
            if len(leaves) != len(results):
                continue
            for given, result in zip(leaves, results, strict=True):
                if isinstance(given, Tensor):
                    context.hand_on(given, result)


def _lifted(
    context: Context, otherwise: _Arm, variables: Variables, before: Saved, optional: Sequence[str]
) -> dict[int, Outcome]:
    """The variables of which the first arm must know what ``otherwise`` leaves, each with that.

    Of numbers it need not be run for that: in a loop of which each trip may be the last it has the trips
    that follow, each of which would run all of its own once more.
    """
    place, known = where(), (*optional, RESULT)
    found: dict[int, Outcome] = {}
    unknown: list[int] = []
    for i, name in enumerate(variables.names):
        if name not in known or (*place, name) not in context.optional:
            continue
        dtype = context.number_held((*place, name))
        if dtype is None:
            unknown.append(i)
        else:
            like = Maybe(as_truth(True), torch.zeros((), dtype=dtype), is_number=True)
            found[i] = Outcome((like,) * len(variables.names))
    if unknown:
        with context.tracer.thrown_away():
            outcome = run_arm(context, otherwise, variables, before)
        found |= dict.fromkeys(unknown, outcome)
    return found


def _check_held(
    context: Context, variables: Variables, outcomes: Sequence[Outcome], lifted: Iterable[int]
) -> None:
    """See that those of the ``lifted`` variables may be None on both paths that held numbers before.

    Raises:
        MayBeNone: the same line has met another value than the number that was known of it.
    """
    for index in lifted:
        place = (*where(), variables.names[index])
        if context.number_held(place) is None:
            continue
        first, second = (outcome.rebuilt()[index] for outcome in outcomes)
        if not (isinstance(first, Maybe) and isinstance(second, Maybe)) or not first.fits(second):
            raise MayBeNone(place)


def _unread(variables: Variables, unread: Mapping[str, Sequence[str]], outcome: Outcome) -> frozenset[str]:
    """The variables that nobody reads after the arm that left ``outcome``, since it has set their flag.

    What is returned is among them: whoever takes a path without it returns later on, and sets it then.
    """
    values = dict(zip(variables.names, outcome.values, strict=True))
    return frozenset([RESULT, *chain(*(names for flag, names in unread.items() if values.get(flag) is True))])


def _leaves(variables: Variables, goes_on: str | None, path: Outcome, other: Outcome) -> bool | None:
    """Whether ``path`` leaves the loop that ``goes_on`` is about; None unless one of the two does."""
    if goes_on is None or goes_on not in variables.names:
        return None
    index = variables.names.index(goes_on)
    one, two = (each.values[index] is False for each in (path, other))
    return None if one == two else one


def _learnt(
    place: tuple[str, int],
    variables: Variables,
    optional: Sequence[str],
    one: Outcome,
    other: Outcome,
    *,
    may_leave: bool,
    missing: frozenset[str],
) -> Learnt | None:
    """What the first arm, at ``place``, must know.

    An ``optional`` one is None on one path alone, or, where one of the paths leaves a loop, of another type.
    One that the first arm does not set is among the ``missing``, which nobody reads after it.
    """
    for name, first, second in zip(variables.names, one.rebuilt(), other.rebuilt(), strict=True):
        if name in optional and (may_be_none(first, second) or (may_leave and are_unlike(first, second))):
            values = [value for value in (first, second) if value is not None]
            return MayBeNone((*place, name), dtype_held(values[0]))
        if name in missing and first is UNBOUND and second is not UNBOUND:
            return OneSided((*place, name))
    return None


def _check_depth(context: Context) -> None:
    """Refuse a function that calls itself for as long as a tensor says."""
    if not context.depth or context.depth % _LOOK:
        return
    codes = (frame.f_code for frame in context.frames())
    levels = Counter(code for code in codes if original(code) is not code)
    if max(levels.values(), default=0) > _LEVELS:
        refuse(
            f"a function calls itself where a tensor decides, more than {_LEVELS} times",
            "write the recursion as a loop, or bound it by a Python number",
        )


def _let_grow(context: Context, then: _Arm, otherwise: _Arm, variables: Variables) -> None:
    """Turn the lists that are known to hold more on one path than on the other into ``Growing``.

    Raises:
        Grown: a trial of the same lists is under way, which need not go on.
    """
    place = where()
    names = [name for name in variables.names if (*place, name) in context.grows]
    names = [name for name in names if isinstance(variables.value(name), list)]
    if not names:
        return
    grown = variables.only(names)
    values: list[Any] = []
    added = _tried(context, then, otherwise, variables, grown)
    for name, start, new in zip(names, grown.read(), added, strict=True):
        if new is None:  # the line is where it grows at other times: nothing follows the last trip of a loop
            values.append(start)
            continue
        found = Growing.starting(start, new)
        holder = holder_of(context, name, start)
        if found is None or holder is not None:
            _refuse_growth(name, holder)
        values.append(found)
    lists = grown.read()
    context.check_trials(lists, values)
    for start, value in zip(lists, values, strict=True):
        if isinstance(value, Growing):
            context.holds(value, start)
    grown.write(values)
    if any(grown.value(name) is not value for name, value in zip(names, values, strict=True)):
        _refuse_growth(names[0])


def _tried(
    context: Context, then: _Arm, otherwise: _Arm, variables: Variables, grown: Variables
) -> Sequence[Sequence[Element | None] | None]:
    """The types of what the arms add to each list that is ``grown``, None where they add nothing."""
    lists, saved = grown.read(), Saved.of(variables)
    try:
        with context.trial(lists), context.tracer.thrown_away():
            outcomes = [run_arm(context, arm, grown, saved) for arm in (then, otherwise)]
    except Grown as found:
        if found.lists is not lists:
            raise
        saved.restore()
        context.renew()
        return [[value.element_type] for value in found.values]
    paths = zip(*(outcome.rebuilt() for outcome in outcomes), strict=True)
    return [
        next((types for types in (_added(path, start) for path in each) if types), None)
        for start, each in zip(lists, paths, strict=True)
    ]


def _added(path: Any, start: Sequence[Any]) -> list[Element | None]:
    """The types of what a path has added to the list of ``start``."""
    return [path.element_type] if isinstance(path, Growing) else list(map(Element.like, path[len(start) :]))


def _refuse_growth(name: str, holder: str | None = None) -> NoReturn:
    """Refuse a list that an arm adds to; ``holder`` is what else holds it, and would not see that."""
    what = f"{shown_name(name)} holds more on one path than on the other where a tensor decides"
    if holder is not None:
        refuse(f"{what}, and {holder} holds the list too", own_list(name))
    refuse(
        what,
        "add to it on both paths, or append tensors of one shape to a list that the function makes itself",
    )


def run_arm(
    context: Context,
    arm: _Arm,
    variables: Variables,
    saved: Saved,
    watch: Watch | None = None,
    live: Saved | None = None,
) -> Outcome:
    """The variables after ``arm``; afterwards everything is as ``saved``, when ``watch`` was set.

    ``live`` is what is read later whichever way the call goes; a set in it must not change.
    """
    watch = watch or Watch.of(context)
    context.note_changes()
    before = dict(context.lost)
    with context.arm():
        arm()
    context.note_changes()
    container = None if live is None else live.changed()
    if container is not None:
        refuse(
            f"{shown(container)} changes where a tensor decides",
            "make a new one where nothing decides, or keep what it says in numbers, lists or dicts",
        )
    lost = {name: why for name, why in context.lost.items() if why is not before.get(name)}
    outcome = Outcome.of(variables, lost)
    saved.restore()
    context.renew()
    watch.check()
    return outcome


@dataclass(frozen=True)
class _Joined:
    """A variable where two paths meet: what the second arm yields, and what becomes of it."""

    yielded: list[Tensor]
    lost: Lost | None = None
    parts: Sequence[Part] = ()
    spec: Any = None

    def finished(self, context: Context, name: str, results: Iterator[Tensor]) -> Any:
        """The variable's value, its tensors being the next of ``results``."""
        if self.lost is not None:
            for _ in self.yielded:
                next(results)
            context.lose(name, self.lost)
            return UNBOUND
        if self.spec is None:
            return UNBOUND
        leaves = [part.merge([next(results) for _ in part.yielded]) for part in self.parts]
        return unflatten(leaves, self.spec)


def _join(name: str, i: int, one: Outcome, other: Outcome, *, may_miss: bool) -> _Joined:
    """``name``, the variable ``i``, where two paths meet.

    Nobody reads it after the second one where it ``may_miss``.
    """
    places = [in_place_of(form) for leaf in one.leaves[i] for form in forms(leaf)]
    if one.specs[i] is None and other.specs[i] is None:
        return _Joined([])
    if other.specs[i] is None and may_miss:
        return _Joined(places, None, [_alone(leaf) for leaf in one.leaves[i]], one.specs[i])
    if one.specs[i] is None or other.specs[i] is None:
        unset = Lost("is set in one branch only", "give it a value before the `if`")
        path = one if one.specs[i] is None else other
        return _Joined(places, path.lost.get(name, unset))
    if one.specs[i] != other.specs[i]:
        values = [outcome.values[i] for outcome in (one, other)]
        return _Joined(places, Lost(_structures(*values), "give it the same structure on both paths"))
    parts = [met(a, b) for a, b in zip(one.leaves[i], other.leaves[i], strict=True)]
    lost = next((part for part in parts if isinstance(part, Lost)), None)
    if lost is not None:
        return _Joined(places, lost)
    found = [part for part in parts if isinstance(part, Part)]
    return _Joined([tensor for part in found for tensor in part.yielded], None, found, other.specs[i])


def _alone(leaf: Any) -> Part:
    """A part that only the first path has."""
    if not is_carried(leaf):
        return Part([], lambda _: leaf)
    if isinstance(leaf, SYMBOLIC) and not free_unbacked_symbols(leaf):
        return Part([in_place_of(form) for form in forms(leaf)], lambda _: leaf)
    return Part.only(
        leaf, 0, in_place_of(as_tensor(leaf)), (lambda t: t) if isinstance(leaf, Tensor) else Number
    )


def _structures(one: Any, other: Any) -> str:
    sizes = [
        f"{shown(v)} of {len(v)}" if isinstance(v, (list, tuple, dict)) else shown(v) for v in (one, other)
    ]
    return f"is {sizes[0]} on one path and {sizes[1]} on the other"


def _in_place(
    context: Context, merging: Merging, name: str, value: Any, before: Any, after: Sequence[Node]
) -> Any:
    """``value``, in which the containers that are the same on both paths are these themselves."""
    others = [each.value for each in after if each.value is not before]
    grew = value is UNBOUND and all(isinstance(each, Growing) for each in others)
    held = isinstance(before, CONTAINERS) and (not others or grew)
    if held and (value is UNBOUND or type(value) is not type(before)):
        place = (*where(), name)
        if not isinstance(before, list) or place in context.grows:
            _refuse_growth(name)
        raise Grows(place)
    return value if value is UNBOUND else merging.merged(value, *after)
