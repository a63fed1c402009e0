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
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, MethodWrapperType
from typing import Any

from regraft.compiler.capture.control.context import Context, refuse
from regraft.compiler.capture.control.objects import Reached
from regraft.compiler.capture.control.reach import (
    Globals,
    cells_of,
    content,
    is_buffer,
    is_class,
    parts,
    same,
)
from regraft.compiler.capture.control.settings import Settings
from regraft.compiler.capture.control.swap import functions_of
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
        settings: torch's global state.
    """

    roots: Sequence[tuple[str, Any]]
    reached: Reached
    settings: Settings

    @staticmethod
    def of(context: Context) -> Watch:
        """All that the running functions can reach through their variables, and the global ones they name."""
        objects, frames = context.objects, list(context.frames())
        variables = (item for frame in frames for item in frame.f_locals.items())
        roots: list[tuple[str, Any]] = [(k, v) for k, v in variables if not k.startswith(PREFIX)]
        roots += [("", named) for frame in frames if (named := objects.globals_of(frame)) is not None]
        return Watch(roots, objects.reached(value for _, value in roots), Settings.now())

    @property
    def held(self) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Each object, and what it holds."""
        return ((each.value, each.parts) for each in self.reached.holders.values())

    def check(self) -> None:
        """Refuse that something is not as it was."""
        setting = self.settings.changed()
        if setting is not None:
            refuse(f"torch's global state changes where a tensor decides: {setting}", _SETTING)
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


_SETTING = "set it before the model is called, or say it in the calls it is for, as in dtype= or device="
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


def holder_of(context: Context, name: str, container: Any) -> str | None:
    """What leads to ``container`` beside the variable ``name`` of the running function, as messages call it.

    A variable of that name in a function further out is another one. None where nothing else does.
    """
    is_own = True
    for frame in context.frames():
        for key, value in frame.f_locals.items():
            if value is container and not key.startswith(PREFIX) and not (is_own and key == name):
                return "another variable"
        # The arms and trips within the function that has the variable share it.
        code = frame.f_code
        is_own = is_own and name not in (*code.co_cellvars, *code.co_varnames)
    if context.is_given(container):
        return "another list"
    functions: list[FunctionType] = []
    for holder, held in Watch.of(context).held:
        if isinstance(holder, FunctionType):
            functions.append(holder)
        elif any(part is container for part in held):
            return _called(holder)
    # Variables lead to a function that runs, as a rule, but not to the model itself where that is one.
    found = {id(function.__code__) for function in functions}
    running = {id(frame.f_code): frame.f_code for frame in context.frames()}
    functions += functions_of(*(code for place, code in running.items() if place not in found))
    return next(filter(None, (_in_function(context, name, each, container) for each in functions)), None)


def own_list(name: str) -> str:
    """The way out where something else holds the list of the variable ``name``."""
    return (
        f"let the variable have a list of its own before that, as in {name} = list({name}), if nobody "
        "else has to see what is added"
    )


def _in_function(context: Context, name: str, function: FunctionType, container: Any) -> str | None:
    """How ``function`` holds ``container``, if it does.

    One that closes over the variable ``name`` itself sees whatever the variable holds.
    """
    called = "a lambda" if function.__name__ == "<lambda>" else f"the function '{function.__name__}'"
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    if any(each is container for each in defaults):
        return f"a default of {called}"
    if any(each is container for each in function.__dict__.values()):
        return f"an attribute of {called}"
    cells = [(key, cell) for key, cell in cells_of(function) if content(cell) is container]
    if any(key != name or not _is_cell_of(context, name, cell) for key, cell in cells):
        return f"the closure of {called}"
    return None


def _is_cell_of(context: Context, name: str, cell: CellType) -> bool:
    """Whether ``cell`` is the very variable ``name`` of the function that is running.

    Python names no cells of a frame: the variable is the one that has what is put into the cell.
    """
    frame = next((each for each in context.frames() if name in each.f_locals), None)
    before, mark = cell.cell_contents, object()
    cell.cell_contents = mark
    try:
        return frame is not None and frame.f_locals.get(name) is mark
    finally:
        cell.cell_contents = before


def _called(holder: Any) -> str:
    """What holds something, as messages call it."""
    if isinstance(holder, Globals):
        return "a global variable"
    if isinstance(holder, Iterator):
        return "an iterator"
    if isinstance(holder, (MethodType, BuiltinFunctionType, MethodWrapperType)):
        return "a method"
    if is_class(holder):
        return f"the class '{holder.__qualname__}'"
    if isinstance(holder, list):
        return "another list"
    if isinstance(holder, (dict, tuple, deque)):
        return f"a {type(holder).__name__}"
    return f"an object of the class '{type(holder).__qualname__}'"
