"""Feed-forward networks."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.ffn.gated import GatedFFN

__all__ = ["FFN"]

FFN: tuple[Rewrite, ...] = (GatedFFN(),)
