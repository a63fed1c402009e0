"""A diffusion transformer, its sampler, and the papers' step caching written out over it.

DiT: Peebles and Xie, arXiv:2212.09748, ``models.py`` of facebookresearch/DiT, on rows of tokens. DDIM: Song
et al., arXiv:2010.02502. Inner loop feedback (arXiv:2501.13107): a module that starts as a copy of a block,
with a scale of its own, foresees features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Denoise = Callable[..., Tensor]
Decide = Callable[[str, Callable[[], Tensor]], Tensor]
"""Gives the output of the block of a name, and calls the function that computes it only where it has to."""


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DiTBlock(nn.Module):
    """adaLN-Zero: shifts, scales and gates come from the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width)
        self.modulation = nn.Linear(width, 6 * width)

    def modulation_of(self, c: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.unsqueeze(1) for part in self.modulation(F.silu(c)).chunk(6, dim=1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation_of(c)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Feedback(nn.Module):
    """A block, and a scale of its own for what it adds."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.block = DiTBlock(width, heads)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, c: Tensor) -> Tensor:
        return features + self.scale * self.block(features, c)


class DiT(nn.Module):
    def __init__(self, channels: int = 4, width: int = 16, heads: int = 2, depth: int = 4) -> None:
        super().__init__()
        self.width = width
        self.x_embedder = nn.Linear(channels, width)
        self.t_embedder = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final = nn.Linear(width, channels)
        self.feedback = Feedback(width, heads)

    def condition(self, t: Tensor) -> Tensor:
        half = self.width // 2
        rates = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
        angles = t[:, None] * rates.to(t.dtype)
        return self.t_embedder(torch.cat([angles.cos(), angles.sin()], dim=-1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, c = self.x_embedder(x), self.condition(t)
        for block in self.blocks:
            h = block(h, c)
        return self.final(self.norm(h))

    def foresee(self, features: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """What a block gives, from what a later one gave in the step before."""
        return self.feedback(features, self.condition(t))


def ddim(denoise: Denoise, noise: Tensor, steps: int) -> Tensor:
    """A generation without noise on the way, over the cosine schedule."""
    times = torch.linspace(0.98, 0.0, steps + 1)
    signal, sigma = torch.cos(times * math.pi / 2), torch.sin(times * math.pi / 2)
    x = noise
    for i in range(steps):
        epsilon = denoise(x, (times[i] * 1000).expand(x.shape[0]))
        clean = (x - sigma[i] * epsilon) / signal[i]
        x = signal[i + 1] * clean + sigma[i + 1] * epsilon
    return x


def walked(model: DiT, x: Tensor, t: Tensor, decide: Decide) -> Tensor:
    """``model(x, t)``, in which ``decide`` gives the outputs of blocks and of what is in them."""
    h, c = model.x_embedder(x), model.condition(t)
    for i, block in enumerate(model.blocks):
        h = decide(f"blocks.{i}", partial(_walked_block, block, h, c, f"blocks.{i}", decide))
    return model.final(model.norm(h))


def _walked_block(block: DiTBlock, x: Tensor, c: Tensor, name: str, decide: Decide) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation_of(c)
    first = block.norm1(x) * (1 + scale1) + shift1
    x = x + gate1 * decide(f"{name}.attn", lambda: block.attn(first))
    second = block.norm2(x) * (1 + scale2) + shift2
    return x + gate2 * decide(f"{name}.mlp", lambda: block.mlp(second))
