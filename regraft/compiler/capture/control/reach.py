"""What objects hold, and so lead to: parts of containers, attributes, what functions close over and name.

Of functions in the user's own files the global variables that their code names count, and of classes there
what they hold. A library's are left out: they are caches, as a rule, and lead to everything that it has.
"""

# What is walked has any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import array
import dis
import enum
import functools
import gc
import hashlib
import importlib.util
import inspect
import io
import itertools
import logging
import sys
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FrameType,
    FunctionType,
    GeneratorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
)
from typing import Any

import torch
from torch import Tensor
from torch._ops import OperatorBase, OpOverloadPacket

from regraft.compiler.capture.control.convert import original
from regraft.compiler.capture.control.swap import nested
from regraft.compiler.capture.control.tree import PREFIX
from regraft.compiler.capture.source import is_users
from regraft.compiler.owners import Owner, owner_of

#: What holds nothing that can change, or nothing that a model's values depend on: logs, caches of torch's.
_OPAQUE = (
    *(str, bytes, int, float, complex, type(None)),
    *(Tensor, torch.dtype, torch.device, torch.Size, torch.SymInt, torch.SymFloat, torch.SymBool),
    *(ModuleType, CodeType, FrameType, CellType, enum.Enum),
    *(logging.Filterer, io.IOBase, PurePath, OperatorBase, OpOverloadPacket),
)
#: Containers that hold nothing but their elements.
_PLAIN = (list, tuple, dict, set, frozenset, deque, OrderedDict, defaultdict)
#: A method, with the object that it belongs to.
_METHODS = (MethodType, BuiltinFunctionType, MethodWrapperType)
#: So many objects are looked at.
LIMIT = 200_000
#: Functions that change global variables by their names as texts.
_BY_TEXT = frozenset(["globals", "exec", "eval"])
#: The value of what has none.
EMPTY = object()


@dataclass(frozen=True, eq=False)
class Globals:
    """The global variables of a module that ``code`` names."""

    code: CodeType
    namespace: dict[str, Any]

    @staticmethod
    def of(running: FunctionType | FrameType) -> Globals | None:
        """Those of a function, or of one that runs; None where it is not in a file of the user's own."""
        if isinstance(running, FunctionType):
            code, namespace = running.__code__, running.__globals__
        else:
            code, namespace = running.f_code, running.f_globals
        # What an arm or a trip names, the function does that it is a part of.
        is_part = code.co_qualname.rpartition(".")[2].startswith(PREFIX)
        is_own = owner_of(code.co_filename) is Owner.USER
        return Globals(code, namespace) if is_own and not is_part else None

    def variables(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each with what holds it: where one is a module of the user's own, what the code names of it too."""
        return ((name, namespace) for namespace, every in self._named() for name in every)

    def namespaces(self) -> Iterator[dict[str, Any]]:
        """What holds the variables."""
        return (namespace for namespace, _ in self._named())

    def _named(self) -> Iterator[tuple[dict[str, Any], Collection[str]]]:
        """The variables of each module, of the user's own, that the code leads to."""
        named = _names_in(self.code)
        attributes = named.attributes
        pending = [(self.namespace, tuple(self.namespace) if named.may_be_any else named.variables)]
        pending += [(vars(module), attributes) for module in named.modules(self.namespace)]
        seen: set[int] = set()
        while pending:
            namespace, every = pending.pop()
            seen.add(id(namespace))
            yield namespace, every
            for value in map(namespace.get, every):
                if isinstance(value, ModuleType) and id(vars(value)) not in seen and _is_own_module(value):
                    pending.append((vars(value), attributes))

    def parts(self) -> Iterator[tuple[str, Any]]:
        for name, namespace in self.variables():
            yield f"{name} of {namespace.get('__name__')}", variable_of(namespace, name)


def variable_of(namespace: dict[str, Any], name: str) -> Any:
    """The value of a module's variable; ``EMPTY`` without one, and where it only says what is imported."""
    value = namespace.get(name, EMPTY)
    if isinstance(value, ModuleType) and vars(value).get("__name__") == f"{namespace.get('__name__')}.{name}":
        return EMPTY
    return value


def is_opaque(value: Any) -> bool:
    """Whether nobody looks at what ``value`` holds."""
    return not _is_own(value) if is_class(value) else isinstance(value, _OPAQUE)


def is_class(value: Any) -> bool:
    """Whether ``value`` is a class, and does not only say so."""
    return issubclass(type(value), type)


def is_buffer(value: Any) -> bool:
    """Whether ``value`` is Python's or NumPy's memory, which can be written to."""
    numpy: Any = sys.modules.get("numpy")
    kinds = (bytearray, array.array, memoryview)
    return isinstance(value, kinds if numpy is None else (*kinds, numpy.ndarray))


def parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What ``value``, found at ``path``, holds, each part with its own path."""
    if isinstance(value, FunctionType):
        yield from _of_function(path, value)
    elif isinstance(value, _METHODS):
        yield path, value.__self__
        yield path, getattr(value, "__func__", None)
    elif isinstance(value, Globals):
        yield from value.parts()
    elif is_class(value):
        yield from _of_class(value)
    else:
        yield from _of_container(path, value)
        # By identity: a class of the user's may not be hashable, or equal to all others.
        if not any(type(value) is plain for plain in _PLAIN):
            yield from _of_object(path, value)


def same(now: Any, before: Any) -> bool:
    """Whether a part is the one it was; what describes iterators, memory and globals is made each time."""
    if now is before or type(now) is not type(before):
        return now is before
    if isinstance(now, Globals):
        return now.code is before.code and now.namespace is before.namespace
    return type(now) in (str, int, bytes) and now == before


def _of_function(path: str, function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Attributes, and what a function of the model's closes over, has as defaults, and names."""
    yield from ((f"{path}.{name}", each) for name, each in function.__dict__.items())
    if not is_users(function.__code__.co_filename):
        return
    yield from ((f"{name} of {path}", content(cell)) for name, cell in cells_of(function))
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    yield from ((f"a default of {path}", each) for each in defaults)
    named = Globals.of(function)
    yield from [(path, named)] if named is not None else []


def cells_of(function: FunctionType) -> Iterator[tuple[str, CellType]]:
    """The variables that ``function`` closes over, but for ours."""
    pairs = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return ((name, cell) for name, cell in pairs if not name.startswith(PREFIX))


def content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the variable has no value yet
        return EMPTY


def attributes_of(cls: type) -> dict[str, Any]:
    """What a class of the user's own holds; of what Python puts there the methods."""
    return {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("__") or isinstance(value, (FunctionType, staticmethod, classmethod))
    }


def _of_class(cls: type) -> Iterator[tuple[str, Any]]:
    for name, value in attributes_of(cls).items():
        path = f"{cls.__qualname__}.{name}"
        yield path, value
        if isinstance(value, property):
            yield from ((path, each) for each in (value.fget, value.fset))
    yield from ((base.__qualname__, base) for base in cls.__bases__)


def _of_container(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The elements of a container, or of memory."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield f"{path}[{key!r}]" if isinstance(key, (str, int)) else f"{path}[...]", each
    elif isinstance(value, (list, tuple, deque)):
        yield from ((f"{path}[{i}]", each) for i, each in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"{path}{{...}}", each) for each in sorted(value, key=id))
    elif is_buffer(value):
        yield from _of_buffer(path, value)


def _of_buffer(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The objects that an array of NumPy's holds, or what stands for the bytes."""
    dtype: Any = getattr(value, "dtype", None)
    if not getattr(dtype, "hasobject", False):
        if not is_read_only(value):
            yield path, hashlib.blake2b(_in_one_piece(value)).digest()
    elif dtype.names is not None:
        for name in dtype.names:
            yield from _of_buffer(f"{path}[{name!r}]", value[name])
    else:
        yield from ((f"{path}[{i}]", each) for i, each in enumerate(value.flat))


def is_read_only(value: Any) -> bool:
    """Whether memory, as ``is_buffer`` has it, cannot be written to under this name."""
    if isinstance(value, memoryview):
        return value.readonly
    return not getattr(getattr(value, "flags", None), "writeable", True)


def _in_one_piece(memory: Any) -> Any:
    """The bytes of ``memory``: itself where they lie side by side, else a copy."""
    if isinstance(memory, memoryview):
        return memory.tobytes()
    if not hasattr(memory, "dtype"):
        return memory
    array = memory.view(sys.modules["numpy"].ndarray)
    if array.flags.f_contiguous:
        array = array.T
    # NumPy says no to bytes of what has none.
    is_whole = array.flags.c_contiguous and array.nbytes > 0
    return array.reshape(-1).view("u1") if is_whole else array.tobytes()


def _of_object(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    # The dict first: asked for, it is made, and an iterator's references then count it.
    yield from ((f"{path}.{name}", each) for name, each in getattr(value, "__dict__", {}).items())
    for name in slots_of(type(value)):
        yield f"{path}.{name}", getattr(value, name, EMPTY)
    yield type(value).__qualname__, type(value)
    if isinstance(value, functools.partial):
        yield from ((path, each) for each in (value.func, value.args, value.keywords))
    if isinstance(value, weakref.ReferenceType):
        yield path, value()
    if isinstance(value, MappingProxyType):
        yield from ((path, each) for each in gc.get_referents(value))
    if isinstance(value, ContextVar):
        yield f"{path}.get()", value.get(EMPTY)
    if isinstance(value, Iterator):
        yield from ((path, each) for each in of_iterator(value))


def slots_of(kind: type) -> tuple[str, ...]:
    """The attributes that ``__slots__`` of ``kind`` and its bases declare."""
    bases = [base for base in kind.__mro__ if "__slots__" in vars(base)]
    return tuple(n for base in bases for n, d in vars(base).items() if isinstance(d, MemberDescriptorType))


def of_iterator(iterator: Iterator[Any]) -> Iterator[Any]:
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


@dataclass(frozen=True)
class _Named:
    """What the code of a function, and of those defined in it, names.

    Fields:
        variables: global ones.
        attributes: of anything, and what may be one by its texts, as in ``setattr(module, "count", 1)``.
        imports: the modules that it imports itself, each with the number of dots before its name.
        may_be_any: whether it may change variables that it does not spell.
    """

    variables: tuple[str, ...]
    attributes: tuple[str, ...]
    imports: tuple[tuple[int, str], ...]
    may_be_any: bool

    @staticmethod
    def of(code: CodeType) -> _Named:
        every = list(nested(code))
        steps = [step for each in every for step in dis.get_instructions(each)]
        variables = {step.argval for step in steps if step.opname.endswith(("_GLOBAL", "_NAME"))}
        texts = {text for each in every for text in each.co_consts if isinstance(text, str)}
        attributes = {name for each in every for name in each.co_names} | set(filter(str.isidentifier, texts))
        imports = {
            (level.argval, step.argval + tail)
            for level, taken, step in zip(steps, steps[1:], steps[2:], strict=False)
            if step.opname == "IMPORT_NAME"
            for tail in ("", *(f".{name}" for name in taken.argval or ()))
        }
        spelt = tuple(sorted(variables)), tuple(sorted(attributes)), tuple(sorted(imports))
        return _Named(*spelt, not variables.isdisjoint(_BY_TEXT))

    def modules(self, namespace: dict[str, Any]) -> Iterator[ModuleType]:
        """Those of the user's own that the code imports, where they are there."""
        package = namespace.get("__package__")
        for level, name in self.imports:
            if level and not package:
                continue
            full = importlib.util.resolve_name("." * level + name.removeprefix("."), package)
            module = sys.modules.get(full)
            if module is not None and _is_own_module(module):
                yield module


def _names_in(code: CodeType) -> _Named:
    """What ``code`` names; remembered but for code of ours, which leads to all of a capture."""
    code = original(code)
    return _Named.of(code) if PREFIX in code.co_qualname else _remembered(code)


@functools.lru_cache(maxsize=4096)
def _remembered(code: CodeType) -> _Named:
    return _Named.of(code)


def _is_own_module(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return getattr(module, "__name__", None) == "__main__" if file is None else owner_of(file) is Owner.USER


def _is_own(cls: type) -> bool:
    """Whether ``cls`` is from a file of the user's own.

    The module that it names need not be there, nor be the one that it is from, as under ``runpy.run_path``.
    """
    if issubclass(cls, enum.Enum):
        return False
    module = sys.modules.get(cls.__module__)
    if module is None or _is_own_module(module):
        return True
    if getattr(module, "__dict__", {}).get(cls.__qualname__) is cls and hasattr(module, "__file__"):
        return False
    return any(owner_of(code.co_filename) is Owner.USER for code in _codes_in(cls))


def _codes_in(cls: type) -> Iterator[CodeType]:
    """Those of the methods of ``cls``."""
    for value in vars(cls).values():
        held = value.fget if isinstance(value, property) else value
        held = held.__func__ if isinstance(held, (staticmethod, classmethod)) else held
        function = inspect.unwrap(held) if isinstance(held, FunctionType) else None
        if isinstance(function, FunctionType):
            yield function.__code__
