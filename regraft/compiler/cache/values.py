"""Fingerprints of whatever a model's Python can reach.

A fingerprint is a list of named components, in the order in which they were reached: a module of the
model's tree, a function, an attribute of a class. A component's text describes its own content down to
the bits; what has a component of its own is mentioned there by its label. So two fingerprints are equal
only when everything reached is, and the first component that differs tells what has changed.

Which attributes of a class count is decided by name: those that some function reached mentions (as an
attribute or as a string), and those that Python calls by itself. Where code of the user's looks
attributes up by names it computes, all attributes of the user's classes count.

What cannot be described, such as an open file, a random generator or a call into a C extension that nobody
vouches for, raises ``Uncacheable``, unless a library's own code holds it (see ``origins``).
"""

# Everything here looks at objects of any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import builtins
import collections
import enum
import functools
import hashlib
import logging
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload, OpOverloadPacket

from regraft.compiler.cache import codes, origins, tensors
from regraft.compiler.cache.kinds import (
    ATOMS,
    BASES,
    CONTAINERS,
    DESCRIPTORS,
    TYPING,
    is_described_by_python,
    state,
)
from regraft.compiler.cache.origins import Origin
from regraft.compiler.cache.purity import (
    CONSTRUCTORS,
    DYNAMIC_ATTRIBUTES,
    DYNAMIC_BUILTINS,
    IMPLICIT_METHODS,
    IMPURE_ATTRIBUTES,
    IMPURE_BUILTINS,
    PURE_MODULES,
)
from regraft.compiler.capture.control.convert import original

_MAX_VALUES = 500_000

#: Entries of a class that say nothing about what its instances do.
_SKIPPED = frozenset(
    {
        "__abstractmethods__",
        "__annotations__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__qualname__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    }
)


class Uncacheable(Exception):
    """Something of the model cannot be described, so that nobody could tell whether it has changed."""


class Walker:
    """Collects the components of one fingerprint."""

    def __init__(self) -> None:
        self.components: dict[str, str] = {}
        self.packages: set[str] = set()
        self._pending: collections.deque[tuple[FunctionType, str]] = collections.deque()
        self._labels: dict[int, str] = {}
        self._label_counts: collections.Counter[str] = collections.Counter()
        self._kept: list[Any] = []
        self.walked: set[str] = set()
        self._live: list[type[Any]] = []
        self._held: set[type[Any]] = set()
        self._full: set[type[Any]] = set()
        self._built: set[type[Any]] = set()
        self._done: set[tuple[type[Any], str]] = set()
        self._mentioned: set[str] = set()
        self._all_of_user_classes = False
        self._strict = True
        self._where = ""
        self._count = 0

    # -- components ----------------------------------------------------------------------------

    def add(self, name: str, text: str) -> None:
        """A component that the caller has described: shown as it is when it is short."""
        name = self._unique(name)
        self.components[name] = text if len(text) <= 80 and "\n" not in text else _hash(text)

    def describe(self, name: str, value: Any, *, strict: bool = True, full: bool = False) -> None:
        """A component for ``value``; ``full`` counts every attribute of its class.

        Raises:
            Uncacheable: it holds something that cannot be described.
        """
        if full:
            self._full.update(c for c in type(value).__mro__ if c is not object)
            if isinstance(value, type):
                self._full.update(c for c in value.__mro__ if c is not object)
        before = self._strict, self._where
        self._strict, self._where = strict, name
        try:
            self.add(name, "".join(self.text(value)))
        except RecursionError as error:
            raise Uncacheable(f"{name} nests too deeply") from error
        finally:
            self._strict, self._where = before

    def finish(self) -> dict[str, str]:
        """Walk all that was reached; the components.

        Raises:
            Uncacheable: a function or a value reached cannot be described.
        """
        progress = True
        while progress:
            progress = False
            while self._pending:
                self._walk(*self._pending.popleft())
                progress = True
            for cls in list(self._live):
                progress = self._walk_class(cls) or progress
        return self.components

    def _unique(self, name: str) -> str:
        self._label_counts[name] += 1
        count = self._label_counts[name]
        return name if count == 1 else f"{name} ({count})"

    def _label(self, value: Any, name: Callable[[], str]) -> tuple[str, bool]:
        """The label of an object, and whether it is new."""
        known = self._labels.get(id(value))
        if known is not None:
            return known, False
        label = self._labels[id(value)] = self._unique(name())
        self._kept.append(value)  # so that no other object gets its id
        return label, True

    def name_module(self, module: torch.nn.Module, path: str) -> None:
        """Say that ``module`` has a component of its own, as a part of the model."""
        self._labels[id(module)] = f"module '{path}'"
        self._kept.append(module)

    def refuse(self, reason: str) -> None:
        raise Uncacheable(f"{self._where}: {reason}" if self._where else reason)

    # -- values --------------------------------------------------------------------------------

    def text(self, value: Any) -> Iterator[str]:
        """The description of ``value``, in parts."""
        self._count += 1
        if self._count > _MAX_VALUES:
            self.refuse(f"more than {_MAX_VALUES} values are reached")
        kind = type(value)
        atom = ATOMS.get(kind)
        if atom is not None:
            yield f"{kind.__name__} {atom(value)};"
            return
        for types_, describe in self._describers:
            if isinstance(value, types_):
                yield from describe(self, value)
                return
        yield from self._object(value)

    def _parts(self, kind: str, *values: Any) -> Iterator[str]:
        yield f"{kind}("
        for value in values:
            yield from self.text(value)
        yield ")"

    def _bytes(self, describe: Callable[[], str]) -> str:
        try:
            return describe()
        except tensors.TooLarge as error:
            self.refuse(str(error))
            raise

    def _tensor(self, value: torch.Tensor) -> Iterator[str]:
        """A tensor that is nobody's parameter: its values may steer the code or become literals."""
        if type(value) not in tensors.PLAIN:
            self.refuse(f"a {type(value).__name__} is a subclass of Tensor")
        label, new = self._label(value, lambda: "tensor")
        yield self._bytes(lambda: tensors.value_text(value)) if new else f"<{label}>"

    def _enum(self, value: enum.Enum) -> Iterator[str]:
        yield from self._class(type(value))
        yield f"member {value.name} "
        yield from self.text(value.value)

    def _torch_op(self, op: Any) -> Iterator[str]:
        name = str(op)
        if self._strict and not name.startswith(("aten.", "prims.", "prim.", "aten::")):
            self.refuse(f"the custom op {name}, whose code is out of sight, is called")
        yield f"op {name};"

    def _method(self, value: types.MethodType) -> Iterator[str]:
        yield from self._parts("method", value.__func__, value.__self__)

    def _wrapper(self, value: types.MethodWrapperType) -> Iterator[str]:
        yield from self._parts(f"wrapper {value.__name__}", value.__self__)

    def _descriptor(self, value: Any) -> Iterator[str]:
        owner = getattr(value, "__objclass__", None)
        yield f"{type(value).__name__} {getattr(owner, '__qualname__', '')}.{value.__name__};"

    def _builtin(self, value: Any) -> Iterator[str]:
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, ModuleType):
            yield f"builtin {value.__name__} of "
            yield from self.text(owner)
            return
        module = str(value.__module__ or getattr(owner, "__name__", ""))
        if module == "builtins" and value.__name__ in IMPURE_BUILTINS:
            self._refuse_call(f"{value.__name__}()")
        trusted = module in PURE_MODULES or origins.package_of(module) in ("torch", "numpy")
        if not trusted and not type(owner).__module__.startswith("torch"):
            self._refuse_call(f"{module or 'a C extension'}.{value.__name__}()")
        yield f"builtin {module}.{value.__qualname__};"

    def _refuse_call(self, what: str) -> None:
        if self._strict:
            self.refuse(f"it uses {what}, whose result may differ from run to run")

    def _object(self, value: Any) -> Iterator[str]:
        """An instance of a Python class: its class, its items when it is a container, its attributes."""
        cls = type(value)
        if not is_described_by_python(cls):
            if self._strict:
                self.refuse(f"it holds a {cls.__module__}.{cls.__qualname__}")
            yield f"opaque {cls.__module__}.{cls.__qualname__};"
            return
        if cls is tuple:  # whether two equal tuples are one object means nothing
            yield from self._items(value)
            return
        label, new = self._label(value, lambda: f"a {cls.__qualname__}")
        if not new:
            yield f"<{label}>"
            return
        yield f"<{label}:"
        if cls not in CONTAINERS:
            yield from self._class(cls, held=True)
        yield from self._items(value)
        strict = origins.of_class(cls) is Origin.USER
        for name, attribute in state(value):
            if not strict and "hash" in name and type(attribute) is int:
                continue  # a library's note of an object's hash, which is another in each process
            yield f".{name}="
            yield from self.text(attribute)
        yield ">"

    def _items(self, value: Any) -> Iterator[str]:
        """The contents of a container; of a subclass of one, as the base class sees them."""
        base = next((b for b in BASES if isinstance(value, b)), None)
        if base is None:
            return
        yield f"{base.__name__}["
        if base in (set, frozenset):
            yield from sorted("".join(self.text(v)) for v in base.__iter__(value))
        elif issubclass(base, (dict, types.MappingProxyType)):
            if isinstance(value, collections.defaultdict):
                yield from self.text(value.default_factory)
            items = value.items() if base is types.MappingProxyType else dict.items(value)
            for key, item in items:
                yield from self.text(key)
                yield ":"
                yield from self.text(item)
        elif base in (tuple, list, collections.deque):
            for item in base.__iter__(value):
                yield from self.text(item)
        else:
            yield ATOMS[base](base(value))
        yield "]"

    # -- modules, functions and classes ----------------------------------------------------------

    def _foreign_module(self, module: torch.nn.Module) -> Iterator[str]:
        """A module of the model by its label; any other with its weights, which become literals."""
        if id(module) not in self._labels:
            tensors.describe_tree(self, module, "a module of its own", by_value=True)
        yield f"<{self._labels[id(module)]}>"

    def _module(self, module: ModuleType) -> Iterator[str]:
        yield f"module {module.__name__};"

    def attributes_of(self, module: ModuleType, names: frozenset[str]) -> Iterator[str]:
        """A module as code sees it that uses ``names``."""
        yield f"module {module.__name__}("
        top = origins.package_of(module.__name__)
        if self._strict:
            if top in sys.stdlib_module_names and top not in PURE_MODULES:
                self.refuse(f"it uses the module {top}, whose results may differ from run to run")
            impure = IMPURE_ATTRIBUTES.get(top, frozenset()) & names & set(module.__dict__)
            if module.__name__ == top and impure:
                self._refuse_call(f"{top}.{min(impure)}")
        if top not in sys.stdlib_module_names:
            for name in sorted(names & set(module.__dict__)):
                yield f".{name}="
                yield from self._global(module.__dict__[name], names, module)
        yield ")"

    def _global(self, value: Any, names: frozenset[str], owner: ModuleType | None = None) -> Iterator[str]:
        if isinstance(value, ModuleType):
            inside = owner is None or value.__name__.startswith(f"{owner.__name__}.")
            yield from self.attributes_of(value, names) if inside else self._module(value)
        else:
            if isinstance(value, type):
                self._built.add(value)
            yield from self.text(value)

    def _function(self, function: FunctionType) -> Iterator[str]:
        label, new = self._label(function, lambda: f"{function.__module__}.{function.__qualname__}")
        if new:
            self._pending.append((function, label))
            self._note_package(function.__module__)
        yield f"<{label}>"

    def _walk(self, function: FunctionType, label: str) -> None:
        """The component of a function: its code, what it closes over, the globals it uses."""
        origin = self._origin_of_function(function)
        if function.__code__.co_name == "compile_wrapper" and origin is Origin.FIXED:
            self.refuse(f"{label} is compiled by torch.compile")
        self._strict, self._where = origin is Origin.USER, label
        parts: list[str] = []
        if origin is not Origin.FIXED:
            parts.append(codes.digest(original(function.__code__)))
            parts += self._names(function, origin)
            for value in (function.__defaults__, function.__kwdefaults__):
                parts += self.text(value)
        parts += self._closure(function)
        # Attributes of a function: ``__wrapped__``, or what code has hung there.
        for name, value in function.__dict__.items():
            parts.append(f".{name}=")
            parts += self.text(value)
        self.components[label] = _hash("".join(parts))

    def _origin_of_function(self, function: FunctionType) -> Origin:
        found = origins.of_function(function)
        if found is Origin.LIBRARY and origins.package_of(function.__module__ or "") not in self.walked:
            return Origin.FIXED
        return found

    def _note_package(self, module: str | None) -> None:
        if module:
            self.packages.add(origins.package_of(module))

    def _closure(self, function: FunctionType) -> Iterator[str]:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            yield f"cell {name}="
            try:
                content = cell.cell_contents
            except ValueError:
                yield "empty;"
                continue
            if isinstance(content, type):
                self._built.add(content)
            yield from self.text(content)

    def _names(self, function: FunctionType, origin: Origin) -> Iterator[str]:
        """What the names in a function mean, as far as that can be told before it runs."""
        names = codes.names_of(original(function.__code__), exact=origin is Origin.USER)
        self._mentioned |= names.all
        if origin is Origin.USER:
            yield from self._imports(names)
            builtin = (names.globals or frozenset()) - set(function.__globals__)
            if builtin & IMPURE_BUILTINS:
                self._refuse_call(f"{min(builtin & IMPURE_BUILTINS)}()")
            dynamic = bool(builtin & DYNAMIC_BUILTINS or names.all & DYNAMIC_ATTRIBUTES)
            self._all_of_user_classes |= dynamic
        elif names.all & {"environ", "getenv"}:
            yield from _environment(names.all)
        for name in sorted(names.globals if names.globals is not None else names.all):
            if name in function.__globals__:
                yield f"global {name}="
                yield from self._global(function.__globals__[name], names.all)
            elif hasattr(builtins, name):
                yield f"{name};"
            elif names.globals is not None:
                yield f"no {name};"
        yield from self._tensor_methods(names.all)

    def _imports(self, names: codes.Names) -> Iterator[str]:
        for name in sorted(names.imports):
            module = sys.modules.get(name)
            if module is None:
                self.refuse(f"it imports {name!r} when it runs")
                continue
            yield f"import {name}="
            top = sys.modules[origins.package_of(name)]
            yield from self.attributes_of(top, names.all)
            if top is not module:
                yield from self.attributes_of(module, names.all)

    def _tensor_methods(self, names: frozenset[str]) -> Iterator[str]:
        """Methods of tensors that somebody has replaced."""
        for name in sorted(names & vars(torch.Tensor).keys()):
            method = vars(torch.Tensor)[name]
            if isinstance(method, FunctionType) and origins.of_function(method) is not Origin.FIXED:
                yield f"Tensor.{name}="
                yield from self.text(method)

    def _class(self, cls: type[Any], *, held: bool = False) -> Iterator[str]:
        """A class by its label.

        ``held`` says that it has an instance; so it may wherever code of the user's names it.
        """
        label, new = self._label(cls, lambda: f"class {cls.__module__}.{cls.__qualname__}")
        if held or self._strict:
            self._held.update(cls.__mro__)
        if new:
            self._live += [c for c in cls.__mro__ if self._origin_of(c) is not Origin.FIXED]
            bases = ", ".join(f"{b.__module__}.{b.__qualname__}" for b in cls.__mro__)
            self.components[label] = _hash(bases)
            if type(cls).__module__ not in ("builtins", "abc", "enum"):
                list(self._class(type(cls)))
        yield f"<{label}>"

    def _walk_class(self, cls: type[Any]) -> bool:
        """Describe the attributes that count and have not been described; whether there were any."""
        strict = self._origin_of(cls) is Origin.USER
        found = False
        for name, item in list(cls.__dict__.items()):
            if name in _SKIPPED or (cls, name) in self._done or not self._counts(cls, name, item, strict):
                continue
            found = True
            self._done.add((cls, name))
            self.describe(f"{cls.__module__}.{cls.__qualname__}.{name}", item, strict=strict)
        return found

    def _counts(self, cls: type[Any], name: str, item: Any, strict: bool) -> bool:
        """Whether some code reached may use this attribute of a class."""
        if cls in self._full or (strict and self._all_of_user_classes):
            return True
        if not strict and isinstance(item, FunctionType) and origins.of_function(item) is Origin.USER:
            return True  # somebody has put it into a library's class
        if strict and name in CONSTRUCTORS:
            return any(issubclass(built, cls) for built in self._built)
        return cls in self._held and (name in self._mentioned or name in IMPLICIT_METHODS)

    def _origin_of(self, cls: type[Any]) -> Origin:
        """As ``origins.of_class``; a library counts as one only where it has a part in the model."""
        found = origins.of_class(cls)
        if found is Origin.FIXED and _is_made_up(cls):
            return Origin.USER
        if found is Origin.LIBRARY and origins.package_of(cls.__module__) not in self.walked:
            return Origin.FIXED
        return found

    #: How values are described, the first that fits. The functions take the walker: bound to one, they would
    #: keep it and so the model.
    _describers: ClassVar[tuple[tuple[Any, Callable[[Any, Any], Iterator[str]]], ...]] = (
        (type, _class),
        (torch.nn.Module, _foreign_module),
        (torch.Tensor, _tensor),
        (FunctionType, _function),
        (types.MethodType, _method),
        ((types.BuiltinFunctionType, types.BuiltinMethodType), _builtin),
        (types.MethodWrapperType, _wrapper),
        (DESCRIPTORS, _descriptor),
        (ModuleType, _module),
        (functools.partial, lambda walker, p: walker._parts("partial", p.func, p.args, p.keywords)),
        (slice, lambda walker, s: walker._parts("slice", s.start, s.stop, s.step)),
        (property, lambda walker, p: walker._parts("property", p.fget, p.fset, p.fdel)),
        ((staticmethod, classmethod), lambda walker, m: walker._parts(type(m).__name__, m.__func__)),
        (type(functools.cache(repr)), lambda walker, f: walker._parts("cached", f.__wrapped__)),
        (enum.Enum, _enum),
        ((OpOverload, OpOverloadPacket), _torch_op),
        (TYPING, lambda _, v: iter((f"typing {v!r};",))),
        (logging.Logger, lambda _, v: iter(("logger;",))),
        (tensors.ARRAYS, lambda walker, v: iter((walker._bytes(lambda: tensors.array_text(v)),))),
        (re.Pattern, lambda _, v: iter((f"pattern {v.pattern!r} {v.flags};",))),
        (pathlib.PurePath, lambda _, v: iter((f"path {v!s};",))),
    )


def _is_made_up(cls: type[Any]) -> bool:
    """Whether a class that claims to be of a module is not to be found there: a GraphModule's, for one."""
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is not cls and issubclass(cls, torch.nn.Module)


def _hash(text: str) -> str:
    return f"#{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


def _environment(names: frozenset[str]) -> Iterator[str]:
    """The values of the environment variables that ``names`` may be."""
    for name in sorted(n for n in names if n.isupper()):
        yield f"env {name}={os.environ.get(name)!r};"
