"""Whether two graphs are the same but for the identity of their objects.

Hints of values and locations do not count; names of leaves do, since two weights of one type are still
two weights. Floats are compared by their bits: ``nan`` equals itself, and ``0.0`` is not ``-0.0``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from regraft.ir.constants import Leaf, Recipe
from regraft.ir.core import Op, Region, Value
from regraft.ir.module import Function, Module
from regraft.ir.opdef import Constant


@dataclass(frozen=True)
class Difference:
    """Where two graphs differ first, and how. It is false, as the comparison's outcome is."""

    path: str
    reason: str

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


SameConstant = Callable[[Constant, Constant], bool]


def structurally_equal(a: Module | Function | Region, b: Module | Function | Region) -> Difference | bool:
    """``True``, or the first :class:`Difference` (which is false in a condition)."""
    comparison = _Comparison()
    found = next(comparison.differences(a, b), None)
    return True if found is None else found


def same_attr(a: Any, b: Any, same_constant: SameConstant = lambda a, b: a is b) -> bool:
    """Whether two attribute values are equal in kind and in every bit."""
    if type(a) is not type(b):
        return isinstance(a, Constant) and isinstance(b, Constant) and same_constant(a, b)
    if isinstance(a, tuple):
        pairs: list[tuple[Any, Any]] = list(zip(a, b, strict=False))  # pyright: ignore[reportUnknownArgumentType]
        return len(a) == len(b) and all(same_attr(x, y, same_constant) for x, y in pairs)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, complex):
        return same_attr(a.real, b.real) and same_attr(a.imag, b.imag)
    if isinstance(a, Constant):
        return same_constant(a, b)
    return bool(a == b)


class _Comparison:
    """One comparison: the values and constants of ``a`` and those of ``b`` they stand for."""

    def __init__(self) -> None:
        self._values: dict[Value, Value] = {}
        self._constants: dict[Constant, Constant] = {}
        self._reverse: dict[Constant, Constant] = {}
        self._names: tuple[Mapping[Constant, str], Mapping[Constant, str]] = ({}, {})

    def differences(self, a: object, b: object) -> Iterator[Difference]:
        if isinstance(a, Module) and isinstance(b, Module):
            yield from self._modules(a, b)
        elif isinstance(a, Function) and isinstance(b, Function):
            yield from self._functions(a, b)
        elif isinstance(a, Region) and isinstance(b, Region):
            yield from self._regions(a, b, "")
        else:
            yield Difference("", f"a {type(a).__name__} and a {type(b).__name__}")

    def _modules(self, a: Module, b: Module) -> Iterator[Difference]:
        self._names = (a.constants(), b.constants())
        if list(a.functions) != list(b.functions):
            yield Difference("", f"functions {list(a.functions)} and {list(b.functions)}")
            return
        for name, function in a.functions.items():
            yield from self._functions(function, b.functions[name])

    def _functions(self, a: Function, b: Function) -> Iterator[Difference]:
        path = f"@{a.name}"
        yield from _unequal(path, "name", a.name, b.name)
        yield from _unequal(path, "symbols", _described(a.symbols), _described(b.symbols))
        yield from _unequal(path, "state", [s.name for s in a.state], [s.name for s in b.state])
        yield from _unequal(path, "aliases", dict(a.aliases), dict(b.aliases))
        yield from self._regions(a.body, b.body, path)

    def _regions(self, a: Region, b: Region, path: str) -> Iterator[Difference]:
        yield from _unequal(path, "argument types", _texts(a.arg_types), _texts(b.arg_types))
        yield from _unequal(path, "region symbols", _described(a.symbols), _described(b.symbols))
        self._values.update(zip(a.args, b.args, strict=False))
        for position, (x, y) in enumerate(zip_longest(a.ops, b.ops)):
            name = (x or y).name
            here = f"{path} / op {position} ({name})" if path else f"op {position} ({name})"
            if x is None or y is None:
                yield Difference(here, f"only in the {'second' if x is None else 'first'}")
                return
            yield from self._ops(x, y, here)

    def _ops(self, a: Op, b: Op, path: str) -> Iterator[Difference]:
        yield from _unequal(path, "op", a.name, b.name)
        yield from _unequal(path, "operand segments", a.segments, b.segments)
        yield from _unequal(path, "number of operands", len(a.operands), len(b.operands))
        for index, (x, y) in enumerate(zip(a.operands, b.operands, strict=False)):
            # A value from outside what is compared must be the same object.
            if self._values.get(x, x) is not y:
                yield Difference(path, f"operand {index} is another value")
        yield from self._attrs(a, b, path)
        yield from _unequal(path, "symbols", _described(a.symbols), _described(b.symbols))
        types = [_texts([v.type for v in op.results]) for op in (a, b)]
        yield from _unequal(path, "result types", *types)
        yield from _unequal(path, "number of regions", len(a.regions), len(b.regions))
        for number, (x, y) in enumerate(zip(a.regions, b.regions, strict=False)):
            yield from self._regions(x, y, f"{path} / region {number}")
        self._values.update(zip(a.results, b.results, strict=False))

    def _attrs(self, a: Op, b: Op, path: str) -> Iterator[Difference]:
        yield from _unequal(path, "attribute names", sorted(a.attrs), sorted(b.attrs))
        for name, value in a.attrs.items():
            other = b.attrs.get(name)
            if name in b.attrs and not same_attr(value, other, self._same_constant):
                yield Difference(path, f"attribute '{name}' is {value!r} and {other!r}")

    def _same_constant(self, a: Constant, b: Constant) -> bool:
        if a in self._constants or b in self._reverse:
            # One to one: weights tied on one side are tied on the other.
            return self._constants.get(a) is b and self._reverse.get(b) is a
        self._constants[a], self._reverse[b] = b, a
        if isinstance(a, Recipe) and isinstance(b, Recipe):
            return a.type == b.type and next(self._regions(a.body, b.body, ""), None) is None
        if isinstance(a, Leaf) and isinstance(b, Leaf):
            first, second = self._names
            return a.type == b.type and first.get(a, a.name) == second.get(b, b.name)
        return a is b


def _unequal(path: str, what: str, a: object, b: object) -> Iterator[Difference]:
    if a != b:
        yield Difference(path, f"{what}: {a} and {b}")


def _texts(types: Sequence[object]) -> list[str]:
    return [str(t) for t in types]


def _described(symbols: Sequence[object]) -> list[str]:
    return [repr(s) for s in symbols]
