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
from regraft.compiler.capture.control.number import Number, unwrapped


def element(tensor: Any, index: Any, context: Context) -> Any:
    """``tensor[index]``; a copy, which is noted, where that is a view of unknown place."""
    undecided = context.tracer.undecided
    unknown = _unknown(tensor, index, undecided)
    if not unknown:
        return tensor[index]
    view = tensor[_plain(index, unknown)]
    for axis, number in reversed(_axes(tensor, index, unknown)):
        view = view.index_select(axis, _position(number, view.shape[axis])).squeeze(axis)
    context.copied(view, tensor)
    return view


def set_element(tensor: Any, index: Any, value: Any, undecided: Callable[[object], bool]) -> None:
    """``tensor[index] = value``"""
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
    found = {i for i, part in enumerate(parts) if _is_integer(part) and undecided(unwrapped(part))}
    others = [part for i, part in enumerate(parts) if i not in found]
    if found and any(isinstance(part, (Tensor, Number, list, bool)) for part in others):
        refuse(
            "an index that only a call knows stands beside an index that is a tensor or a list",
            "index in two steps",
        )
    return found


def _is_integer(part: Any) -> bool:
    if isinstance(part, Number):
        return part.kind is int
    if not isinstance(part, Tensor) or part.dim():
        return False
    return not part.dtype.is_floating_point and part.dtype not in (torch.bool, torch.uint8)


def _plain(index: Any, unknown: set[int]) -> tuple[Any, ...]:
    return tuple(slice(None) if i in unknown else part for i, part in enumerate(_parts(index)))


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
