"""Python objects that an arm must not change: what it does to them would happen on the other path too.

Local variables, and containers that an arm visibly changes, are state and go where the call goes. All else
that can be reached from the variables of running functions is compared before and after: what containers,
objects and closures hold, and how far iterators are.
"""

# What is walked has any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import enum
import functools
import gc
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FrameType,
    FunctionType,
    GeneratorType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

import torch
from torch import Tensor

from regraft.compiler.capture.control.context import Context
from regraft.compiler.capture.control.tree import PREFIX
from regraft.compiler.capture.source import is_users

#: What holds nothing that can change.
OPAQUE = (
    *(str, bytes, int, float, complex, type(None), type),
    *(Tensor, torch.dtype, torch.device, torch.Size, torch.SymInt, torch.SymFloat, torch.SymBool),
    *(ModuleType, CodeType, FrameType, CellType, enum.Enum),
)
#: A method, with the object that it belongs to.
_METHODS = (MethodType, BuiltinFunctionType, MethodWrapperType)
#: What cannot change, but for what it holds.
_FIXED = (tuple, frozenset, *_METHODS)
#: So many objects are looked at.
LIMIT = 200_000
_EMPTY = object()


@dataclass(frozen=True)
class Change:
    """What an arm did to an object, and the way out."""

    reason: str
    hint: str


@dataclass(frozen=True)
class Watch:
    """Containers, objects, closures and iterators, each with its path and what it holds."""

    held: tuple[tuple[str, Any, tuple[Any, ...]], ...]

    @staticmethod
    def of(context: Context) -> Watch:
        """All that the running functions can reach through their variables."""
        found: list[tuple[str, Any, tuple[Any, ...]]] = []
        seen: set[int] = set()
        pending: deque[tuple[str, Any]] = deque()
        for frame in context.frames():
            pending += [(k, v) for k, v in frame.f_locals.items() if not k.startswith(PREFIX)]
        while pending and len(seen) < LIMIT:
            path, value = pending.popleft()
            if isinstance(value, OPAQUE) or id(value) in seen:
                continue
            seen.add(id(value))
            held = list(parts(path, value))
            if not isinstance(value, _FIXED):
                found.append((path, value, tuple(part for _, part in held)))
            pending += held
        return Watch(tuple(found))

    def changed(self) -> Change | None:
        """Something that is not as it was."""
        for path, value, before in self.held:
            now = list(parts(path, value))
            pairs = list(zip(now, before, strict=False))
            names = [name for (name, part), old in pairs if not _same(part, old)]
            if not names and len(now) == len(before):
                continue
            if isinstance(value, Iterator):
                return Change(f"'{path}' is advanced where a tensor decides", _ITERATOR)
            name = names[0] if names else path
            reason = f"'{name}' changes where a tensor decides, in a function that is called from there"
            return Change(reason, _OBJECT)
        return None


_ITERATOR = "take its values into a list before, as in values = list(...), and count in a variable: values[i]"
_OBJECT = "return the new value instead, or change it in the function where the tensor decides"


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
    held = (parts for _, value, parts in Watch.of(context).held if not isinstance(value, FunctionType))
    return any(part is container for parts in held for part in parts)


def _same(now: Any, before: Any) -> bool:
    """Whether a part is the one it was; what describes an iterator is made anew each time."""
    return now is before or (type(now) is type(before) and type(now) in (str, int) and now == before)


def parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What ``value``, found at ``path``, holds, each part with its own path."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield f"{path}[{key!r}]" if isinstance(key, (str, int)) else f"{path}[...]", each
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"{path}[{i}]", each) for i, each in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"{path}{{...}}", each) for each in sorted(value, key=id))
    elif isinstance(value, FunctionType):
        yield from _of_function(path, value)
    elif isinstance(value, _METHODS):
        yield path, value.__self__
    else:
        yield from _of_object(path, value)


def _of_function(path: str, function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Attributes, and what a function of the model's closes over and has as defaults."""
    yield from ((f"{path}.{name}", each) for name, each in function.__dict__.items())
    if not is_users(function.__code__.co_filename):
        return
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        if not name.startswith(PREFIX):
            yield f"{name} of {path}", _content(cell)
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    yield from ((f"a default of {path}", each) for each in defaults)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the variable has no value yet
        return _EMPTY


def _of_object(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    # The dict first: asked for, it is made, and an iterator's references then count it.
    yield from ((f"{path}.{name}", each) for name, each in getattr(value, "__dict__", {}).items())
    for name in _slots(type(value)):
        yield f"{path}.{name}", getattr(value, name, _EMPTY)
    if isinstance(value, functools.partial):
        yield from ((path, each) for each in (value.func, value.args, value.keywords))
    if isinstance(value, Iterator):
        yield from ((path, each) for each in _of_iterator(value))


@functools.lru_cache(maxsize=4096)
def _slots(kind: type) -> tuple[str, ...]:
    """The attributes that ``__slots__`` of ``kind`` and its bases declare."""
    bases = [base for base in kind.__mro__ if "__slots__" in vars(base)]
    return tuple(n for base in bases for n, d in vars(base).items() if isinstance(d, MemberDescriptorType))


def _of_iterator(iterator: Iterator[Any]) -> Iterator[Any]:
    """How far ``iterator`` is, none of its items taken: the place it says, and the objects it refers to."""
    if isinstance(iterator, GeneratorType):
        frame = iterator.gi_frame  # asked for, it is made, and is among the references then
        yield -1 if frame is None else frame.f_lasti
    if isinstance(iterator, itertools.count):
        yield repr(iterator)
    hint = getattr(iterator, "__length_hint__", None)
    # One that is written in Python may do anything. To repeat has no place, and no end to count to.
    if isinstance(hint, BuiltinFunctionType) and not isinstance(iterator, itertools.repeat):
        yield hint()
    for each in gc.get_referents(iterator):
        yield each
        yield from each if isinstance(each, tuple) else ()
