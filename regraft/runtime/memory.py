"""Memory for results, used again once nobody reads them any more.

A large block is new to the process each time it is allocated, unless the allocator happens to keep it: the
system then clears every page at its first touch. That takes microseconds a page (3 ms for 6 MB on a virtual
machine), which results that are cheap to compute cost less than.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Bytes from which on a result is worth the upkeep: what glibc maps anew for each allocation.
LARGE = 128 * 1024
#: Where cache lines and vectors of a CPU begin.
_ALIGNMENT = 64
#: A caller has the last result still while the next one is made.
_KEPT = 2


class ResultMemory:
    """The memory of one result of calls that do not overlap.

    It keeps the blocks of the last two results. One is used again only when nothing holds it: no tensor, and
    nothing that shares a tensor's memory (a view, a NumPy array, a DLPack capsule).
    """

    def __init__(self) -> None:
        self._blocks: list[_Block] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor whose values are arbitrary. A large one is not resizable."""
        size = math.prod(shape) * dtype.itemsize
        if size < LARGE:
            return torch.empty(shape, dtype=dtype, device="cpu")
        block = next((b for b in self._blocks if b.is_free and size <= b.size <= 2 * size), None)
        if block is None:
            block = _Block(size)
            self._blocks = [*self._blocks[1 - _KEPT :], block]
        return torch.frombuffer(block.lent(size), dtype=dtype).resize_(shape)


class _Block:
    """``size`` bytes of memory, and whether they are lent."""

    def __init__(self, size: int) -> None:
        room = np.empty(size + _ALIGNMENT, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT
        self.size = size
        self._bytes = room[start : start + size]
        self._lent: weakref.ref[Any] | None = None

    @property
    def is_free(self) -> bool:
        return self._lent is None or self._lent() is None

    def lent(self, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The first ``size`` bytes: on loan as long as the array lives."""
        part = self._bytes[:size]
        self._lent = weakref.ref(part)
        return part
