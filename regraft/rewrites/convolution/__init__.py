"""What surrounds a convolution, taken into its weights."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.convolution.batch_norm import ConvBatchNorm
from regraft.rewrites.convolution.branches import ConvBranches, ConvChain, ConvIdentity, ConvOfBatchNorm

CONVOLUTION: tuple[Rewrite, ...] = (
    ConvBatchNorm(),
    ConvBranches(),
    ConvChain(),
    ConvIdentity(),
    ConvOfBatchNorm(),
)
