"""Feed-forward networks."""

from __future__ import annotations

from regraft.ir import Rewrite
from regraft.rewrites.ffn.gated import GatedFFN
from regraft.rewrites.ffn.plain import PlainFFN
from regraft.rewrites.ffn.streamed import LowRankGatedFFN, StreamedFFN

__all__ = ["FFN"]

FFN: tuple[Rewrite, ...] = (GatedFFN(), PlainFFN(), LowRankGatedFFN(), StreamedFFN())
