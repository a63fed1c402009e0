"""A set of integers that only a call knows."""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from regraft.compiler.capture.control.exact import check
from regraft.compiler.capture.control.growing import Growing, same_rows
from regraft.compiler.capture.control.number import (
    Number,
    UnknownNumber,
    as_tensor,
    is_carried,
)

#: A set of integers from 0 on, all below the size of its smallest table, is gone over in their order: each
#: stands in the slot of its own number. Beyond that the order depends on how the set has come about.
_SLOTS = 8
_HINT = "take -, &, | or ^ of such sets, their len() or sorted(), compare them, or test what is in them"


@dataclass(frozen=True, eq=False, repr=False)
class Unordered:
    """A set.

    Fields:
        values: what it holds, each once, the least first.
    """

    values: Tensor

    @staticmethod
    def of(numbers: Tensor) -> Unordered:
        """The set of ``numbers``, integers in one dim."""
        values = numbers.sort().values
        places = torch.arange(values.shape[0])
        before = values.index_select(0, (places - 1).clamp(min=0))
        return Unordered(values[(places == 0) | (values != before)])

    @property
    def length(self) -> Any:
        return self.values.shape[0]

    @property
    def ordered(self) -> Growing:
        """``sorted(self)``"""
        return Growing.held(self.values)

    @property
    def listed(self) -> Growing:
        """``list(self)``; a call fails in which Python's order is not that of the numbers."""
        in_order = ((self.values >= 0) & (self.values < _SLOTS)).all()
        message = f"a set of numbers that are not from 0 to {_SLOTS - 1} has no order that a graph holds: "
        check(in_order, message + "write sorted(...) in place of list(...)")
        return self.ordered

    def has(self, value: Any) -> Any:
        """``value in self``; a tensor is in no set of numbers, as it is hashed by its identity."""
        if isinstance(value, Tensor) or not is_carried(value):
            return False
        return Number((self.values == as_tensor(value)).any())

    def __eq__(self, other: object) -> Any:
        known = self._compared(other)
        return NotImplemented if known is None else Number(same_rows(self.values, known.values))

    def __ne__(self, other: object) -> Any:
        known = self._compared(other)
        return NotImplemented if known is None else Number(~same_rows(self.values, known.values))

    def __le__(self, other: object) -> Any:
        known = self._compared(other)
        return NotImplemented if known is None else Number(self._is_in(known).all())

    def __ge__(self, other: object) -> Any:
        known = self._compared(other)
        return NotImplemented if known is None else Number(known._is_in(self).all())

    def __lt__(self, other: object) -> Any:
        known = self._compared(other)
        return NotImplemented if known is None else (self <= known) & (self != known)

    def __gt__(self, other: object) -> Any:
        known = self._compared(other)
        return NotImplemented if known is None else (self >= known) & (self != known)

    def _compared(self, other: object) -> Unordered | None:
        """``other`` as such a set; None where it is none of Python's sets either."""
        known = as_set(other)
        if known is None and isinstance(other, (set, frozenset)):
            self._refuse("is compared with a set of what are no integers")
        return known

    def _is_in(self, other: Unordered) -> Tensor:
        """Which values are in ``other``."""
        return (self.values.unsqueeze(1) == other.values).any(1)

    def __sub__(self, other: Any) -> Any:
        return self._chosen(other, keeps=False)

    def __rsub__(self, other: Any) -> Any:
        known = as_set(other)
        return NotImplemented if known is None else known - self

    def __and__(self, other: Any) -> Any:
        return self._chosen(other, keeps=True)

    __rand__ = __and__

    def __or__(self, other: Any) -> Any:
        known = as_set(other)
        return NotImplemented if known is None else Unordered.of(torch.cat([self.values, known.values]))

    __ror__ = __or__

    def __xor__(self, other: Any) -> Any:
        known = as_set(other)
        return NotImplemented if known is None else (self | known) - (self & known)

    __rxor__ = __xor__

    def __ior__(self, other: Any) -> NoReturn:
        self.refuse_in_place()

    __iand__ = __isub__ = __ixor__ = __ior__

    def refuse_in_place(self) -> NoReturn:
        """Such a set changes one in place, or is changed: those who hold that one too would see it."""
        self._refuse("is changed in place, where others may hold it", "write a = a | b in place of a |= b")

    def _chosen(self, other: Any, *, keeps: bool) -> Any:
        """The values that are in ``other``, or those that are not."""
        known = as_set(other)
        if known is None:
            return NotImplemented
        found = self._is_in(known)
        return Unordered(self.values[found if keeps else ~found])

    def __len__(self) -> int:
        self._refuse("is asked for its length in code that is not converted")

    def __bool__(self) -> bool:
        self._refuse("decides in code that is not converted")

    def __iter__(self) -> Iterator[Any]:
        self._refuse("is gone over")

    def __contains__(self, value: Any) -> bool:
        self._refuse("is searched in code that is not converted")

    def __repr__(self) -> str:
        self._refuse("is used as text")

    def __format__(self, form: str) -> str:
        self._refuse("is used as text")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._refuse(f"is asked for its {name}")

    def _refuse(self, what: str, hint: str = _HINT) -> NoReturn:
        raise UnknownNumber(f"a set of which only a call knows the numbers {what}", hint=hint)


def as_set(other: object) -> Unordered | None:
    """``other`` as such a set, where it is a set of integers."""
    if isinstance(other, Unordered):
        return other
    if not isinstance(other, (set, frozenset)) or not all(type(each) is int for each in other):
        return None
    return Unordered(torch.tensor(sorted(other), dtype=torch.int64))
