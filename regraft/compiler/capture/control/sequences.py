"""What loops go over of which only a call knows how much there is: ranges, lists that have grown, tensors."""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import (
    free_symbols,
    free_unbacked_symbols,
)

from regraft.compiler.capture.control.bounds import at_least
from regraft.compiler.capture.control.context import Context
from regraft.compiler.capture.control.exact import check
from regraft.compiler.capture.control.growing import Growing
from regraft.compiler.capture.control.indexing import element
from regraft.compiler.capture.control.number import (
    Number,
    UnknownNumber,
    as_tensor,
    is_carried,
    unwrapped,
)
from regraft.compiler.capture.control.unordered import Unordered


@dataclass(frozen=True)
class Sequence:
    """What is gone over.

    Fields:
        length: how many items there are; less than 0 stands for none.
        at: the item with a number from 0 on, which only a call knows.
    """

    length: Any
    at: Callable[[Any], Any]

    @property
    def count(self) -> Any:
        """How many items there are."""
        return not_negative(self.length)

    @property
    def rest(self) -> Sequence:
        """All but the first item."""
        return Sequence(self.length - 1, lambda number: self.at(number + 1))

    def __iter__(self) -> Iterator[Any]:
        raise UnknownNumber(
            "something of which only a call knows the length is gone over where no loop is",
            hint="go over it with `for`, or in a list comprehension",
        )


@dataclass
class Items:
    """What a `for` goes over, each item made once: an arm may go over some of it, and be run again."""

    source: Iterator[Any]
    seen: list[Any] = field(default_factory=list[Any])
    made: int = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.made == len(self.seen):
            self.seen.append(next(self.source))
        self.made += 1
        return self.seen[self.made - 1]


@dataclass(frozen=True, repr=False)
class Span:
    """A ``range`` of which only a call knows the ends: integers of Python's, or ``Number``."""

    start: Any
    stop: Any
    step: int

    @property
    def length(self) -> Any:
        far, step = self.stop - self.start, self.step
        if step < 0:
            far, step = self.start - self.stop, -step
        return far if step == 1 else (far + step - 1) // step

    @property
    def count(self) -> Any:
        """``len``, which is never negative."""
        found = not_negative(self.length)
        return found if at_least(found, 0) else Number(as_tensor(self.length).clamp(min=0))

    @property
    def numbers(self) -> Tensor:
        """All of them."""
        count = as_tensor(self.count)
        return torch.arange(Number(count).as_size()) * self.step + as_tensor(self.start)

    def at(self, number: Any) -> Any:
        index = number if self.step == 1 else number * self.step
        return index if type(self.start) is int and self.start == 0 else index + self.start

    def __getitem__(self, index: Any) -> Any:
        """A call fails in which there is none."""
        if isinstance(index, slice):
            self._refuse("is cut")
        place, count = as_tensor(index), as_tensor(self.count)
        is_there = (place >= -count) & (place < count)
        check(is_there, "IndexError: range object index out of range")
        return self.at(Number(torch.where(place < 0, place + count, place)))

    def __len__(self) -> int:
        self._refuse("is asked for its length in code that is not converted")

    def __bool__(self) -> bool:
        self._refuse("decides in code that is not converted")

    def has(self, value: Any) -> Any:
        """``value in self``"""
        value = unwrapped(value)
        if not is_carried(value):
            return False
        offset = Number(as_tensor(value).reshape(())) - self.start
        number = offset // self.step
        return (offset % self.step == 0) & (number >= 0) & (number < self.length)

    def __iter__(self) -> Iterator[Any]:
        self._refuse("is gone over where no loop is")

    def __repr__(self) -> str:
        self._refuse("is used as text")

    def _refuse(self, what: str) -> NoReturn:
        raise UnknownNumber(
            f"a range of which only a call knows the end {what}",
            hint="go over it with `for`, take its len() or one of its numbers, or make a list of it",
        )


def not_negative(length: Any) -> Any:
    """``max(length, 0)``; sizes of arguments, and what is computed from them, stay sizes.

    Of one that is less than 0 only where an argument has a size of 0, it is ``length`` itself to torch.
    """
    if at_least(length, 0):
        return length
    if isinstance(length, Number) or free_unbacked_symbols(length):
        return Number(as_tensor(length).clamp(min=0))
    return torch.sym_max(length, 0)


def asked(value: Any) -> Any:
    """``value``, of which only the truth is looked at: a container's is its length."""
    if isinstance(value, Span):
        return value.count
    return value.length if isinstance(value, (Growing, Unordered)) else value


def sequence_of(value: Any, context: Context) -> Sequence | None:
    """``value`` as a loop goes over it; None where the trace knows how much there is."""
    if isinstance(value, Sequence):
        return value
    if isinstance(value, Span):
        return Sequence(value.length, value.at)
    if isinstance(value, Growing):
        return _of_list(value, context)
    if isinstance(value, Tensor) and value.dim() and free_symbols(value.shape[0]):
        return _of_rows(value, context)
    return None


def _of_list(growing: Growing, context: Context) -> Sequence:
    rows = growing.rows

    def at(number: Any) -> Any:
        if growing.rows is not rows:
            growing.refuse("grows while it is gone over")
        return context.taken(growing, growing.at(as_tensor(number)))

    return Sequence(growing.length, at)


def _of_rows(tensor: Tensor, context: Context) -> Sequence:
    return Sequence(tensor.shape[0], lambda number: element(tensor, number, context))


def turned(values: Sequence) -> Sequence:
    """``reversed(values)``"""
    last = Number(as_tensor(values.count)) - 1
    return Sequence(values.length, lambda number: values.at(last - number))


def enumerated(values: Sequence, start: Any) -> Sequence:
    """``enumerate(values, start)``"""
    return Sequence(values.length, lambda number: (number + start, values.at(number)))


def zipped(values: list[Any], context: Context, *, strict: bool) -> Sequence | None:
    """``zip(*values, strict=strict)``, of which only a call knows the length.

    None where one of them is neither a tensor nor of unknown length.
    """
    parts: list[Sequence] = []
    for each in values:
        part = sequence_of(each, context)
        if part is None and isinstance(each, Tensor) and each.dim():
            part = _of_rows(each, context)
        if part is None:
            return None
        parts.append(part)
    lengths = [as_tensor(part.count) for part in parts]
    for length in lengths[1:] if strict else ():
        message = "ValueError: zip() arguments are not of one length"
        check(length == lengths[0], message)
    same = strict or all(_is_same(part.length, parts[0].length) for part in parts)
    length = parts[0].length if same else Number(reduce(torch.minimum, lengths))
    return Sequence(length, lambda number: tuple(part.at(number) for part in parts))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two lengths are known to be one."""
    return one is other or (isinstance(one, torch.SymInt) and str(one) == str(other))
