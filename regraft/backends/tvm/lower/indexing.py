"""Arithmetic on places: flat offsets of row-major memory, and places in one shape from places in another.

Places are TIR expressions or ints; sizes are dims of the IR, turned into expressions by ``size``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from regraft.ir import Dim, dims

Size = Callable[[Dim], Any]


def ravel(index: Sequence[Any], shape: Sequence[Dim], size: Size) -> Any:
    """The offset of ``index`` in a row-major buffer of ``shape``.

    The last place may run over its axis: the offset then runs on into the next row.
    """
    offset: Any = 0
    for place, extent in zip(index, shape, strict=True):
        offset = place if _is_zero(offset) else offset * size(extent) + place
    return offset


def _is_zero(value: Any) -> bool:
    return isinstance(value, int) and value == 0


def unravel(offset: Any, shape: Sequence[Dim], size: Size) -> list[Any]:
    """The place that ``offset`` has in a row-major buffer of ``shape``; axes of size 1 have the place 0."""
    index: list[Any] = [0] * len(shape)
    axes = [axis for axis, extent in enumerate(shape) if dims.eq(extent, 1) is not True]
    for axis in reversed(axes[1:]):
        index[axis] = offset % size(shape[axis])
        offset = offset // size(shape[axis])
    if axes:
        index[axes[0]] = offset
    return index


def blocks(before: Sequence[Dim], after: Sequence[Dim]) -> Iterator[tuple[range, range]]:
    """The axes of two shapes of equally many elements, in the shortest runs that have equally many."""
    lefts, rights = _prefix_products(before), _prefix_products(after)
    i = j = 0
    while i < len(before) or j < len(after):
        cuts = ((a, b) for a in range(i, len(lefts)) for b in range(j, len(rights)) if (a, b) != (i, j))
        same = [(a, b) for a, b in cuts if dims.eq(lefts[a], rights[b]) is True]
        a, b = min(same, key=sum, default=(len(before), len(after)))
        yield range(i, a), range(j, b)
        i, j = a, b


def _prefix_products(shape: Sequence[Dim]) -> list[Dim]:
    return [dims.product(shape[:count]) for count in range(len(shape) + 1)]


def reshaped(index: Sequence[Any], shape: Sequence[Dim], wanted: Sequence[Dim], size: Size) -> list[Any]:
    """The place in ``wanted`` of the element that is at ``index`` in ``shape``."""
    found: list[Any] = [0] * len(wanted)
    for own, others in blocks(shape, wanted):
        inner = [shape[axis] for axis in own]
        offset = ravel([index[axis] for axis in own], inner, size)
        places = unravel(offset, [wanted[axis] for axis in others], size)
        for axis, place in zip(others, places, strict=True):
            found[axis] = place
    return found


def needs_division(shape: Sequence[Dim], wanted: Sequence[Dim]) -> bool:
    """Whether ``reshaped`` divides: it does where an axis of ``shape`` holds several of ``wanted``."""
    return any(
        sum(dims.eq(wanted[axis], 1) is not True for axis in others) > 1
        and [shape[axis] for axis in own] != [wanted[axis] for axis in others]
        for own, others in blocks(shape, wanted)
    )
