"""Algebra of products with constant matrices."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.linear.merge import MergedLinear
from regraft.rewrites.linear.ones import SumOfOnes
from regraft.rewrites.linear.order import ProductOrder

LINEAR: tuple[Rewrite, ...] = (MergedLinear(), ProductOrder(), SumOfOnes())
