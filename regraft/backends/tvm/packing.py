"""How a constant weight is laid out for a kernel, as data that needs neither TVM nor the compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """A relayout of a tensor: zeros at the end of each axis, then a view, then a permutation.

    Fields:
        pad: how many zeros to add at the end of each axis.
        shape: what the padded tensor is viewed as.
        permutation: the order of the view's axes in the packed tensor.
    """

    pad: tuple[int, ...]
    shape: tuple[int, ...]
    permutation: tuple[int, ...]

    @property
    def packed_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.permutation)

    def apply(self, weight: Tensor) -> Tensor:
        """The packed tensor: contiguous, 64-byte aligned, in memory of its own."""
        import torch

        packed = torch.empty(self.packed_shape, dtype=weight.dtype)
        padding = [size for extra in reversed(self.pad) for size in (0, extra)]
        padded = torch.nn.functional.pad(weight.detach(), padding)
        packed.copy_(padded.reshape(self.shape).permute(self.permutation))
        assert packed.data_ptr() % 64 == 0, "torch allocates at multiples of 64 bytes"
        return packed
