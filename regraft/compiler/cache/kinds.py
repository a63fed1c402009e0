"""Kinds of Python values: what of an instance can be seen, and how the simplest are written."""

# Everything here looks at objects of any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import collections
import struct
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def is_described_by_python(cls: type[Any]) -> bool:
    """Whether all that instances of ``cls`` hold is in their items, their ``__dict__`` and their slots.

    A class with fields in C has larger instances than its base and its slots account for.
    """
    for each in cls.__mro__:
        if each in CONTAINERS or each in ATOMS or each is object:
            continue
        if each.__itemsize__ and not issubclass(each, BASES):
            return False
        slots = sum(isinstance(v, types.MemberDescriptorType) for v in each.__dict__.values())
        slots += ("__dict__" in each.__dict__) + ("__weakref__" in each.__dict__)
        largest = max(base.__basicsize__ for base in each.__bases__)
        if each.__basicsize__ > largest + slots * _POINTER:
            return False
    return True


def state(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an instance: those in its dict, then those in slots."""
    # By name: the order in which a constructor sets them may come from a set, and so from the hash seed.
    yield from sorted(getattr(value, "__dict__", {}).items())
    for cls in type(value).__mro__:
        for name, member in list(cls.__dict__.items()):
            if isinstance(member, types.MemberDescriptorType) and cls.__flags__ & _HEAP_TYPE:
                try:
                    yield name, member.__get__(value)
                except AttributeError:
                    continue  # a slot that was never filled


_HEAP_TYPE = 1 << 9
_POINTER = struct.calcsize("P")

ATOMS: Mapping[type[Any], Callable[[Any], str]] = {
    type(None): repr,
    bool: repr,
    int: lambda v: hex(v),
    float: lambda v: v.hex(),
    complex: lambda v: f"{v.real.hex()} {v.imag.hex()}",
    str: lambda v: f"{len(v)}:{v}",
    bytes: lambda v: v.hex(),
    bytearray: lambda v: v.hex(),
    type(...): repr,
    type(NotImplemented): repr,
    range: repr,
    torch.dtype: repr,
    torch.device: repr,
    torch.layout: repr,
    torch.memory_format: repr,
    torch.Size: repr,
    torch.finfo: repr,
    torch.iinfo: repr,
    types.GenericAlias: repr,
    types.UnionType: repr,
}

CONTAINERS: Mapping[type[Any], str] = {
    c: c.__name__
    for c in (
        dict,
        list,
        tuple,
        set,
        frozenset,
        collections.OrderedDict,
        collections.defaultdict,
        collections.deque,
        types.MappingProxyType,
    )
}

#: The built-in classes that hold the contents of their subclasses' instances, derived ones first.
BASES: tuple[type[Any], ...] = (
    dict,
    list,
    tuple,
    set,
    frozenset,
    collections.deque,
    types.MappingProxyType,
    str,
    int,
    float,
    complex,
    bytes,
    bytearray,
)

DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ClassMethodDescriptorType,
)

#: What only annotations are made of.
TYPING = (typing.TypeVar, typing.ForwardRef, type(typing.List[int]), type(typing.Any), type(typing.Union))  # noqa: UP006
