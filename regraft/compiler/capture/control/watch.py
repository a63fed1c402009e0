"""Python objects that an arm must not change: what it does to them would happen on the other path too.

Local variables, and containers that an arm visibly changes, are state and go where the call goes. All else
that can be reached from running functions is compared before and after: what containers, arrays, objects,
classes and closures hold, global variables, and how far iterators are.
"""

# What is walked has any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from regraft.compiler.capture.control.context import Context, refuse
from regraft.compiler.capture.control.objects import Reached
from regraft.compiler.capture.control.reach import is_buffer, parts, same
from regraft.compiler.capture.control.tree import PREFIX


@dataclass(frozen=True)
class Change:
    """What an arm did to an object, and the way out."""

    reason: str
    hint: str


@dataclass(frozen=True)
class Watch:
    """Containers, objects, closures and iterators, and what each holds.

    Fields:
        roots: the variables that lead to them, by name, and the global ones.
        reached: all of them.
    """

    roots: Sequence[tuple[str, Any]]
    reached: Reached

    @staticmethod
    def of(context: Context) -> Watch:
        """All that the running functions can reach through their variables, and the global ones they name."""
        objects, frames = context.objects, list(context.frames())
        variables = (item for frame in frames for item in frame.f_locals.items())
        roots: list[tuple[str, Any]] = [(k, v) for k, v in variables if not k.startswith(PREFIX)]
        roots += [("", named) for frame in frames if (named := objects.globals_of(frame)) is not None]
        return Watch(roots, objects.reached(value for _, value in roots))

    @property
    def held(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Each object, and what it holds."""
        return ((each.value, each.parts) for each in self.reached.holders.values())

    def check(self) -> None:
        """Refuse that something is not as it was."""
        changed = self.reached.changed()
        if changed:
            change = self._first(changed)
            refuse(change.reason, change.hint)

    def _first(self, changed: Set[int]) -> Change:
        """The change that the fewest steps lead to from the variables."""
        pending, seen = deque(self.roots), set[int]()
        while pending:
            path, value = pending.popleft()
            before = self.reached.holders.get(id(value))
            if before is None or id(value) in seen:
                continue
            seen.add(id(value))
            if id(value) in changed:
                return _change(path, value, before.parts)
            named = parts(path, value)
            pending += [(name, part) for (name, _), part in zip(named, before.parts, strict=True)]
        raise AssertionError("what has changed was not reached")


def _change(path: str, value: Any, before: tuple[Any, ...]) -> Change:
    if is_buffer(value):
        return Change(f"'{path}', memory of Python's or NumPy's, {_WRITTEN}", _BUFFER)
    if isinstance(value, Iterator):
        return Change(f"'{path}' is advanced where a tensor decides", _ITERATOR)
    pairs = zip(parts(path, value), before, strict=False)
    name = next((name for (name, part), old in pairs if not same(part, old)), path)
    return Change(
        f"'{name}' changes where a tensor decides, in a function that is called from there", _OBJECT
    )


_WRITTEN = "is written to where a tensor decides"
_BUFFER = "write to a tensor in its place, or make a new array"
_ITERATOR = "take its values into a list before, as in values = list(...), and count in a variable: values[i]"
_OBJECT = "return the new value instead, or assign it by its name in the function where the tensor decides"


def is_held_elsewhere(context: Context, holder: Any, container: Any) -> bool:
    """Whether more than one place in ``holder`` leads to ``container``."""
    variables = ((key, value) for frame in context.frames() for key, value in frame.f_locals.items())
    if any(value is container and not key.startswith(PREFIX) for key, value in variables):
        return True
    held = [value for value, parts in Watch.of(context).held for part in parts if part is container]
    return context.is_given(container) or len(held) > 1 or any(value is not holder for value in held)


def is_shared(context: Context, name: str, container: Any) -> bool:
    """Whether more than the variable ``name`` of the function that is running leads to ``container``.

    A variable of that name in a function further out is another one.
    """
    is_own = True
    for frame in context.frames():
        for key, value in frame.f_locals.items():
            if value is container and not key.startswith(PREFIX) and not (is_own and key == name):
                return True
        # The arms and trips within the function that has the variable share it.
        code = frame.f_code
        is_own = is_own and name not in (*code.co_cellvars, *code.co_varnames)
    if context.is_given(container):
        return True
    # A function that closes over the variable sees whatever the variable holds.
    held = (parts for value, parts in Watch.of(context).held if not isinstance(value, FunctionType))
    return any(part is container for parts in held for part in parts)
