"""A variable that is a tensor on some paths, and None or a tensor of another type on the others."""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from regraft.compiler.capture.control.exact import check
from regraft.compiler.capture.control.number import Choice, Condition, Number, UnknownNumber, as_truth


class Maybe:
    """What ``tensor`` is, or None where ``absent`` holds; ``tensor`` is then anything of its type.

    Only variables hold it: converted code reads them by ``held``, which knows in an arm of ``x is None``
    which of the two it is.
    """

    def __init__(self, absent: Tensor, tensor: Tensor) -> None:
        self.absent = absent
        self.tensor = tensor
        self._condition = Condition()

    @property
    def is_none(self) -> bool | Number:
        """``self is None``"""
        if self._condition.path is not None:
            return self._condition.path == _ABSENT
        return Number(self.absent, Choice(self._condition, (True, False)))

    @property
    def held(self) -> Tensor | None:
        if self._condition.path is None:
            raise UnknownNumber(
                "a variable is read where it may be a tensor or None, as a tensor decides",
                hint="read it under `if x is not None`, or give it a tensor on both paths",
            )
        return None if self._condition.path == _ABSENT else self.tensor

    @staticmethod
    def of(value: Any, other: Any) -> Any:
        """``value``, a tensor, None or ``Maybe``, as a ``Maybe`` if ``other``, of another path, needs it."""
        tensor = other.tensor if isinstance(other, Maybe) else other
        if isinstance(value, Tensor) and (other is None or isinstance(other, Maybe)):
            return (type(other) if isinstance(other, Maybe) else Maybe)(as_truth(False), value)
        if value is None and isinstance(tensor, Tensor):
            return Maybe(as_truth(True), in_place_of(tensor))
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


def in_place_of(tensor: Tensor) -> Tensor:
    """A tensor of the type of ``tensor`` that nobody looks at."""
    sizes = [1 if free_unbacked_symbols(size) else size for size in tensor.shape]
    return torch.zeros(sizes, dtype=tensor.dtype, device=tensor.device)


def are_unlike(first: Any, second: Any) -> bool:
    """Whether a variable with these values on two paths is a tensor of two types."""
    one, other = (each.tensor if isinstance(each, Unlike) else each for each in (first, second))
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.dtype != other.dtype or one.dim() != other.dim()


def may_be_none(first: Any, second: Any) -> bool:
    """Whether a variable with these values on two paths is a tensor, None or ``Maybe``, and not one kind."""
    kinds = {_kind(value) for value in (first, second)}
    return len(kinds) == 2 and None not in kinds


def _kind(value: Any) -> str | None:
    if value is None:
        return "none"
    if isinstance(value, Maybe):
        return "maybe"
    return "tensor" if isinstance(value, Tensor) else None
