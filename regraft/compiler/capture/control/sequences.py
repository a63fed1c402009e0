"""What loops go over of which only a call knows how much there is: ranges, lists that have grown, tensors."""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from regraft.compiler.capture.control.context import Context
from regraft.compiler.capture.control.growing import Growing
from regraft.compiler.capture.control.indexing import element
from regraft.compiler.capture.control.number import Number, UnknownNumber, as_tensor


@dataclass(frozen=True)
class Sequence:
    """What is gone over.

    Fields:
        length: how many items there are; less than 0 stands for none.
        at: the item with a number from 0 on, which only a call knows.
    """

    length: Any
    at: Callable[[Any], Any]

    def __iter__(self) -> Iterator[Any]:
        raise UnknownNumber(
            "something of which only a call knows the length is gone over where no loop is",
            hint="go over it with `for`, or in a list comprehension",
        )


@dataclass(frozen=True)
class Span:
    """A ``range`` of which only a call knows the ends: integers of Python's, or ``Number``."""

    start: Any
    stop: Any
    step: int

    @property
    def length(self) -> Any:
        more = self.step - 1 if self.step > 0 else self.step + 1
        return (self.stop - self.start + more) // self.step

    @property
    def numbers(self) -> Tensor:
        """All of them."""
        count = as_tensor(self.length).clamp(min=0)
        return torch.arange(Number(count).as_size()) * self.step + as_tensor(self.start)

    def at(self, number: Any) -> Any:
        index = number if self.step == 1 else number * self.step
        return index if type(self.start) is int and self.start == 0 else index + self.start

    def __iter__(self) -> Iterator[Any]:
        raise UnknownNumber(
            "a range of which only a call knows the end is gone over where no loop is",
            hint="go over it with `for`",
        )


def sequence_of(value: Any, context: Context) -> Sequence | None:
    """``value`` as a loop goes over it; None where the trace knows how much there is."""
    if isinstance(value, Sequence):
        return value
    if isinstance(value, Span):
        return Sequence(value.length, value.at)
    if isinstance(value, Growing):
        return _of_list(value)
    if isinstance(value, Tensor) and value.dim() and free_unbacked_symbols(value.shape[0]):
        return _of_rows(value, context)
    return None


def _of_list(growing: Growing) -> Sequence:
    rows = growing.rows

    def at(number: Any) -> Any:
        if growing.rows is not rows:
            growing.refuse("grows while it is gone over")
        return growing.element(number)

    return Sequence(growing.length, at)


def _of_rows(tensor: Tensor, context: Context) -> Sequence:
    return Sequence(tensor.shape[0], lambda number: element(tensor, number, context))


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
    lengths = [as_tensor(part.length) for part in parts]
    for length in lengths[1:] if strict else ():
        message = "ValueError: zip() arguments are not of one length"
        torch.ops.aten._assert_async.msg(length == lengths[0], message)
    same = strict or len({str(part.length) for part in parts}) == 1
    length = parts[0].length if same else Number(reduce(torch.minimum, lengths))
    return Sequence(length, lambda number: tuple(part.at(number) for part in parts))
