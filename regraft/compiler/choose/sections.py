"""Sections: the parts of a function that one back end takes as wholes, so that there is a choice.

A section has one op of much arithmetic (a product, attention) and what belongs to it: elementwise ops, norms
and views join what they read, as epilogues do. What moves the elements of a product with weights belongs to
its reader instead: products read and write plain matrices, attention has layouts of its own.

Sections are numbered so that each reads of earlier ones only: whatever back ends they go to, they can run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.ir import Dim, Expr, Function, Op, Region, Symbol, TensorType, Trait, Value, evaluate, flops_of

#: Operations for each element of the results from which an op begins a section.
_MUCH = 32


@dataclass(frozen=True, eq=False)
class Section:
    """Ops of a function, in its order.

    Fields:
        is_free: whether each back end of the list takes all of them.
        lead: the one of most arithmetic.
    """

    ops: tuple[Op, ...]
    is_free: bool
    lead: Op


def sections(
    function: Function,
    ops: Iterable[Op],
    is_free: Callable[[Op], bool],
    sizes: Mapping[Symbol, int],
    is_alone: Callable[[Op], bool] = lambda op: False,
) -> list[Section]:
    """``ops`` of ``function``, which are in order, as sections.

    Each op that is not free is one by itself, and so is one that ``is_alone``, free or not.
    """
    forming = _Forming(frozenset(function.results), sizes)
    for op in ops:
        forming.add(op, is_free(op), is_alone(op))
    return forming.finished()


class _Forming:
    def __init__(self, results: frozenset[Value], sizes: Mapping[Symbol, int]) -> None:
        self.results, self.sizes = results, sizes
        self.number: dict[Op, int] = {}
        """Of an op that is to join its readers: the latest section that it reads."""
        self.free: list[bool] = []
        self.open: list[bool] = []
        """Of each section, whether others may join it."""
        self.moving: dict[Op, None] = {}
        """What moves the elements of a product, and what is computed of that."""
        self.first: int | None = None
        """The section of what reads nothing computed."""

    def add(self, op: Op, is_free: bool, is_alone: bool) -> None:
        read = [v.op for v in op.operands if v.op in self.number]
        latest = max((self.number[r] for r in read), default=None)
        if not is_free or is_alone or is_much(op, self.sizes):
            self.number[op] = self._opened(is_free, is_alone)
        elif latest is None:
            self.first = self._opened(True) if self.first is None else self.first
            self.number[op] = self.first
        else:
            self.number[op] = latest if self.open[latest] else self._opened(True)
            if self.open[latest] and any(self._moves(op, r) for r in read):
                self.moving[op] = None

    def _opened(self, is_free: bool, is_alone: bool = False) -> int:
        self.free.append(is_free)
        self.open.append(is_free and not is_alone)
        return len(self.free) - 1

    def _moves(self, op: Op, read: Op) -> bool:
        is_product = is_much(read, self.sizes) and any(v.is_const for v in read.operands)
        return read in self.moving or (op.has(Trait.VIEW) and is_product)

    def finished(self) -> list[Section]:
        for op in reversed(self.moving):
            readers = [self.number[u.op] for r in op.results for u in r.uses if u.op in self.number]
            is_result = any(r in self.results for r in op.results)
            if readers and not is_result and all(self.open[n] for n in readers):
                self.number[op] = min(readers)
        members: dict[int, list[Op]] = {}
        for op, number in self.number.items():
            members.setdefault(number, []).append(op)
        return [
            Section(tuple(ops), self.free[number], max(ops, key=lambda op: flops_of(op, self.sizes)))
            for number, ops in sorted(members.items())
        ]


def is_much(op: Op, sizes: Mapping[Symbol, int]) -> bool:
    """Whether ``op`` does much for each element of its results, or runs regions of its own."""
    made = sum(evaluate(r.tensor.numel, sizes) for r in op.results if isinstance(r.type, TensorType))
    return bool(op.regions) or flops_of(op, sizes) >= _MUCH * max(made, 1)


def signature(ops: Sequence[Op], sizes: Mapping[Symbol, int]) -> str:
    """A hash of what ``ops`` cost on any back end: their kinds, how they are joined, sizes and attributes."""
    return hashlib.sha256("\n".join(_lines(ops, {}, sizes)).encode()).hexdigest()[:24]


def _lines(ops: Iterable[Op], names: dict[Value, str], sizes: Mapping[Symbol, int]) -> Iterator[str]:
    for op in ops:
        operands = [names.setdefault(v, f"{_read(v, sizes)} {len(names)}") for v in op.operands]
        attrs = {name: _at(value, sizes) for name, value in op.attrs.items() if not _is_value(op, name)}
        yield f"{op.name}({', '.join(operands)}) {op.segments} {attrs}"
        for number, result in enumerate(op.results):
            names[result] = f"{len(names)}.{number} {_type(result, sizes)}"
        for region in op.regions:
            yield from _region_lines(region, names, sizes)


def _region_lines(region: Region, names: dict[Value, str], sizes: Mapping[Symbol, int]) -> Iterator[str]:
    for argument in region.args:
        names[argument] = f"{len(names)} {_type(argument, sizes)}"
    yield "region"
    yield from _lines(region.ops, names, sizes)


def _is_value(op: Op, name: str) -> bool:
    """Whether the attribute is the value of a constant, which costs alike whatever it is."""
    return op.has(Trait.CONSTANT_LIKE) and name == "value"


def _read(value: Value, sizes: Mapping[Symbol, int]) -> str:
    return f"{'constant' if value.is_const else 'value'} {_type(value, sizes)}"


def _type(value: Value, sizes: Mapping[Symbol, int]) -> str:
    if not isinstance(value.type, TensorType):
        return str(value.type)
    return f"{value.type.dtype.value}{[evaluate(size, sizes) for size in value.type.shape]}"


def _at(attr: Any, sizes: Mapping[Symbol, int]) -> Any:
    """An attribute with its sizes as numbers."""
    if isinstance(attr, Expr):
        return evaluate(attr, sizes)
    if isinstance(attr, tuple):
        return tuple(_at(each, sizes) for each in attr)  # pyright: ignore[reportUnknownVariableType]
    return attr


def rows_of(op: Op, sizes: Mapping[Symbol, int]) -> int:
    """The rows of the first result of ``op``: its elements without the last axis."""
    shape: Sequence[Dim] = op.results[0].tensor.shape
    rows = 1
    for size in shape[:-1]:
        rows *= evaluate(size, sizes)
    return max(rows, 1)
