"""Algebra of products with constant matrices."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.linear.concatenation import MergedTable, SplitConcatenation
from regraft.rewrites.linear.epilogue import LowRankEpilogue
from regraft.rewrites.linear.merge import MergedLinear
from regraft.rewrites.linear.moves import MovedOnes
from regraft.rewrites.linear.ones import SumOfOnes
from regraft.rewrites.linear.order import ProductOrder
from regraft.rewrites.linear.scales import ScaledInput, ScaledLayer, ShiftedInput, TwinNorm
from regraft.rewrites.linear.shared import SharedProduct

LINEAR: tuple[Rewrite, ...] = (
    LowRankEpilogue(),
    MergedLinear(),
    MergedTable(),
    MovedOnes(),
    ProductOrder(),
    ScaledInput(),
    ScaledLayer(),
    SharedProduct(),
    ShiftedInput(),
    SplitConcatenation(),
    SumOfOnes(),
    TwinNorm(),
)
