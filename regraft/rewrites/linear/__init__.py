"""Algebra of products with constant matrices."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.linear.merge import MergedLinear

LINEAR: tuple[Rewrite, ...] = (MergedLinear(),)
