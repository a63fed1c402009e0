"""Attention: what a model spells out, raised to one op with the simplest mask that means the same."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.attention.grouped_heads import GroupedHeads
from regraft.rewrites.attention.masks import AdditiveMask, CausalMask, TrueMask
from regraft.rewrites.attention.rotary import Rotary
from regraft.rewrites.attention.spelled_out import SpelledOutAttention

__all__ = ["ATTENTION"]

ATTENTION: tuple[Rewrite, ...] = (
    AdditiveMask(),
    CausalMask(),
    GroupedHeads(),
    Rotary(),
    SpelledOutAttention(),
    TrueMask(),
)
