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

from regraft.compiler.capture.control.growing import Growing
from regraft.compiler.capture.control.number import Number, UnknownNumber, as_tensor

#: A set of integers from 0 on, all below the size of its smallest table, is gone over in their order: each
#: stands in the slot of its own number. Beyond that the order depends on how the set has come about.
_SLOTS = 8


@dataclass(frozen=True, eq=False)
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
        torch.ops.aten._assert_async.msg(in_order, message + "write sorted(...) in place of list(...)")
        return self.ordered

    def has(self, value: Any) -> Number:
        """``value in self``"""
        return Number((self.values == as_tensor(value)).any())

    def __sub__(self, other: Any) -> Any:
        return self._chosen(other, keeps=False)

    def __rsub__(self, other: Any) -> Any:
        known = _as_set(other)
        return NotImplemented if known is None else known - self

    def __and__(self, other: Any) -> Any:
        return self._chosen(other, keeps=True)

    __rand__ = __and__

    def __or__(self, other: Any) -> Any:
        known = _as_set(other)
        return NotImplemented if known is None else Unordered.of(torch.cat([self.values, known.values]))

    __ror__ = __or__

    def _chosen(self, other: Any, *, keeps: bool) -> Any:
        """The values that are in ``other``, or those that are not."""
        known = _as_set(other)
        if known is None:
            return NotImplemented
        found = (self.values.unsqueeze(1) == known.values).any(1)
        return Unordered(self.values[found if keeps else ~found])

    def __len__(self) -> int:
        self._refuse("is asked for its length in code that is not converted")

    def __bool__(self) -> bool:
        self._refuse("decides in code that is not converted")

    def __iter__(self) -> Iterator[Any]:
        self._refuse("is gone over")

    def __contains__(self, value: Any) -> bool:
        self._refuse("is searched in code that is not converted")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        self._refuse(f"is asked for its {name}")

    def _refuse(self, what: str) -> NoReturn:
        raise UnknownNumber(
            f"a set of which only a call knows the numbers {what}",
            hint="take -, & or | of such sets, their len() or sorted(), or test what is in them",
        )


def _as_set(other: Any) -> Unordered | None:
    """``other`` as such a set, where it is a set of integers."""
    if isinstance(other, Unordered):
        return other
    if not isinstance(other, (set, frozenset)) or not all(type(each) is int for each in other):
        return None
    return Unordered(torch.tensor(sorted(other), dtype=torch.int64))
