"""Tensors indexed by integers that only a call knows, and cut at them.

torch would ask such an index for its value. Along each dim that has one, the elements are selected instead.
"""

# Indices have any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true

from regraft.compiler.capture.control.context import Context, refuse
from regraft.compiler.capture.control.exact import converted
from regraft.compiler.capture.control.growing import Growing
from regraft.compiler.capture.control.number import Array, Number, as_tensor, unwrapped


def element(tensor: Any, index: Any, context: Context) -> Any:
    """``tensor[index]``; a copy, which is noted, where that is a view of unknown place."""
    undecided = context.tracer.undecided
    tensor, index = _with_masks(tensor, _with_tensors(index), undecided)
    unknown = _unknown(tensor, index, undecided)
    if not unknown:
        return tensor[index]
    found = _selected(tensor, index, unknown)
    context.copied(found, tensor)
    return found


def _selected(tensor: Tensor, index: Any, unknown: set[int]) -> Tensor:
    """A copy of ``tensor[index]``."""
    found = tensor[_plain(index, unknown)]
    for axis, part in reversed(_axes(tensor, index, unknown)):
        selected = found.index_select(axis, _positions(part, found.shape[axis]))
        found = selected if isinstance(part, slice) else selected.squeeze(axis)
    return found


def update_element(
    value: Any, index: Any, change: Callable[[Any], Any], undecided: Callable[[object], bool]
) -> None:
    """``value[index] = change(value[index])``, where ``change`` may write to what it gets."""
    value, index = _with_masks(value, _with_tensors(index), undecided)
    unknown = _unknown(value, index, undecided)
    if unknown:
        set_element(value, index, change(_selected(value, index, unknown)), undecided)
    else:
        value[index] = change(value[index])


def set_element(tensor: Any, index: Any, value: Any, undecided: Callable[[object], bool]) -> None:
    """``tensor[index] = value``"""
    tensor, index = _with_masks(tensor, _with_tensors(index), undecided)
    unknown = _unknown(tensor, index, undecided)
    if not unknown:
        tensor[index] = value
        return
    if len(unknown) > 1:
        refuse("a write to a tensor at two indices that only a call knows", "write along one dim at a time")
    view = tensor[_plain(index, unknown)]
    ((axis, part),) = _axes(tensor, index, unknown)
    places = _positions(part, view.shape[axis])
    if isinstance(value, Number):
        value = converted(value.tensor, view.dtype, is_filling=True)
    new = torch.as_tensor(unwrapped(value), device=view.device).to(view.dtype)
    if not isinstance(part, slice):
        new = new.expand(view.select(axis, 0).shape).unsqueeze(axis)
    sizes = [*view.shape[:axis], places.shape[0], *view.shape[axis + 1 :]]
    view.index_copy_(axis, places, new.expand(sizes))


def _with_tensors(index: Any) -> Any:
    """``index`` with tensors in the place of lists of numbers that only a call knows."""
    if isinstance(index, tuple):
        return tuple(map(_with_tensors, index))
    if isinstance(index, Growing) and index.kind is not None:
        return index.values
    if isinstance(index, list) and any(isinstance(each, Number) for each in index):
        return torch.stack([as_tensor(each) for each in index])
    return index


def _with_masks(tensor: Any, index: Any, undecided: Callable[[object], bool]) -> tuple[Any, Any]:
    """``tensor`` and ``index`` with a mask of one dim, and an axis of 1 for it, for each truth value in it.

    That is how torch has these: ``x[flag]`` is ``x.unsqueeze(0)`` where the flag holds, else none of it.
    """
    if not isinstance(tensor, Tensor) or not any(_is_flag(part, undecided) for part in _parts(index)):
        return tensor, index
    taken = [_taken(part, undecided) for part in _parts(index)]
    axis, parts = 0, list[Any]()
    for part, count in zip(_parts(index), taken, strict=True):
        if part is Ellipsis:
            axis += tensor.dim() - sum(taken)
        elif _is_flag(part, undecided):
            tensor, part = tensor.unsqueeze(axis), unwrapped(part).reshape(1)
            taken, axis = [*taken, 1], axis + 1
        axis += count
        parts.append(part)
    return tensor, tuple(parts)


def _is_flag(part: Any, undecided: Callable[[object], bool]) -> bool:
    """Whether ``part`` of an index is a truth value that only a call knows."""
    if isinstance(part, Number):
        return part.kind is bool
    held = unwrapped(part)
    return isinstance(held, Tensor) and not held.dim() and held.dtype == torch.bool and undecided(held)


def _taken(part: Any, undecided: Callable[[object], bool]) -> int:
    """How many axes of a tensor ``part`` of an index is for."""
    if part is None or part is Ellipsis or type(part) is bool or _is_flag(part, undecided):
        return 0
    held = unwrapped(part)
    return held.dim() if isinstance(held, Tensor) and held.dtype == torch.bool else 1


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _unknown(tensor: Any, index: Any, undecided: Callable[[object], bool]) -> set[int]:
    """Where in ``index`` the integers stand that only a call knows, and the slices with such an end."""
    if not isinstance(tensor, Tensor):
        return set()
    parts = _parts(index)

    found = {i for i, part in enumerate(parts) if _is_unknown(part, undecided)}
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


def _is_unknown(part: Any, undecided: Callable[[object], bool]) -> bool:
    """Whether only a call knows an index, or an end of a slice."""
    if isinstance(part, slice):
        ends = (part.start, part.stop, part.step)
        return any(_is_signless(end) or _is_unknown(end, undecided) for end in ends)
    return is_integer(part) and undecided(unwrapped(part))


def _is_signless(end: Any) -> bool:
    """Whether an end of a slice is an expression of sizes of which torch does not know the sign."""
    if not isinstance(end, torch.SymInt) or not free_unbacked_symbols(end):
        return False
    return not statically_known_true(end >= 0) and not statically_known_true(end < 0)


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


def _positions(part: Any, size: Any) -> Tensor:
    """The places of an index along an axis of ``size``, or of a slice; negative ones count from the end."""
    if not isinstance(part, slice):
        return _counted(part, size).reshape(1)
    step = 1 if part.step is None else part.step
    if type(step) is not int:
        refuse("a slice whose step only a call knows", "take a step that is a Python number")
    if step < 1:
        raise ValueError("slice step must be positive")
    start = torch.zeros((), dtype=torch.int64) if part.start is None else _bounded(part.start, size)
    stop = as_tensor(size) if part.stop is None else _bounded(part.stop, size)
    count = ((stop - start + step - 1) // step).clamp(min=0)
    return torch.arange(Number(count).as_size()) * step + start


def _bounded(end: Any, size: Any) -> Tensor:
    """An end of a slice, counted from the front and within the axis."""
    number, length = _integer(end), as_tensor(size)
    return torch.where(number < 0, number + length, number).clamp(min=0).minimum(length)


def _counted(place: Any, size: Any) -> Tensor:
    """A place counted from the front; one below the first stays out of range, behind the last."""
    number, length = _integer(place), as_tensor(size)
    from_the_end = number + length
    return torch.where(number < 0, torch.where(from_the_end < 0, length, from_the_end), number)


def _integer(number: Any) -> Tensor:
    return as_tensor(unwrapped(number)).to(torch.int64)
