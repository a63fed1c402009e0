"""Values in parts: pytrees, in which dataclasses of the model's own, and arrays, count as nodes too."""

# torch's pytrees are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from regraft.compiler.capture.control.number import Array


@dataclass(frozen=True)
class Structure:
    """How parts make a value.

    Fields:
        spec: of the pytree.
        records: for each leaf of the pytree that is a record, its class and how its fields are made.
    """

    spec: Any
    records: tuple[tuple[type, Structure] | None, ...]


def flatten(value: Any) -> tuple[list[Any], Structure]:
    leaves, spec = pytree.tree_flatten(value)
    parts: list[Any] = []
    records: list[tuple[type, Structure] | None] = []
    for leaf in leaves:
        if is_record(leaf):
            own, structure = flatten({name: getattr(leaf, name) for name in _fields(leaf)})
            parts += own
            records.append((type(leaf), structure))
        else:
            parts.append(leaf)
            records.append(None)
    return parts, Structure(spec, tuple(records))


def unflatten(parts: Sequence[Any], structure: Structure) -> Any:
    rest = iter(parts)

    def leaf(record: tuple[type, Structure] | None) -> Any:
        if record is None:
            return next(rest)
        cls, inner = record
        fields = unflatten([next(rest) for _ in range(_size(inner))], inner)
        return _record(cls, list(fields), list(fields.values()))

    return pytree.tree_unflatten([leaf(record) for record in structure.records], structure.spec)


def parted(value: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """The parts that ``value`` holds itself, and what makes a new one of its type of others."""
    if is_record(value):
        names = _fields(value)
        return [getattr(value, name) for name in names], lambda new: _record(type(value), names, new)
    parts, spec = pytree.tree_flatten(value, is_leaf=lambda each: each is not value)
    return parts, lambda new: pytree.tree_unflatten(new, spec)


def is_atom(value: Any) -> bool:
    """Whether ``value`` is a part that has no parts."""
    parts, _ = parted(value)
    return len(parts) == 1 and parts[0] is value


def _record(cls: type, names: Sequence[str], values: Sequence[Any]) -> Any:
    made = object.__new__(cls)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(made, name, value)
    return made


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """``value`` with ``function`` of each part in the place of the part."""
    parts, structure = flatten(value)
    return unflatten([function(part) for part in parts], structure)


def _size(structure: Structure) -> int:
    return sum(1 if record is None else _size(record[1]) for record in structure.records)


def is_record(value: Any) -> bool:
    """Whether ``value`` is nothing but its fields."""
    names = _fields(value)
    return bool(names) and set(getattr(value, "__dict__", ())) == set(names)


def _fields(value: Any) -> tuple[str, ...]:
    """What a record consists of; nothing where ``value`` is none."""
    if isinstance(value, Array):
        return ("tensor",)
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        return ()
    return tuple(field.name for field in dataclasses.fields(value))
