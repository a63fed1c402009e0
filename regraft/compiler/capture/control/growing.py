"""A list of which only a call knows the length, such as one that grows in a loop that a tensor ends.

Its elements are the rows of a tensor. Lists of numbers that are elements may differ in length: the numbers of
all of them stand one after the other.
"""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true

from regraft.compiler.capture.control.exact import check
from regraft.compiler.capture.control.number import (
    Kind,
    Number,
    UnknownNumber,
    as_tensor,
    dtype_of,
    is_carried,
    kind_of,
    unwrapped,
)

_HINT = "append tensors of one shape to it; then stack, concatenate or index it, or take its len()"


@dataclass(frozen=True)
class Element:
    """What a list holds: tensors of a type, numbers of a ``kind`` or, with one size, lists of such."""

    dtype: torch.dtype
    sizes: tuple[Any, ...]
    device: torch.device | None
    kind: Kind | None

    @staticmethod
    def like(value: Any) -> Element | None:
        """The type of ``value``; None where it is neither a tensor nor a number, nor a list of numbers."""
        if isinstance(value, Tensor):
            return Element(value.dtype, tuple(value.shape), value.device, None)
        if isinstance(value, (list, Growing)):
            held = value.element_type if isinstance(value, Growing) else _common(value)
            if held is None or held.kind is None or held.sizes:
                return None
            return Element(held.dtype, (0,), None, held.kind)
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


def same_rows(first: Tensor, second: Tensor) -> Tensor:
    """Whether two tensors of one dim are equal in length and elements."""
    lengths = [as_tensor(each.shape[0]) for each in (first, second)]
    places = torch.arange(Number(torch.minimum(*lengths)).as_size())
    equal = first.index_select(0, places) == second.index_select(0, places)
    return equal.all() & (lengths[0] == lengths[1])


def _numbers(values: Sequence[Any]) -> Tensor | None:
    """The numbers ``values`` in a tensor that holds each exactly; None where one is no number."""
    if not values or not all(is_carried(each) and not isinstance(each, Tensor) for each in values):
        return None
    tensors = [as_tensor(each) for each in values]
    dtype = reduce(torch.promote_types, (each.dtype for each in tensors))
    return torch.stack([each.to(dtype) for each in tensors])


def _common(values: Sequence[Any]) -> Element | None:
    """The type of all ``values``; None where they have none in common."""
    first, *others = map(Element.like, values) if values else (None,)
    return first if first is not None and all(first.fits(each) for each in others) else None


@dataclass(eq=False, repr=False)
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
        if first.kind is not None and first.sizes:
            return Ragged.of(start, first)
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
    def stacked(self) -> Tensor:
        """The elements, which are tensors, one after the other; a call fails in which there are none."""
        if self.kind is not None:
            self.refuse("of numbers is stacked")
        if not statically_known_true(self.length > 0):
            check(as_tensor(self.length > 0), "RuntimeError: a list of tensors to be joined is empty")
        return self.rows

    @property
    def values(self) -> Tensor:
        """The elements as ``torch.tensor`` has a list of them."""
        return self.exact.to(torch.get_default_dtype()) if self.kind is float else self.exact

    @property
    def exact(self) -> Tensor:
        """The elements as one tensor that has all their digits."""
        return self.rows

    def append(self, element: Any) -> None:
        self._check_type(Element.like(element))
        self.rows = torch.cat([self.rows, as_tensor(element).unsqueeze(0)])

    def extend(self, others: Any) -> None:
        """``extend`` by a list, or by the rows of a tensor."""
        if isinstance(others, Tensor):
            others = Growing(others, None)
        if isinstance(others, Growing):
            self._check_type(others.element_type)
            self._join(others)
        else:
            for each in others:
                self.append(each)

    def insert(self, index: Any, element: Any) -> None:
        self.refuse("is changed by insert()", "append to it, then turn it round with reverse()")

    def __iadd__(self, others: Any) -> Growing:
        self._check_joined(others)
        self.extend(others)
        return self

    def _check_joined(self, others: Any) -> None:
        """Only numbers are joined by an operator, and such lists: nobody would know of writes to others."""
        if not isinstance(others, Growing) and (self.kind is None or self.element_type.sizes):
            self.refuse("is joined by + with what are no numbers", "add to it with append() or extend()")

    def _join(self, others: Growing) -> None:
        self.rows = torch.cat([self.rows, others.rows])

    def _check_type(self, element: Element | None) -> None:
        if not self.element_type.is_like(element):
            self.refuse("takes in an element of another type")

    def reverse(self) -> None:
        self.rows = self.rows.flip(0)

    def part(self, rows: Tensor) -> Growing:
        """A list of some of the elements, which are ``rows``."""
        return Growing(rows, self.kind)

    def element(self, index: Any) -> Any:
        """The element at ``index``, an integer that the trace may not know; a call fails without it."""
        place, length = as_tensor(index), as_tensor(self.length)
        check((place >= -length) & (place < length), "IndexError: list index out of range")
        return self.at(torch.where(place < 0, place + length, place))

    def at(self, place: Tensor) -> Any:
        """The element at ``place``, from the front, where there is one."""
        row = self.rows.index_select(0, place.reshape(1)).squeeze(0)
        return row if self.kind is None else Number(row)

    def has(self, value: Any) -> Any:
        """``value in self``"""
        self._scalars("is searched for a value")
        return Number(self._equal_to(value).any()) if is_carried(unwrapped(value)) else False

    def _equal_to(self, value: Any) -> Tensor:
        """Which elements equal ``value``: none, unless it is a number or a tensor without dims."""
        rows = self._scalars("is searched for a value")
        if not is_carried(unwrapped(value)):
            return torch.zeros_like(rows, dtype=torch.bool)
        wanted = as_tensor(unwrapped(value))
        if wanted.dim():
            self.refuse("is searched for a tensor that has dims")
        if isinstance(value, Tensor) and self.kind is not None:  # beside it, a number has its type
            rows = rows.to(torch.result_type(value, self.kind(1)))
        return rows == wanted

    def index(self, value: Any) -> Number:
        """Where the first element is that equals ``value``; a call fails in which there is none."""
        equal = self._equal_to(value)
        check(equal.any(), "ValueError: the value is not in the list")
        return Number(self._first(equal))

    def extreme(self, *, is_min: bool) -> Any:
        """``max`` or ``min``: the first of those than which none is greater, or less."""
        rows = self._scalars("has its max or min taken")
        name = "min" if is_min else "max"
        check(as_tensor(self.length > 0), f"ValueError: {name}() iterable argument is empty")
        # The check may be read at the end of the call: until then there is an element in any case.
        padded = torch.cat([rows, rows.new_zeros((1,))])
        # Nothing is greater than nan, and nan than nothing: it wins where it is the first.
        first = padded[:1]
        compared = torch.cat([torch.where(rows != rows, first, rows), first])
        best = compared.amin() if is_min else compared.amax()
        place = torch.where((first != first).reshape(()), 0, self._first(compared == best))
        row = padded.index_select(0, place.reshape(1)).squeeze(0)
        return row if self.kind is None else Number(row)

    @property
    def truths(self) -> Tensor:
        """Which elements Python finds true."""
        if all(size == 1 for size in self.element_type.sizes):
            return (self.rows != 0).reshape(self.length)
        self.refuse("of tensors that have dims is asked for the truth of each")

    def total(self, start: Any) -> Any:
        """``sum(self, start)``; a call fails in which nothing gives the sum its type."""
        if self.kind is not None:
            total = Number(self.rows.sum())
            return total if type(start) is int and start == 0 else start + total
        if not self.element_type.fits(Element.like(start)):
            message = (
                "a list of tensors is empty, of which the sum is a number: give sum() a tensor to start with"
            )
            check(as_tensor(self.length > 0), message)
        dtype = torch.result_type(self.rows, 0)
        return start + self.rows.sum(0, dtype=dtype)

    def count(self, value: Any) -> Number:
        """How many elements equal ``value``."""
        return Number(self._equal_to(value).sum())

    def _scalars(self, what: str) -> Tensor:
        if self.element_type.sizes:
            self.refuse(what)
        return self.rows

    @staticmethod
    def _first(holds: Tensor) -> Tensor:
        """Where the first true element of ``holds`` is."""
        return holds.to(torch.int64).argmax()

    def copy(self) -> Growing:
        return Growing(self.rows, self.kind)

    def __add__(self, others: Any) -> Any:
        if not isinstance(others, (list, Growing)):
            return NotImplemented
        self._check_joined(others)
        found = self.copy()
        found.extend(others)
        return found

    def __radd__(self, others: Any) -> Any:
        if not isinstance(others, list):
            return NotImplemented
        if _runs_in_place(sys._getframe(1)):
            self.refuse("extends another one by += in code that is not converted", "extend it with extend()")
        self._check_joined(others)
        found = Growing.starting(others, [self.element_type])
        if found is None:
            self.refuse("is joined with elements of another type")
        found.extend(self)
        return found

    def __eq__(self, other: object) -> Any:
        """Equal in length and elements; an element that is not a number has an ``==`` of its own."""
        if other is self:
            return True
        if not isinstance(other, (list, Growing)):
            return NotImplemented
        if isinstance(other, list) and not other:
            return Number(as_tensor(self.length) == 0)
        numbers = [each.rows if isinstance(each, Growing) else _numbers(each) for each in (self, other)]
        types = [each.element_type for each in (self, other) if isinstance(each, Growing)]
        if any(each is None for each in numbers) or any(each.kind is None or each.sizes for each in types):
            self.refuse("of what are no numbers is compared")
        first, second = (each for each in numbers if each is not None)
        return Number(same_rows(first, second))

    def __ne__(self, other: object) -> Any:
        found = self == other
        return Number(~found.tensor) if isinstance(found, Number) else not found

    def __lt__(self, other: object) -> bool:
        self.refuse("is compared by its order")

    __le__ = __gt__ = __ge__ = __lt__

    def __len__(self) -> int:
        self.refuse("is asked for its length in code that is not converted")

    def __bool__(self) -> bool:
        self.refuse("decides in code that is not converted")

    def __iter__(self) -> Iterator[Any]:
        self.refuse("is gone over")

    def __getitem__(self, index: Any) -> NoReturn:
        self.refuse("is indexed in code that is not converted")

    def __setitem__(self, index: Any, value: Any) -> None:
        self.refuse("has an element replaced")

    def __mul__(self, times: Any) -> NoReturn:
        self.refuse("is repeated")

    __rmul__ = __imul__ = __mul__

    def __delitem__(self, index: Any) -> None:
        self.refuse("has an element removed")

    def __repr__(self) -> str:
        self.refuse("is used as text")

    def __format__(self, form: str) -> str:
        self.refuse("is used as text")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self.refuse(f"is changed by {name}()" if name in _CHANGES else f"is asked for its {name}")

    def refuse(self, what: str, hint: str = _HINT) -> NoReturn:
        raise UnknownNumber(f"a list of which only a call knows the length {what}", hint=hint)


@dataclass(eq=False, repr=False)
class Inner(Growing):
    """A list that was read out of another, in which a change of it would show."""

    def append(self, element: Any) -> None:
        self._keep()

    def extend(self, others: Any) -> None:
        self._keep()

    def reverse(self) -> None:
        self._keep()

    def _keep(self) -> NoReturn:
        self.refuse(
            "changes in another list, which holds it", "take a copy first, as in path = list(paths[i])"
        )


@dataclass(eq=False, repr=False)
class Ragged(Growing):
    """A list of lists of numbers of one kind: ``rows`` has the numbers of all, one after the other.

    Fields:
        lengths: how many numbers each list has.
    """

    lengths: Tensor

    @staticmethod
    def of(start: Sequence[Any], element: Element) -> Ragged:
        """The list of ``start``, of which each has the type ``element``."""
        none = torch.zeros((0,), dtype=torch.int64)
        found = Ragged(torch.zeros((0,), dtype=element.dtype), element.kind, none)
        for each in start:
            found.append(each)
        return found

    @staticmethod
    def rows_of(values: Tensor) -> Ragged:
        """The lists of the numbers in the rows of ``values``, which has two dims."""
        numbers = Number(values.reshape(-1))
        lengths = as_tensor(values.shape[1]).expand(values.shape[0])
        return Ragged(numbers.tensor, numbers.kind, lengths)

    @property
    def element_type(self) -> Element:
        return Element(self.rows.dtype, (0,), None, self.kind)

    @property
    def length(self) -> Any:
        return self.lengths.shape[0]

    @property
    def exact(self) -> Tensor:
        self.refuse("of lists of numbers is made a tensor")

    def append(self, element: Any) -> None:
        self._check_type(Element.like(element))
        if not isinstance(element, Growing):
            element = Growing(torch.stack([as_tensor(each) for each in element]), self.kind)
        self.rows = torch.cat([self.rows, element.rows])
        self.lengths = torch.cat([self.lengths, as_tensor(element.length).reshape(1)])

    def _join(self, others: Growing) -> None:
        assert isinstance(others, Ragged), "its elements are lists too"
        self.rows = torch.cat([self.rows, others.rows])
        self.lengths = torch.cat([self.lengths, others.lengths])

    def part(self, rows: Tensor) -> Growing:
        self.refuse("of lists of numbers is cut")

    def reverse(self) -> None:
        self.refuse("of lists of numbers is turned round")

    @property
    def truths(self) -> Tensor:
        return self.lengths != 0

    def total(self, start: Any) -> Any:
        if not isinstance(start, (list, Growing)):
            self.refuse("of lists is summed up", "start the sum with a list: sum(values, [])")
        every = Growing(self.rows, self.kind)
        return every if isinstance(start, list) and not start else start + every

    def at(self, place: Tensor) -> Any:
        place = place.reshape(1)
        count = self.lengths.index_select(0, place).squeeze(0)
        stop = self.lengths.cumsum(0).index_select(0, place).squeeze(0)
        places = torch.arange(Number(count).as_size()) + (stop - count)
        return Inner(self.rows.index_select(0, places), self.kind)

    def copy(self) -> Growing:
        return Ragged(self.rows, self.kind, self.lengths)


def _runs_in_place(frame: FrameType) -> bool:
    """Whether the function in ``frame`` is in the midst of ``+=``, which falls back on ``+``."""
    steps = dis.get_instructions(frame.f_code)
    return any(step.offset == frame.f_lasti and step.argrepr == "+=" for step in steps)


_CHANGES = frozenset(["pop", "remove", "clear", "sort"])


def has_grown(start: list[Any], after: Any) -> bool:
    """Whether ``after``, which was the list ``start``, holds more than that."""
    return isinstance(after, Growing) or (isinstance(after, list) and len(after) > len(start))
