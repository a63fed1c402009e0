"""Memory for results, used again once nobody reads them any more.

A large block is new to the process each time it is allocated, unless the allocator happens to keep it: the
system then clears every page at its first touch. That takes microseconds a page (3 ms for 6 MB on a virtual
machine), which results that are cheap to compute cost less than.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Bytes from which on a result is worth the upkeep: what glibc maps anew for each allocation.
LARGE = 128 * 1024
#: Where cache lines and vectors of a CPU begin.
_ALIGNMENT = 64
#: The types that NumPy has too.
_TYPES: Mapping[torch.dtype, type[np.generic]] = {
    torch.bool: np.bool_,
    torch.uint8: np.uint8,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
}
#: Stands in for others, by bytes.
_WORDS: Mapping[int, type[np.generic]] = {1: np.uint8, 2: np.int16}
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
        return block.lent(shape, dtype)


class _Block:
    """``size`` bytes of memory, and whether they are lent.

    After a large model has run, code and data that a call needs are in no cache, so that each call of a
    library costs tens of microseconds. A loan takes one of NumPy and one of torch, two for
    types that NumPy lacks.
    """

    def __init__(self, size: int) -> None:
        room = np.empty(size + _ALIGNMENT, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT
        self.size = size
        self._bytes = room[start : start + size]
        self._kind: tuple[tuple[int, ...], torch.dtype] | None = None
        self._array: np.ndarray[Any, Any] = self._bytes
        self._lent: weakref.ref[Any] | None = None

    @property
    def is_free(self) -> bool:
        return self._lent is None or self._lent() is None

    def lent(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of the first bytes: on loan as long as an array of NumPy lives, which the tensor holds."""
        if self._kind != (shape, dtype):
            size, word = math.prod(shape) * dtype.itemsize, _TYPES.get(dtype)
            self._array = self._bytes[:size].view(word or _WORDS[dtype.itemsize]).reshape(shape)
            self._kind = shape, dtype
        part = self._array[:]
        self._lent = weakref.ref(part)
        tensor = torch.from_numpy(part)
        return tensor if tensor.dtype is dtype else tensor.view(dtype)


def lasting(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Memory for a result that stays at one place from call to call; None for a large one, which would be
    held for longer than anybody reads it.
    """
    return None if math.prod(shape) * dtype.itemsize >= LARGE else _own(shape, dtype)


def lasting_flag() -> Tensor:
    """The same for a single bool."""
    return _own((), torch.bool)


def byte_of(flag: Tensor) -> memoryview:
    """The byte of a single bool that stays at its place: torch takes ten times as long to read it."""
    return flag.numpy().reshape(1).view(np.uint8).data


def _own(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # which may be on in the call that happens to be the first
        return torch.empty(shape, dtype=dtype, device="cpu")
