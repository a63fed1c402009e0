"""What the objects of a capture hold, looked at again only where it may have changed.

Each arm of a condition is asked twice about all that its functions can reach: thousands of objects, of which
it changes few. Python's collector lists what objects refer to at a small part of the price of taking them
apart: where it lists the same objects as before, they hold what they held.
"""

# What is walked has any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import gc
import operator
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Set
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType, FunctionType
from typing import Any

from regraft.compiler.capture.control.reach import (
    LIMIT,
    Globals,
    is_buffer,
    is_class,
    is_opaque,
    parts,
    same,
)

#: Python's containers, each with the method that ``parts`` goes over it by.
_CONTAINERS: tuple[tuple[type, str], ...] = (
    (dict, "items"),
    *((each, "__iter__") for each in (list, tuple, deque, set, frozenset)),
)


@dataclass(frozen=True, eq=False, slots=True)
class Holder:
    """An object as it was when it was looked at.

    Fields:
        value: itself.
        parts: what it held, as ``reach.parts`` has it.
        leads: those of them that hold something in turn.
        sources: what refers to all of that; empty where references do not show each change.
        references: what they referred to.
    """

    value: Any
    parts: tuple[Any, ...]
    leads: tuple[Any, ...]
    sources: tuple[Any, ...]
    references: list[Any]

    def holds_as(self, other: Holder) -> bool:
        """Whether the object holds what it did as ``other``."""
        if self.parts is other.parts:
            return True
        return len(self.parts) == len(other.parts) and all(map(same, self.parts, other.parts))


class Reached:
    """All that some roots lead to, as it was at one moment.

    Fields:
        holders: by identity.
    """

    def __init__(self, holders: Mapping[int, Holder], objects: Objects) -> None:
        self.holders = holders
        self._objects = objects
        self._moment = objects.moment

    def changed(self) -> Set[int]:
        """Which of them hold something else now."""
        objects = self._objects
        objects.look_again()
        if objects.moment == self._moment:
            return frozenset()
        return {place for place, each in self.holders.items() if not objects.now(each).holds_as(each)}


class Objects:
    """Objects that were looked at, each as it was when it was last seen to change.

    Fields:
        moment: counts the changes that were seen.
    """

    def __init__(self) -> None:
        self.moment = 0
        self._live: weakref.WeakSet[Reached] = weakref.WeakSet()
        self._holders: dict[int, Holder] = {}
        self._globals: dict[tuple[int, int], Globals] = {}
        self._is_opaque: dict[type, bool] = {}
        self._modules = len(sys.modules)
        #: Of all holders in turn: their sources, and their references.
        self._sources: list[Any] = []
        self._references: list[Any] = []
        #: Those without sources.
        self._unshown: list[int] = []

    def globals_of(self, frame: FrameType) -> Globals | None:
        """The variables that a running function names; one object for all calls of it."""
        found = Globals.of(frame)
        return found and self._globals.setdefault((id(found.code), id(found.namespace)), found)

    def reached(self, roots: Iterable[Any]) -> Reached:
        """All that ``roots`` lead to, as it is now."""
        self.look_again()
        holders: dict[int, Holder] = {}
        pending = deque(roots)
        while pending and len(holders) < LIMIT:
            value = pending.popleft()
            place = id(value)
            if place in holders or self._opaque(value):
                continue
            holders[place] = holder = self._holders.get(place) or self._added(value)
            pending += holder.leads
        found = Reached(holders, self)
        self._live.add(found)
        if len(self._holders) > 2 * len(holders) + _SPARE:
            self.forget()
        return found

    def now(self, holder: Holder) -> Holder:
        """The object of ``holder`` as it is now, ``look_again`` having been called."""
        return self._holders.get(id(holder.value)) or self._looked_at(holder.value)

    def look_again(self) -> None:
        """See what has changed."""
        are_modules_new = len(sys.modules) != self._modules
        references = gc.get_referents(*self._sources)
        if are_modules_new or not _are_same(references, self._references):
            self._modules = len(sys.modules)
            for place, holder in self._holders.items():
                is_found_by_name = are_modules_new and isinstance(holder.value, Globals)
                if is_found_by_name or not _are_same(gc.get_referents(*holder.sources), holder.references):
                    self._replace(place, holder)
            self._list()
        for place in self._unshown:
            self._replace(place, self._holders[place])
        if any(self._holders[place].sources for place in self._unshown):
            self._list()

    def forget(self) -> None:
        """Hold nothing but what somebody still looks at."""
        kept = {place for each in self._live for place in each.holders}
        self._holders = {place: holder for place, holder in self._holders.items() if place in kept}
        self._globals.clear()
        self._list()

    def _opaque(self, value: Any) -> bool:
        kind = type(value)
        found = self._is_opaque.get(kind)
        if found is None:
            found = is_opaque(value) or kind in (Objects, Reached)
            # Classes differ, and so does what speaks for another object.
            if not issubclass(kind, type) and not _is_proxy(kind):
                self._is_opaque[kind] = found
        return found

    def _looked_at(self, value: Any) -> Holder:
        held = tuple([part for _, part in parts("", value)])
        leads = {id(part): part for part in held if not self._opaque(part)}
        sources = tuple(_sources(value)) if _is_shown(value) else ()
        return Holder(value, held, tuple(leads.values()), sources, gc.get_referents(*sources))

    def _added(self, value: Any) -> Holder:
        self._holders[id(value)] = holder = self._looked_at(value)
        self._sources += holder.sources
        self._references += holder.references
        if not holder.sources:
            self._unshown.append(id(value))
        return holder

    def _replace(self, place: int, before: Holder) -> None:
        """Look again at an object that ``before`` may no longer be true of."""
        now = self._looked_at(before.value)
        if not now.holds_as(before):
            self.moment += 1
        elif not before.sources:
            return
        self._holders[place] = now

    def _list(self) -> None:
        holders = self._holders.values()
        self._sources = [each for holder in holders for each in holder.sources]
        self._references = [each for holder in holders for each in holder.references]
        self._unshown = [place for place, holder in self._holders.items() if not holder.sources]


#: So many objects that nobody looks at are held.
_SPARE = 1000


def _are_same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _is_proxy(kind: type) -> bool:
    """Whether an object of the class may say of itself what is true of another one."""
    if kind in weakref.ProxyTypes:
        return True
    own = (vars(base) for base in kind.__mro__[:-1])
    return any(
        "__class__" in names or isinstance(names.get("__getattribute__"), FunctionType) for names in own
    )


def _is_shown(value: Any) -> bool:
    """Whether what the ``_sources`` of ``value`` refer to shows each change of its parts.

    It does not for what is no object (how far an iterator is, bytes, an order), nor where a method of a class
    of the user's own says what the parts are.
    """
    if isinstance(value, (Iterator, weakref.ReferenceType, ContextVar)) or is_buffer(value):
        return False
    kind = type(value)
    if _is_proxy(kind):
        return False
    if kind is OrderedDict:
        return len(value) < 2  # there is one order
    if issubclass(kind, OrderedDict):
        return False
    goes_over = ((base, name) for base, name in _CONTAINERS if issubclass(kind, base))
    if any(getattr(kind, name) is not getattr(base, name) for base, name in goes_over):
        return False
    return is_class(value) or type(getattr(value, "__dict__", {})) is dict


def _sources(value: Any) -> Iterator[Any]:
    """What refers to the parts of ``value``, which were taken before: attributes may come to be in a dict."""
    if isinstance(value, Globals):
        yield from value.namespaces()
        return
    yield value
    if is_class(value):
        yield from gc.get_referents(vars(value))
        return
    yield from [value.__dict__] if hasattr(value, "__dict__") else []
    if isinstance(value, FunctionType):
        yield from value.__closure__ or ()
        yield from [value.__kwdefaults__] if value.__kwdefaults__ else []
