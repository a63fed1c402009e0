"""What surrounds a convolution, taken into its weights."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.convolution.batch_norm import ConvBatchNorm

__all__ = ["CONVOLUTION"]

CONVOLUTION: tuple[Rewrite, ...] = (ConvBatchNorm(),)
