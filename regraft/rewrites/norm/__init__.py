"""Normalisation layers that a model spells out, raised to one op each.

They build on one another: a core without weights is raised first, and then takes up what surrounds it.
"""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.norm.layer_norm import LayerNorm, LayerNormBias, LayerNormWeight
from regraft.rewrites.norm.rms_norm import RMSNorm, RMSNormCasts, RMSNormWeight

__all__ = ["NORM"]

NORM: tuple[Rewrite, ...] = (
    LayerNorm(),
    LayerNormBias(),
    LayerNormWeight(),
    RMSNorm(),
    RMSNormCasts(),
    RMSNormWeight(),
)
