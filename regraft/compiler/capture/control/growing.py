"""A list that grows in a loop of which only a call knows the trips: its elements are the rows of a tensor."""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from regraft.compiler.capture.control.number import (
    Kind,
    Number,
    UnknownNumber,
    as_tensor,
    dtype_of,
    is_carried,
    kind_of,
)


@dataclass(frozen=True)
class Element:
    """What a list holds: tensors of a type, or numbers of a ``kind``."""

    dtype: torch.dtype
    sizes: tuple[Any, ...]
    device: torch.device | None
    kind: Kind | None

    @staticmethod
    def like(value: Any) -> Element | None:
        """The type of ``value``; None where it is neither a tensor nor a number."""
        if isinstance(value, Tensor):
            return Element(value.dtype, tuple(value.shape), value.device, None)
        if not is_carried(value):
            return None
        return Element(dtype_of(value), (), None, kind_of(dtype_of(value)))

    def is_like(self, other: Element | None) -> bool:
        """Whether ``other`` is the same, be its sizes what they may."""
        mine = (self.dtype, len(self.sizes), self.kind)
        return other is not None and mine == (other.dtype, len(other.sizes), other.kind)

    def fits(self, other: Element | None) -> bool:
        if other is None or not self.is_like(other):
            return False
        return list(map(str, self.sizes)) == list(map(str, other.sizes))


@dataclass(eq=False)
class Growing:
    """A list whose length only a call knows.

    Fields:
        rows: the elements, one after the other.
        kind: what they are: tensors, where it is None, or numbers of a kind.
    """

    rows: Tensor
    kind: Kind | None

    @staticmethod
    def starting(start: Sequence[Any], new: Sequence[Element | None]) -> Growing | None:
        """The list of ``start``, to which ``new`` things will be added; None where their types differ."""
        first, *others = [*map(Element.like, start), *new]
        if first is None or not all(first.fits(each) for each in others):
            return None
        if start:
            return Growing(torch.stack([as_tensor(each) for each in start]), first.kind)
        if any(free_unbacked_symbols(size) for size in first.sizes):
            return None
        return Growing(torch.zeros((0, *first.sizes), dtype=first.dtype, device=first.device), first.kind)

    @staticmethod
    def held(values: Tensor) -> Growing:
        """The list of the numbers in ``values``, which has one dim."""
        numbers = Number(values)
        return Growing(numbers.tensor, numbers.kind)

    @property
    def element_type(self) -> Element:
        rows = self.rows
        return Element(rows.dtype, tuple(rows.shape[1:]), rows.device, self.kind)

    def may_hold(self, value: Any) -> bool:
        """Whether ``value`` has the type of what is in the list, be its sizes what they may."""
        return self.element_type.is_like(Element.like(value))

    @property
    def length(self) -> Any:
        return self.rows.shape[0]

    @property
    def values(self) -> Tensor:
        """The elements as ``torch.tensor`` has a list of them."""
        return self.rows.to(torch.get_default_dtype()) if self.kind is float else self.rows

    def append(self, element: Any) -> None:
        if not self.may_hold(element):
            self.refuse("takes in an element of another type")
        self.rows = torch.cat([self.rows, as_tensor(element).unsqueeze(0)])

    def part(self, rows: Tensor) -> Growing:
        """A list of some of the elements, which are ``rows``."""
        return Growing(rows, self.kind)

    def element(self, index: Any) -> Any:
        """The element at ``index``, an integer that the trace may not know."""
        place = as_tensor(index)
        place = torch.where(place < 0, place + as_tensor(self.length), place)
        row = self.rows.index_select(0, place.reshape(1)).squeeze(0)
        return row if self.kind is None else Number(row)

    def copy(self) -> Growing:
        return Growing(self.rows, self.kind)

    def __len__(self) -> int:
        self.refuse("is asked for its length in code that is not converted")

    def __bool__(self) -> bool:
        self.refuse("decides in code that is not converted")

    def __iter__(self) -> Iterator[Any]:
        self.refuse("is gone over")

    def __setitem__(self, index: Any, value: Any) -> None:
        self.refuse("has an element replaced")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self.refuse(f"is changed by {name}()" if name in _CHANGES else f"is asked for its {name}")

    def refuse(self, what: str) -> NoReturn:
        raise UnknownNumber(
            f"a list of which only a call knows the length {what}",
            hint="append tensors of one shape to it; then stack, concatenate or index it, or take its len()",
        )


_CHANGES = frozenset(["extend", "insert", "pop", "remove", "clear", "reverse", "sort"])
