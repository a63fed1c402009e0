"""A variable that is a tensor or a number on some paths, and None or another type of tensor on the others."""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from regraft.compiler.capture.control.exact import check
from regraft.compiler.capture.control.number import (
    Choice,
    Condition,
    Number,
    UnknownNumber,
    as_tensor,
    as_truth,
    dtype_of,
    is_carried,
)


class Maybe:
    """What ``tensor`` is, or None where ``absent`` holds; ``tensor`` is then anything of its type.

    Where it ``is_number`` it holds one of Python's. Only variables hold a ``Maybe``: converted code reads
    them by ``held``, which knows in an arm of ``x is None`` which of the two it is.
    """

    def __init__(self, absent: Tensor, tensor: Tensor, *, is_number: bool = False) -> None:
        self.absent = absent
        self.tensor = tensor
        self.is_number = is_number
        self._condition = Condition()

    def alike(self, absent: Tensor, tensor: Tensor) -> Maybe:
        """One of this kind that holds these."""
        return type(self)(absent, tensor, is_number=self.is_number)

    def fits(self, other: Maybe) -> bool:
        """Whether both hold numbers of one kind, or tensors of one dtype and number of dims."""
        one, two = self.tensor, other.tensor
        return self.is_number == other.is_number and one.dtype == two.dtype and one.dim() == two.dim()

    @property
    def is_known(self) -> bool:
        """Whether what is traced now is an arm that knows which of the two it is."""
        return self._condition.path is not None

    @property
    def is_none(self) -> bool | Number:
        """``self is None``"""
        if self._condition.path is not None:
            return self._condition.path == _ABSENT
        return Number(self.absent, Choice(self._condition, (True, False)))

    @property
    def held(self) -> Any:
        if self._condition.path is None:
            kind, other = ("number", "number, such as -1,") if self.is_number else ("tensor", "tensor")
            raise UnknownNumber(
                f"a variable is read where it may be a {kind} or None, as a tensor decides",
                hint=f"read it under `if x is not None`, or give it a {other} on both paths",
            )
        if self._condition.path == _ABSENT:
            return None
        return Number(self.tensor) if self.is_number else self.tensor

    @staticmethod
    def of(value: Any, other: Any) -> Any:
        """``value``, a tensor, a number, None or ``Maybe``, as a ``Maybe`` if ``other`` needs it.

        ``other`` is what another path has.
        """
        if _kind(value) == _VALUE and (other is None or isinstance(other, Maybe)):
            if isinstance(other, Unlike):
                return Unlike(as_truth(False), value) if isinstance(value, Tensor) else value
            return Maybe(as_truth(False), as_tensor(value), is_number=not isinstance(value, Tensor))
        if value is None and isinstance(other, Maybe):
            return Maybe(as_truth(True), in_place_of(other.tensor), is_number=other.is_number)
        if value is None and _kind(other) == _VALUE:
            if isinstance(other, Tensor):
                return Maybe(as_truth(True), in_place_of(other))
            return Maybe(as_truth(True), torch.zeros((), dtype=dtype_of(other)), is_number=True)
        return value


class Unlike(Maybe):
    """What ``tensor`` is, or a tensor of another type where ``absent`` holds, since a loop was left there.

    Code that reads it after the loop is code for ``tensor``: a call fails in which it reads another one.
    """

    @property
    def is_none(self) -> bool | Number:
        return False

    @property
    def held(self) -> Tensor | None:
        message = (
            "a variable is read that has another dtype or number of dims where the loop before was left: "
            "give it one type before the `break`"
        )
        check(~self.absent, message)
        return self.tensor

    @staticmethod
    def left(value: Any, other: Any, *, leaves: bool) -> Any:
        """``value`` of a path that ``leaves`` a loop, or goes on; ``other`` is that of the other path."""
        if not leaves:
            return value if isinstance(value, Unlike) else Unlike(as_truth(False), value)
        return Unlike(as_truth(True), in_place_of(other.tensor if isinstance(other, Unlike) else other))


#: The path of the condition of a ``Maybe`` on which it is None.
_ABSENT = 0
_VALUE = "value"


def in_place_of(tensor: Tensor) -> Tensor:
    """A tensor of the type of ``tensor`` that nobody looks at."""
    sizes = [1 if free_unbacked_symbols(size) else size for size in tensor.shape]
    return torch.zeros(sizes, dtype=tensor.dtype, device=tensor.device)


def dtype_held(value: Any) -> torch.dtype | None:
    """The dtype of ``value`` if it is, or may be, a number."""
    if isinstance(value, Maybe):
        return value.tensor.dtype if value.is_number else None
    return None if isinstance(value, Tensor) or not is_carried(value) else dtype_of(value)


def are_unlike(first: Any, second: Any) -> bool:
    """Whether a variable with these values on two paths is a tensor of two types."""
    one, other = (each.tensor if isinstance(each, Unlike) else each for each in (first, second))
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.dtype != other.dtype or one.dim() != other.dim()


def may_be_none(first: Any, second: Any) -> bool:
    """Whether a variable with these values on two paths is None, ``Maybe`` or carried, and not one kind."""
    kinds = {_kind(value) for value in (first, second)}
    return len(kinds) == 2 and None not in kinds


def _kind(value: Any) -> str | None:
    if value is None:
        return "none"
    if isinstance(value, Maybe):
        return "maybe"
    return _VALUE if is_carried(value) else None
