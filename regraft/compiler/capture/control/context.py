"""What all calls of one capture share."""

# A tensor's count of writes has no public name.
# pyright: reportPrivateUsage=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import linecache
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.export import ExportedProgram

from regraft.compiler.capture.control.aliases import Aliases
from regraft.compiler.capture.control.flat import FlatGraph, Memory
from regraft.compiler.capture.control.growing import Growing, Inner
from regraft.compiler.capture.control.objects import Objects
from regraft.compiler.capture.control.state import Lost, holding, still_holds
from regraft.compiler.capture.control.tree import PREFIX, RESULT
from regraft.compiler.capture.source import is_users
from regraft.errors import CaptureError

Values = tuple[Tensor, ...]


class Tracer(Protocol):
    """The conditions and loops of a trace, as ``trace`` has them."""

    def undecided(self, value: object) -> bool: ...

    def cond(
        self,
        pred: Any,
        then: Callable[[], Sequence[Tensor]],
        otherwise: Callable[[], Sequence[Tensor]],
    ) -> Values: ...

    def loop(
        self,
        test: Callable[[Values], Tensor],
        body: Callable[[Values], Sequence[Tensor]],
        carried: Sequence[Tensor],
        limit: int | None = None,
        changing: Sequence[int] | None = None,
    ) -> Values: ...

    def stand_ins(self, carried: Sequence[Tensor], changing: Sequence[int]) -> Values: ...

    def thrown_away(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Copy:
    """A tensor that is a view in eager, and the original, with the count of writes to each.

    Fields:
        is_kept: whether others may have been made of it that are that view too, as a list that grows.
        site: the loop that is traced as one trip, in which it was made.
        line: where it was made.
    """

    copy: Tensor
    copy_version: int
    original: Tensor
    original_version: int
    site: tuple[str, int] | None
    line: tuple[str, int]
    is_kept: bool

    message = (
        "the model writes to a tensor, or to a part of it that an index known only to a call took, while the "
        "other is in use"
    )
    hint = "take a copy of the part first, with clone(), before the write"

    @property
    def is_written(self) -> bool:
        return (self.copy._version, self.original._version) != (self.copy_version, self.original_version)


_MAY_BE = "a list, a dict or a set changes of which a tensor decides whether it is another one"
_COPY = "take a copy of it first, such as list(values)"


@dataclass(frozen=True)
class Given:
    """A list that is an element of one of unknown length, in eager the very list.

    Fields:
        values: the list, or another container.
        parts: what it held when it was given, as ``holding`` has them.
        site: the loop that is traced as one trip, in which that was.
        line: where that was.
        message, hint: what is wrong with a change of the list, and the way out.
    """

    values: Any
    parts: tuple[Any, ...]
    site: tuple[str, int] | None
    line: tuple[str, int]
    message: str = "a list changes that is in another one, of which only a call knows the length"
    hint: str = "append a copy of it, as in paths.append(list(path))"

    @property
    def is_written(self) -> bool:
        return not still_holds(self.values, self.parts)


class Learnt(Exception):
    """What the next trace has to know of a variable, at a ``place`` (file, line, variable)."""

    def __init__(self, place: tuple[str, int, str]) -> None:
        super().__init__(f"{type(self).__name__}: {place[2]}")
        self.place = place


class Grows(Learnt):
    """A list holds more on one path than on the other."""


class Grown(Exception):
    """The ``lists``, which are on trial for growing, are ``values``: the trial has found what it asks."""

    def __init__(self, lists: Sequence[Any], values: Sequence[Growing]) -> None:
        super().__init__("lists that are on trial grow")
        self.lists = lists
        self.values = values


class MayBeNone(Learnt):
    """A variable is a tensor or a number on one path and None on the other; ``dtype`` is a number's."""

    def __init__(self, place: tuple[str, int, str], dtype: torch.dtype | None = None) -> None:
        super().__init__(place)
        self.dtype = dtype


class OneSided(Learnt):
    """Only the second arm of a condition sets a variable that is read where that arm was taken alone."""


class Unsettled(Learnt):
    """What a loop carries has another type, or changes another size, than one trip of it has shown."""


@dataclass
class Context:
    """One capture, as converted code sees it.

    Fields:
        tracer: makes regions.
        limit: how many trips a loop may take; None for any number.
        lost: the variables that two paths left without a value, by name.
        unrolled: the loops, by file and line, of which one trip cannot stand for all.
        folded: those that are traced as one trip at this moment.
        grows: the places (file, line, variable) at which a list has to be a ``Growing``.
        optional: those at which a variable may be a ``Maybe``, or only the second arm sets it.
        held: the dtypes of the numbers that such a ``Maybe`` holds, by place; None among them for others.
        unsettled: those of loops of which one trip does not show all that they change.
        copies: what was taken by an index that only a call knows.
        given: the lists that are elements of lists of unknown length, and containers that may be others.
        changed: the first of them that was changed since.
        collected: lists that such loops have filled, and the tensors that hold all of a list.
        trials: the lists of which arms that run at this moment are to show whether they grow.
        tests: for each test of a `while` that runs at this moment what is to be called where a size decides
            in it; None where the trips that Python makes are made.
    """

    tracer: Tracer
    limit: int | None = None
    lost: dict[str, Lost] = field(default_factory=dict[str, Lost])
    unrolled: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    grows: set[tuple[str, int, str]] = field(default_factory=set[tuple[str, int, str]])
    optional: set[tuple[str, int, str]] = field(default_factory=set[tuple[str, int, str]])
    held: dict[tuple[str, int, str], set[torch.dtype | None]] = field(
        default_factory=dict[tuple[str, int, str], set[torch.dtype | None]]
    )
    unsettled: set[tuple[str, int, str]] = field(default_factory=set[tuple[str, int, str]])
    folded: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    collected: list[tuple[list[Tensor], Tensor]] = field(default_factory=list[tuple[list[Tensor], Tensor]])
    copies: list[Copy] = field(default_factory=list["Copy"])
    given: list[Given] = field(default_factory=list["Given"])
    changed: Given | None = None
    trials: list[Sequence[Any]] = field(default_factory=list[Sequence[Any]])
    tests: list[Callable[[], None] | None] = field(default_factory=list["Callable[[], None] | None"])
    _arms: threading.local = field(default_factory=threading.local)
    _thread: int | None = None
    _outermost: FrameType | None = None
    _objects: Callable[[], Objects | None] = lambda: None

    @property
    def objects(self) -> Objects:
        """What the objects of the model hold, for as long as somebody looks at them."""
        found = self._objects()
        if found is None:
            found = Objects()
            self._objects = weakref.ref(found)
        return found

    def learn(self, learnt: Learnt) -> None:
        """Know in the next trace what this one has found."""
        if isinstance(learnt, Grows):
            self.grows.add(learnt.place)
        elif isinstance(learnt, Unsettled):
            self.unsettled.add(learnt.place)
        else:
            self.optional.add(learnt.place)
            self.held.setdefault(learnt.place, set()).add(getattr(learnt, "dtype", None))

    def number_held(self, place: tuple[str, int, str]) -> torch.dtype | None:
        """The dtype of the numbers that a ``Maybe`` at ``place`` holds, if it has held nothing else."""
        dtypes = self.held.get(place, set())
        return next(iter(dtypes)) if len(dtypes) == 1 else None

    @contextmanager
    def trial(self, lists: Sequence[Any]) -> Generator[None]:
        """In the block arms run that are to show whether ``lists`` grow."""
        self.trials.append(lists)
        try:
            yield
        finally:
            self.trials.pop()

    @contextmanager
    def testing(self, note: Callable[[], None] | None) -> Generator[None]:
        """In the block the test of a `while` runs, as ``tests`` has it."""
        self.tests.append(note)
        try:
            yield
        finally:
            self.tests.pop()

    def check_trials(self, lists: Sequence[Any], values: Sequence[Any]) -> None:
        """End the innermost trial if it is of these very ``lists``, all of which are now known to grow.

        Without this a loop of which each trip may be the last would be traced anew in each of its trips.
        """
        if not self.trials or not all(isinstance(value, Growing) for value in values):
            return
        tried = self.trials[-1]
        if len(tried) == len(lists) and all(a is b for a, b in zip(tried, lists, strict=True)):
            raise Grown(tried, values)

    def copied(self, copy: Tensor, of: Tensor, *, is_kept: bool = False) -> None:
        """``copy`` stands for what is, in eager, a view of ``of``."""
        site = self.folded[-1] if self.folded else None
        originals = [each.original for each in self.copies if is_kept and each.copy is of]
        self.copies.append(Copy(copy, copy._version, of, of._version, site, where(), is_kept))
        for original in originals:
            # What a loop carries is noted for each in turn as a copy of the other.
            if original is not copy and not self._is_noted(copy, original):
                self.copied(copy, original, is_kept=True)

    def _is_noted(self, copy: Tensor, original: Tensor) -> bool:
        return any(each.copy is copy and each.original is original for each in self.copies)

    def holds(self, values: Growing, elements: Iterable[Any]) -> None:
        """``values`` holds, in eager, the ``elements`` themselves: a write to one shows in it."""
        for each in elements:
            if isinstance(each, Tensor):
                self.copied(values.rows, each, is_kept=True)
            elif isinstance(each, (list, Growing)) and not isinstance(each, Inner):
                self.given.append(self._given(each))

    def may_be(self, found: Any, *options: Any) -> None:
        """``found`` is in eager the very one of ``options``, containers, that a tensor has chosen."""
        for each in (found, *options):
            self.given.append(replace(self._given(each), message=_MAY_BE, hint=_COPY))

    def _given(self, container: Any) -> Given:
        site = self.folded[-1] if self.folded else None
        return Given(container, holding(container), site, where())

    def note_changes(self) -> None:
        """Remember the first change of a container that is given, before paths are set back or meet."""
        self.changed = self.changed or next((each for each in self.given if each.is_written), None)

    def renew(self) -> None:
        """The containers that are given hold what they do by no change of the model's."""
        self.given[:] = [replace(each, parts=holding(each.values)) for each in self.given]

    def is_given(self, container: Any) -> bool:
        """Whether ``container`` is, in eager, an element of a list of unknown length."""
        return any(each.values is container for each in self.given)

    def taken(self, values: Growing, element: Any) -> Any:
        """``element``, which is read out of ``values``: in eager the one itself that is in there."""
        if isinstance(element, Tensor):
            self.copied(element, values.rows, is_kept=True)
        return element

    def hand_on(self, given: Tensor, result: Any) -> None:
        """``result``, of a region, is in eager what it was ``given``, which a list may hold."""
        if isinstance(result, Tensor) and self.is_held(given):
            self.copied(result, given, is_kept=True)

    def is_held(self, tensor: Tensor) -> bool:
        """Whether a list of unknown length may hold ``tensor`` itself, in eager."""
        return any(each.is_kept and (each.copy is tensor or each.original is tensor) for each in self.copies)

    def written_copy(self, program: ExportedProgram) -> Copy | None:
        """A copy that was written to, or the original of which was, while the other was in use.

        ``program`` is what was traced: eager's view would have shown the write.
        """
        kept = next((each for each in self.copies if each.is_kept and each.is_written), None)
        others = {(_memory(c.copy), _memory(c.original)): c for c in self.copies if not c.is_kept}
        if kept is not None or not others:
            return kept
        aliases = Aliases(program, FlatGraph(program), list(others))
        conflict = aliases.first_conflict()
        if conflict is None:
            return None
        touched = aliases.may_be(conflict[1])
        return next((copy for pair, copy in others.items() if touched.intersection(pair)), None)

    def collected_in(self, tensors: Any) -> Tensor | None:
        """The tensor that holds just what the list ``tensors`` does."""
        if not isinstance(tensors, (list, tuple)):
            return None
        for parts, whole in self.collected:
            if len(parts) == len(tensors) and all(a is b for a, b in zip(parts, tensors, strict=True)):
                return whole
        return None

    @property
    def depth(self) -> int:
        """How many arms this thread is in."""
        return getattr(self._arms, "depth", 0)

    @contextmanager
    def arm(self) -> Generator[None]:
        self._arms.depth = self.depth + 1
        try:
            yield
        finally:
            self._arms.depth -= 1

    @contextmanager
    def tracing(self) -> Generator[None]:
        """This thread traces in the block. Converted code that others run meanwhile takes Python's path."""
        self._thread = threading.get_ident()
        # Above this function and the context manager's own is the one whose block it is.
        self._outermost = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        try:
            yield
        finally:
            self._thread = self._outermost = None

    def frames(self) -> Generator[FrameType]:
        """The model's running functions, innermost first."""
        frame = users_frame()
        while frame is not None and frame is not self._outermost:
            if is_users(frame.f_code.co_filename):
                yield frame
            frame = frame.f_back

    @property
    def traces(self) -> bool:
        return self._thread == threading.get_ident()

    def lose(self, name: str, lost: Lost) -> None:
        """``name`` has no value from here on; why, at the line that is running.

        What is returned is refused at once: without a value it would count as not returned yet.
        """
        if name == RESULT:
            refuse(f"{shown_name(name)} {lost.reason}", lost.hint)
        file, line = where()
        placed = lost if lost.is_placed else Lost(f"{lost.reason} ({file}:{line})", lost.hint, is_placed=True)
        self.lost[name] = placed


def _memory(tensor: Tensor) -> Memory:
    return tensor.untyped_storage()._cdata


def where() -> tuple[str, int]:
    """File and line of the innermost running frame that is the user's."""
    frame = users_frame()
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("", 0)


def users_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def refuse(message: str, hint: str) -> NoReturn:
    """Raise a ``CaptureError`` at the line that is running."""
    file, line = where()
    source = linecache.getline(file, line).strip() or None
    raise CaptureError(message, location=f"{file}:{line}" if file else None, source_line=source, hint=hint)


def shown_name(name: str) -> str:
    """A variable as messages call it."""
    return "the value that is returned" if name.startswith(PREFIX) else f"the variable '{name}'"
