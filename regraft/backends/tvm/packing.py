"""How a constant weight is laid out for a kernel, as data that needs neither TVM nor the compiler."""

from __future__ import annotations

import contextlib
import math
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

#: Bytes of a huge page. What is smaller has none.
_HUGE = 1 << 21


@dataclass(frozen=True)
class Packing:
    """A relayout of a tensor: zeros at the end of each axis, then a view, then a permutation.

    Fields:
        pad: how many zeros to add at the end of each axis.
        shape: what the padded tensor is viewed as.
        permutation: the order of the view's axes in the packed tensor.
        viewed_as: a type of which one element is all of the last axis then, which the packed tensor is viewed
            as and which takes that axis away.
    """

    pad: tuple[int, ...]
    shape: tuple[int, ...]
    permutation: tuple[int, ...]
    viewed_as: str | None = None

    @property
    def packed_shape(self) -> tuple[int, ...]:
        shape = tuple(self.shape[axis] for axis in self.permutation)
        return shape if self.viewed_as is None else shape[:-1]

    def apply(self, weight: Tensor) -> Tensor:
        """The packed tensor: contiguous, 64-byte aligned, in memory of its own."""
        import torch

        shape = [self.shape[axis] for axis in self.permutation]
        packed = _memory(math.prod(shape) * weight.dtype.itemsize).view(weight.dtype).view(shape)
        padding = [size for extra in reversed(self.pad) for size in (0, extra)]
        padded = torch.nn.functional.pad(weight.detach(), padding)
        packed.copy_(padded.reshape(self.shape).permute(self.permutation))
        assert packed.data_ptr() % 64 == 0, "pages, and what torch allocates, begin at multiples of 64 bytes"
        if self.viewed_as is None:
            return packed
        return packed.view(getattr(torch, self.viewed_as)).squeeze(-1)

    def undo(self, packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The tensor of ``shape`` and ``dtype`` of which ``apply`` made ``packed``."""
        laid_out = packed.view(dtype).reshape([self.shape[axis] for axis in self.permutation])
        inverse = sorted(range(len(self.permutation)), key=self.permutation.__getitem__)
        padded = [size + extra for size, extra in zip(shape, self.pad, strict=True)]
        whole = laid_out.permute(inverse).reshape(padded)
        return whole[tuple(slice(size) for size in shape)].contiguous()


def _memory(size: int) -> Tensor:
    """``size`` bytes, in huge pages where the system has them: a kernel reads a weight from end to end, and
    looks pages up in tables that hold few small ones.
    """
    import torch

    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8, device="cpu")
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages: small ones do
        room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=torch.uint8)
