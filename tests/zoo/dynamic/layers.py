"""Transformer layers that several families share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = tuple[Tensor, Tensor]
"""Keys and values of the positions so far, each [batch, heads, length, head width]."""


class GatedFFN(nn.Module):
    """SwiGLU (Shazeer, arXiv:2002.05202) without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class CachedAttention(nn.Module):
    """Causal self-attention over the positions in a cache and those of ``x``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, past: Cache | None) -> tuple[Tensor, Cache]:
        batch, length, width = x.shape
        query, key, value = (
            project(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        if past is not None:
            key = torch.cat([past[0], key], dim=2)
            value = torch.cat([past[1], value], dim=2)
        scores = query @ key.transpose(2, 3) / query.size(-1) ** 0.5
        seen = torch.ones(length, key.size(2), dtype=torch.bool).tril(key.size(2) - length)
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
        return self.out(mixed), (key, value)


class DecoderLayer(nn.Module):
    """Pre-norm attention with a cache, then a gated FFN."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = CachedAttention(width, heads)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-6)
        self.ffn = GatedFFN(width, hidden)

    def forward(self, x: Tensor, past: Cache | None) -> tuple[Tensor, Cache]:
        attended, cache = self.attention(self.attention_norm(x), past)
        x = x + attended
        return x + self.ffn(self.ffn_norm(x)), cache


class EncoderLayer(nn.Module):
    """BERT's layer, norms after the sums; attention is written out as ALBERT's was."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dense = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.ffn = nn.Linear(width, hidden)
        self.ffn_output = nn.Linear(hidden, width)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-12)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(query, key.transpose(-1, -2)) / query.size(-1) ** 0.5 + mask
        context = torch.matmul(scores.softmax(-1), value).permute(0, 2, 1, 3).contiguous()
        x = self.attention_norm(x + self.dense(context.view(*x.shape)))
        return self.ffn_norm(x + self.ffn_output(F.gelu(self.ffn(x), approximate="tanh")))
