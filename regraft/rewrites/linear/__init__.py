"""Algebra of products with constant matrices."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.linear.blocks import BlocksApart
from regraft.rewrites.linear.concatenation import MergedTable, SplitConcatenation
from regraft.rewrites.linear.epilogue import LowRankEpilogue
from regraft.rewrites.linear.merge import MergedLinear
from regraft.rewrites.linear.moves import MovedFull, MovedStack, MovedWithoutOnes
from regraft.rewrites.linear.one_row import OneRowOfBlocks
from regraft.rewrites.linear.ones import SumOfOnes, SumOfProduct
from regraft.rewrites.linear.order import ProductOrder
from regraft.rewrites.linear.scales import (
    DivisionByConstant,
    ScaledInput,
    ScaledLayer,
    ShiftedInput,
    TwinNorm,
)
from regraft.rewrites.linear.shared import SharedProduct
from regraft.rewrites.linear.shuffle import ShuffledFeatures
from regraft.rewrites.linear.sliced import SlicedLayer
from regraft.rewrites.linear.stacks import SummedStack

LINEAR: tuple[Rewrite, ...] = (
    BlocksApart(),
    DivisionByConstant(),
    LowRankEpilogue(),
    MergedLinear(),
    MergedTable(),
    MovedFull(),
    MovedStack(),
    MovedWithoutOnes(),
    OneRowOfBlocks(),
    ProductOrder(),
    ScaledInput(),
    ScaledLayer(),
    SharedProduct(),
    ShiftedInput(),
    ShuffledFeatures(),
    SlicedLayer(),
    SplitConcatenation(),
    SumOfOnes(),
    SumOfProduct(),
    SummedStack(),
    TwinNorm(),
)
