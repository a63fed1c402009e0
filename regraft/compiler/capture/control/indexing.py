"""Tensors indexed by integers that only a call knows.

torch would ask such an index for its value. Along each dim that has one, the element is selected instead.
"""

# Indices have any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regraft.compiler.capture.control.context import Context, refuse
from regraft.compiler.capture.control.number import Array, Number, unwrapped


def element(tensor: Any, index: Any, context: Context) -> Any:
    """``tensor[index]``; a copy, which is noted, where that is a view of unknown place."""
    undecided = context.tracer.undecided
    index = _sized(index)
    unknown = _unknown(tensor, index, undecided)
    if not unknown:
        return tensor[index]
    found = _selected(tensor, index, unknown)
    context.copied(found, tensor)
    return found


def _selected(tensor: Tensor, index: Any, unknown: set[int]) -> Tensor:
    """A copy of ``tensor[index]``."""
    found = tensor[_plain(index, unknown)]
    for axis, number in reversed(_axes(tensor, index, unknown)):
        found = found.index_select(axis, _position(number, found.shape[axis])).squeeze(axis)
    return found


def update_element(
    value: Any, index: Any, change: Callable[[Any], Any], undecided: Callable[[object], bool]
) -> None:
    """``value[index] = change(value[index])``, where ``change`` may write to what it gets."""
    index = _sized(index)
    unknown = _unknown(value, index, undecided)
    if unknown:
        set_element(value, index, change(_selected(value, index, unknown)), undecided)
    else:
        value[index] = change(value[index])


def set_element(tensor: Any, index: Any, value: Any, undecided: Callable[[object], bool]) -> None:
    """``tensor[index] = value``"""
    index = _sized(index)
    unknown = _unknown(tensor, index, undecided)
    if not unknown:
        tensor[index] = value
        return
    if len(unknown) > 1:
        refuse("a write to a tensor at two indices that only a call knows", "write along one dim at a time")
    view = tensor[_plain(index, unknown)]
    ((axis, number),) = _axes(tensor, index, unknown)
    row = view.select(axis, 0)
    new = torch.as_tensor(unwrapped(value), device=view.device).to(view.dtype).expand(row.shape)
    view.index_copy_(axis, _position(number, view.shape[axis]), new.unsqueeze(axis))


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _unknown(tensor: Any, index: Any, undecided: Callable[[object], bool]) -> set[int]:
    """Where in ``index`` the integers stand that only a call knows."""
    if not isinstance(tensor, Tensor):
        return set()
    parts = _parts(index)
    found = {i for i, part in enumerate(parts) if is_integer(part) and undecided(unwrapped(part))}
    others = [part for i, part in enumerate(parts) if i not in found]
    if found and any(isinstance(part, (Tensor, Number, list, bool)) for part in others):
        refuse(
            "an index that only a call knows stands beside an index that is a tensor or a list",
            "index in two steps",
        )
    return found


def is_integer(part: Any) -> bool:
    """Whether ``part`` is an index of one element that may be known only to a call."""
    part = part.tensor if isinstance(part, Array) else part
    if isinstance(part, Number):
        return part.kind is int
    if not isinstance(part, Tensor) or part.dim():
        return False
    return not part.dtype.is_floating_point and part.dtype not in (torch.bool, torch.uint8)


def _plain(index: Any, unknown: set[int]) -> tuple[Any, ...]:
    return tuple(slice(None) if i in unknown else part for i, part in enumerate(_parts(index)))


def _sized(index: Any) -> Any:
    """``index``, in the slices of which sizes stand for numbers that only a call knows."""
    parts = [_sized_slice(part) if isinstance(part, slice) else part for part in _parts(index)]
    return tuple(parts) if isinstance(index, tuple) else parts[0]


def _sized_slice(part: slice) -> slice:
    ends = (part.start, part.stop, part.step)
    return slice(*(end.as_size() if isinstance(end, Number) else end for end in ends))


def _axes(tensor: Tensor, index: Any, unknown: set[int]) -> list[tuple[int, Any]]:
    """The axes, after the known part of ``index`` is applied, of the unknown ones, and these."""
    parts = _parts(index)
    named = sum(part is not None and part is not Ellipsis for part in parts)
    found: list[tuple[int, Any]] = []
    axis = 0
    for i, part in enumerate(parts):
        if i in unknown:
            found.append((axis, part))
        if part is Ellipsis:
            axis += tensor.dim() - named
        elif i in unknown or part is None or isinstance(part, slice):
            axis += 1
    return found


def _position(number: Any, size: Any) -> Tensor:
    """The index as a tensor of one element; negative ones count from the end."""
    position = unwrapped(number).to(torch.int64)
    return torch.where(position < 0, position + size, position).reshape(1)
