"""What surrounds a convolution, taken into its weights."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.convolution.batch_norm import ConvBatchNorm
from regraft.rewrites.convolution.branches import (
    ConvBias,
    ConvBranches,
    ConvChain,
    ConvIdentity,
    ConvOfBatchNorm,
)
from regraft.rewrites.convolution.inputs import ConvOfScale, ConvOfShift
from regraft.rewrites.convolution.pointwise import ChannelLinear, PointwiseLinear

CONVOLUTION: tuple[Rewrite, ...] = (
    ConvBatchNorm(),
    ConvBias(),
    ConvBranches(),
    ConvChain(),
    ConvIdentity(),
    ConvOfBatchNorm(),
    ConvOfScale(),
    ConvOfShift(),
    ChannelLinear(),
    PointwiseLinear(),
)
