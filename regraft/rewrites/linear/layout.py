"""Which parts of a tensor's axes count rows of an input and which hold its features.

A row map treats every row of its input ``x[..., n]`` alike: it may split, merge and reorder axes, as long
as no weight meets a row axis. An axis is a product of factors, outermost first: a ``Row`` is one leading
axis of the input, a number holds features.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from regraft.ir import Dim, TensorType, dims


@dataclass(frozen=True)
class Row:
    """The leading axis ``index`` of the input, of ``size`` elements."""

    index: int
    size: Dim


Factor: TypeAlias = Row | int
Axis: TypeAlias = tuple[Factor, ...]
Layout: TypeAlias = tuple[Axis, ...]


def layout_of_input(type: TensorType) -> Layout | None:
    """``x[..., n]``: a row for each leading axis, and the features; None when ``n`` is not a number."""
    width = type.shape[-1]
    if not isinstance(width, int):
        return None
    return (*((Row(i, size),) for i, size in enumerate(type.shape[:-1])), (width,))


def features(axis: Axis) -> int | None:
    """The number of features along ``axis``; None when it counts rows as well."""
    return math.prod(f for f in axis if isinstance(f, int)) if not any(map(is_row, axis)) else None


def is_row(factor: Factor) -> bool:
    return isinstance(factor, Row)


def rows_of(layout: Layout) -> tuple[Row, ...]:
    return tuple(f for axis in layout for f in axis if isinstance(f, Row))


def width(layout: Layout) -> int:
    """The number of features of one row."""
    return math.prod(f for axis in layout for f in axis if isinstance(f, int))


def is_row_major(layout: Layout) -> bool:
    """Whether all rows come first, in the input's order, and the features behind them."""
    flat = [f for axis in layout for f in axis if f != 1]
    rows = rows_of(layout)
    return [f.index for f in rows] == sorted(f.index for f in rows) and list(rows) == flat[: len(rows)]


def sizes(layout: Layout, size_of: Callable[[Row], Dim]) -> tuple[Dim, ...]:
    """The shape of ``layout`` with other numbers of rows."""
    return tuple(dims.product([f if isinstance(f, int) else size_of(f) for f in axis]) for axis in layout)


def same(a: Layout, b: Layout) -> bool:
    """Whether two tensors hold the same rows and as many features at the same places."""
    return list(map(_merged, a)) == list(map(_merged, b))


def _merged(axis: Sequence[Factor]) -> list[Factor]:
    """``axis`` with neighbouring numbers of features multiplied."""
    merged: list[Factor] = []
    for factor in axis:
        if isinstance(factor, int) and merged and isinstance(merged[-1], int):
            merged[-1] *= factor
        elif factor != 1:
            merged.append(factor)
    return merged


def varies_by_features_only(layout: Layout, shape: Sequence[Dim]) -> bool:
    """Whether a constant of ``shape`` broadcasts to ``layout`` and is the same for all rows."""
    if len(shape) > len(layout):
        return False
    tail = layout[len(layout) - len(shape) :]
    return all(size in (1, features(axis)) for axis, size in zip(tail, shape, strict=True))


def batched(axes: Sequence[Axis], shape: Sequence[Dim]) -> Layout | None:
    """The batch axes of a product with a constant of batch axes ``shape``; None when rows meet them."""
    count = max(len(axes), len(shape))
    padded = (*((),) * (count - len(axes)), *axes)
    batch: list[Axis] = []
    for axis, size in zip(padded, (*(1,) * (count - len(shape)), *shape), strict=True):
        if size == 1 or size == features(axis):
            batch.append(axis)
        elif not axis and isinstance(size, int):
            batch.append((size,))
        else:
            return None
    return tuple(batch)


def viewed(layout: Layout, shape: Sequence[Dim]) -> Layout | None:
    """``layout`` in another ``shape``; None when an axis of it would hold a part of a row axis."""
    left = deque(_merged([f for axis in layout for f in axis]))
    found: list[Axis] = []
    for size in shape:
        axis = _taken(left, size, found)
        if axis is None:
            return None
        found.append(axis)
    # What is left has one element.
    return (
        None
        if any(isinstance(f, int) or dims.eq(f.size, 1) is not True for f in left)
        else ((*found[:-1], (*found[-1], *left)) if found else None)
    )


def _taken(left: deque[Factor], size: Dim, before: list[Axis]) -> Axis | None:
    """The next factors of ``left`` that make up ``size``; a row axis of one element may join ``before``."""
    axis: list[Factor] = []
    while dims.eq(size, 1) is not True:
        if not left:
            return None
        factor = left.popleft()
        if isinstance(factor, Row) and factor.size == 1 and before and features(before[-1]) in (None, 1):
            before[-1] = (*before[-1], factor)
            continue
        rest = _quotient(size, factor if isinstance(factor, int) else factor.size)
        if rest is not None:
            axis.append(factor)
            size = rest
        elif isinstance(factor, int) and isinstance(size, int) and size > 0 and factor % size == 0:
            axis.append(size)
            left.appendleft(factor // size)
            size = 1
        else:
            return None
    return tuple(axis)


def _quotient(size: Dim, factor: Dim) -> Dim | None:
    if dims.eq(size, factor) is True:
        return 1
    if factor == 0 or dims.eq(dims.mod(size, factor), 0) is not True:
        return None
    return dims.floordiv(size, factor)
