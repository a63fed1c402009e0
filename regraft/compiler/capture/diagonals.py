"""Diagonals that are filled in place.

torch fills one through strides, which say nothing of where the elements are.
"""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def _fill(x: Tensor, value: Any, wrap: bool = False) -> Tensor:
    """``x.fill_diagonal_(value, wrap)`` of ``x``, a matrix or a cube of more dims."""
    if x.dim() != 2 or not wrap:
        if x.dim() < 2:
            raise RuntimeError("dimensions must larger than 1")
        if x.dim() > 2 and any(size != x.shape[0] for size in x.shape):
            raise RuntimeError("all dimensions of input must be of equal length")
        diagonal = x
        for _ in range(x.dim() - 1):
            diagonal = diagonal.diagonal(0, 0, -1)
        diagonal.fill_(value)
        return x
    rows, columns = x.shape
    # Behind the last column the diagonal begins again, a row below.
    places = torch.arange(0, rows * columns, columns + 1, device=x.device)
    return x.index_put_((places // columns, places % columns), x.new_full((), value))


FILLS: Mapping[Any, Callable[..., Any]] = {torch.ops.aten.fill_diagonal_.default: _fill}
