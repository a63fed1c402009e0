"""What a loop carries for a variable: the parts of its value that may be others after a trip, as tensors."""

# torch's pytrees are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.compiler.capture.control.markers import differ
from regraft.compiler.capture.control.number import (
    Number,
    as_tensor,
    as_truth,
    dtype_of,
    is_carried,
    kind_of,
    type_beside,
)
from regraft.compiler.capture.control.optional import Unlike, in_place_of
from regraft.compiler.capture.control.state import UNBOUND, Lost, same, shown
from regraft.compiler.capture.control.structure import flatten


def as_carried(leaf: Any) -> Any:
    """A Python number as one that a loop may change."""
    return Number(as_tensor(leaf)) if type(leaf) in (bool, int, float) else leaf


def carried_parts(value: Any) -> list[Any]:
    """The parts of ``value`` that a loop carries."""
    leaves = [] if value is UNBOUND else flatten(value)[0]
    return [part for leaf in leaves if _varies(leaf) for part in _parts(leaf)]


def pairs(start: Any, after: Any) -> Iterator[tuple[Any, Any]]:
    """What a loop carries for a variable that starts as ``start``, beside what it is ``after`` a trip."""
    for held, now in zip(flatten(start)[0], flatten(after)[0], strict=True):
        if isinstance(held, Unlike):
            yield from zip(
                _parts(held), _parts(now) if isinstance(now, Unlike) else (False, now), strict=True
            )
        elif _varies(held):
            yield held, now


def _parts(leaf: Any) -> list[Any]:
    """What a loop carries for a part of a value."""
    return [leaf.absent, leaf.tensor] if isinstance(leaf, Unlike) else [leaf]


def _varies(leaf: Any) -> bool:
    """Whether a part of what a loop starts with may be another one after a trip."""
    return isinstance(leaf, (Tensor, Number, Unlike))


def loaded(start: Any, tensors: Iterator[Tensor], *, left: bool) -> Any:
    """What stands for ``start`` in a trip, or after the loop was ``left``, made of the next ``tensors``."""
    if isinstance(start, Unlike):  # in a trip the loop goes on, as it did before
        absent, tensor = next(tensors), next(tensors)
        return Unlike(absent, tensor) if left else tensor
    if isinstance(start, Number):
        return Number(next(tensors))
    return next(tensors) if isinstance(start, Tensor) else start


def fit_rows(rows: Sequence[Tensor], new: Sequence[Any]) -> bool:
    """Whether ``rows`` can hold ``new``, a row of each."""
    return len(rows) == len(new) and all(
        isinstance(each, Tensor)
        and (each.dtype, each.dim() + 1) == (held.dtype, held.dim())
        and not any(map(differ, held.shape[1:], each.shape))
        for held, each in zip(rows, new, strict=True)
    )


def placeholder(leaf: Any) -> Any:
    """A part of the type of ``leaf`` that nobody looks at."""
    if isinstance(leaf, Tensor):
        return in_place_of(leaf)
    return Number(in_place_of(as_tensor(leaf))) if is_carried(leaf) else leaf


def settled(start: Any, after: Any) -> Any | Lost:
    """What a part starts with that has the value ``after`` after a trip, or why there is no such thing."""
    if isinstance(start, Unlike) or (isinstance(start, Tensor) and isinstance(after, Unlike)):
        return _settled_unlike(start, after)
    lost = Lost(
        f"is {shown(start)} before a trip of the loop and {shown(after)} after it",
        "give it the type before the loop that it has in the end",
    )
    if same(start, after) and not _varies(start):
        return start
    if not is_carried(start) or not is_carried(after):
        return lost
    before, dtype = as_tensor(start), dtype_of(after)
    if before.dim() != (after.dim() if isinstance(after, Tensor) else 0):
        return lost
    if isinstance(start, Tensor) and isinstance(after, Tensor):
        return start if before.dtype == dtype else lost
    if isinstance(start, Tensor):  # and a number after a trip
        return start if type_beside(before, kind_of(dtype)) == before.dtype else lost
    if isinstance(after, Tensor):
        return before.to(dtype, copy=True) if type_beside(after, kind_of(before.dtype)) == dtype else lost
    wider = torch.promote_types(before.dtype, dtype)
    return start if _varies(start) and wider == before.dtype else Number(before.to(wider))


def _settled_unlike(start: Tensor | Unlike, after: Any) -> Any | Lost:
    """``settled`` of a tensor that has another type where the loop is left."""
    before, now = (each.tensor if isinstance(each, Unlike) else each for each in (start, after))
    found = settled(before, now)
    if isinstance(found, Lost) or (isinstance(start, Unlike) and found is before):
        return found if isinstance(found, Lost) else start
    return Unlike(as_truth(False), found)
