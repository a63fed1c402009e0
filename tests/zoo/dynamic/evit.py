"""EViT: a vision transformer that keeps the tokens its class token attends to and fuses the others.

Liang et al., "Not All Patches are What You Need" (ICLR 2022); github.com/youweiliang/evit, ``evit.py``
(``Attention``, ``Block``, ``EViT``) and ``helpers.complement_idx``. The number of tokens kept is fixed; which
ones is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.zoo.dynamic.record import DynamicNetwork, Form, images, no_decisions


def complement_idx(idx: Tensor, dim: int) -> Tensor:
    """``set(range(dim)) - set(idx)`` along the last axis: the kept become 0 and are sorted to the front."""
    n_idx = idx.shape[-1]
    a = torch.arange(dim, device=idx.device)
    for _ in range(1, idx.ndim):
        a = a.unsqueeze(0)
    a = a.expand(*idx.shape[:-1], -1)
    masked = torch.scatter(a, -1, idx, 0)
    compl, _ = torch.sort(masked, dim=-1, descending=False)
    compl = compl.permute(-1, *tuple(range(idx.ndim - 1)))
    return compl[n_idx:].permute(*(*tuple(range(1, idx.ndim)), 0))


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, keep_rate: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.keep_rate = keep_rate

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        x = self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))
        if self.keep_rate < 1:
            left_tokens = math.ceil(self.keep_rate * (N - 1))
            cls_attn = attn[:, :, 0, 1:].mean(dim=1)
            _, idx = torch.topk(cls_attn, left_tokens, dim=1, largest=True, sorted=True)
            index = idx.unsqueeze(-1).expand(-1, -1, C)
            return x, index, idx, cls_attn
        return x, None, None, None


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, keep_rate: float, fuse_token: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, keep_rate)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.fuse_token = fuse_token

    def forward(self, x: Tensor) -> Tensor:
        _, N, C = x.shape
        tmp, index, idx, cls_attn = self.attn(self.norm1(x))
        x = x + tmp
        if index is not None:
            non_cls = x[:, 1:]
            x_others = torch.gather(non_cls, dim=1, index=index)
            if self.fuse_token:
                compl = complement_idx(idx, N - 1)
                non_topk = torch.gather(non_cls, dim=1, index=compl.unsqueeze(-1).expand(-1, -1, C))
                non_topk_attn = torch.gather(cls_attn, dim=1, index=compl)
                extra_token = torch.sum(non_topk * non_topk_attn.unsqueeze(-1), dim=1, keepdim=True)
                x = torch.cat([x[:, 0:1], x_others, extra_token], dim=1)
            else:
                x = torch.cat([x[:, 0:1], x_others], dim=1)
        return x + self.mlp(self.norm2(x))


class EViT(nn.Module):
    """``keep_rates`` has one rate a block; the last shrinking block may fuse or not."""

    def __init__(
        self, image: int, patch: int, dim: int, heads: int, keep_rates: Sequence[float], fuse: Sequence[bool]
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, heads, rate, fuses) for rate, fuses in zip(keep_rates, fuse, strict=True)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x).flatten(2).transpose(1, 2)
        cls_tokens = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat((cls_tokens, x), dim=1) + self.pos_embed
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.norm(x)[:, 0])


_THIRDS = (1.0, 1.0, 1.0, 0.7) * 3

NETWORKS = (
    DynamicNetwork(
        "evit",
        "EViT on DeiT-S, 0.7 of the tokens kept at blocks 3, 7 and 11, image [1, 3, 224, 224]",
        Form(lambda: EViT(16, 4, 16, 2, (1.0, 0.7, 0.5), (False, True, False)), images(1, 16), {(): 96}),
        Form(lambda: EViT(224, 16, 384, 6, _THIRDS, (True,) * 12), images(1, 224), {(): 0}),
        no_decisions,
    ),
)
