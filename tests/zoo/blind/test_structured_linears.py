"""Low-rank, block-diagonal and shuffled layers, spelled by somebody who had not seen what recognises them.

Not edited to suit a recogniser. The originals are in ``tests/zoo/test_low_rank``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check

SIZES = [{"S": 6}, {"S": 1}, {"S": 19}]
Layer = Callable[[int, int], nn.Module]


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


class LowRankEinsum(nn.Module):
    def __init__(self, width: int, out: int, rank: int = 6) -> None:
        super().__init__()
        self.down, self.up = zeros(rank, width), zeros(out, rank)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("or,btr->bto", self.up, torch.einsum("btd,rd->btr", x, self.down))


class LowRankColumns(nn.Module):
    """Weights ``[in, out]``, the bias a buffer that is added in place."""

    def __init__(self, width: int, out: int, rank: int = 6) -> None:
        super().__init__()
        self.u, self.v = zeros(width, rank), zeros(rank, out)
        self.register_buffer("bias", torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.u @ self.v
        y += self.bias
        return y


class LowRankRows(nn.Module):
    """Over flat rows, ``mm`` and then ``addmm``."""

    def __init__(self, width: int, out: int, rank: int = 6) -> None:
        super().__init__()
        self.u, self.v, self.bias = zeros(rank, width), zeros(out, rank), zeros(out)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.size()
        low = torch.mm(x.reshape(-1, width), self.u.t())
        return torch.addmm(self.bias, low, self.v.t()).view(batch, length, -1)


class BlockDenseEinsum(nn.Module):
    def __init__(self, width: int, out: int, blocks: int = 4, inner: int = 3) -> None:
        super().__init__()
        self.blocks = blocks
        self.diagonal, self.mix = zeros(blocks, width // blocks, inner), nn.Linear(blocks * inner, out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.blocks, -1))
        x = torch.einsum("btkp,kpq->btkq", x, self.diagonal)
        return self.mix(x.flatten(-2))


class BlockDenseLoop(nn.Module):
    """A small layer for each chunk of the features, their results side by side."""

    def __init__(self, width: int, out: int, blocks: int = 4, inner: int = 3) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(width // blocks, inner, bias=False) for _ in range(blocks))
        self.mix = zeros(blocks * inner, out)

    def forward(self, x: Tensor) -> Tensor:
        chunks = x.chunk(len(self.parts), dim=-1)
        return torch.cat([part(c) for part, c in zip(self.parts, chunks, strict=True)], dim=-1) @ self.mix


class BlockDenseBatched(nn.Module):
    """``baddbmm`` over the blocks, with a bias inside."""

    def __init__(self, width: int, out: int, blocks: int = 4, inner: int = 3) -> None:
        super().__init__()
        self.blocks = blocks
        self.weight, self.bias = zeros(blocks, width // blocks, inner), zeros(blocks, 1, inner)
        self.mix = nn.Linear(blocks * inner, out)

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        rows = x.view(b * t, self.blocks, width // self.blocks).permute(1, 0, 2)
        inner = torch.baddbmm(self.bias, rows, self.weight)
        return self.mix(inner.permute(1, 0, 2).reshape(b, t, -1))


class MonarchEinsum(nn.Module):
    def __init__(self, width: int, out: int, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = blocks
        self.first = zeros(blocks, width // blocks, width // blocks)
        self.second = zeros(blocks, width // blocks, out // blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("btkp,kpq->btkq", x.unflatten(-1, (self.blocks, -1)), self.first)
        x = x.transpose(-1, -2).flatten(-2).unflatten(-1, (self.blocks, -1))
        return torch.einsum("btkq,kqs->btsk", x, self.second).flatten(-2)


class MonarchBroadcast(nn.Module):
    """Each block a row vector times its matrix, by broadcasting."""

    def __init__(self, width: int, out: int, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = blocks
        self.first = zeros(blocks, width // blocks, width // blocks)
        self.second = zeros(blocks, width // blocks, out // blocks)
        self.bias = zeros(out)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-1]
        x = torch.matmul(x.reshape(*lead, self.blocks, 1, -1), self.first).squeeze(-2)
        x = x.mT.reshape(*lead, self.blocks, 1, -1)
        return torch.matmul(x, self.second).squeeze(-2).mT.reshape(*lead, -1) + self.bias


class MonarchGather(nn.Module):
    """The shuffles are permutations of the features that a buffer holds."""

    def __init__(self, width: int, out: int, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = blocks
        self.first = zeros(blocks, width // blocks, width // blocks)
        self.second = zeros(blocks, out // blocks, width // blocks)
        self.register_buffer("between", torch.arange(width).view(blocks, -1).t().flatten())
        self.register_buffer("after", torch.arange(out).view(blocks, -1).t().flatten())

    def blocked(self, x: Tensor, weight: Tensor) -> Tensor:
        parts = x.view(-1, self.blocks, x.shape[-1] // self.blocks).transpose(0, 1)
        return torch.bmm(parts, weight.transpose(1, 2)).transpose(0, 1).reshape(*x.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocked(x, self.first)[..., self.between]
        return self.blocked(x, self.second).index_select(-1, self.after)


class Factors(nn.Module):
    """PELA: two layers one after the other, both with biases."""

    def __init__(self, width: int, out: int, rank: int = 6) -> None:
        super().__init__()
        self.pair = nn.ModuleList([nn.Linear(width, rank), nn.Linear(rank, out)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.pair:
            x = layer(x)
        return x


def with_dropout(width: int, out: int, rank: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, rank, bias=False), nn.Dropout(0.1), nn.Identity(), nn.Linear(rank, out)
    )


class FactorsOfChannels(nn.Module):
    """Channels in front: the layers are 1x1 convolutions over the sequence."""

    def __init__(self, width: int, out: int, rank: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(width, rank, 1, bias=False), nn.Conv1d(rank, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.transpose(1, 2))).transpose(1, 2)


LAYERS = [
    LowRankEinsum,
    LowRankColumns,
    LowRankRows,
    BlockDenseEinsum,
    BlockDenseLoop,
    BlockDenseBatched,
    MonarchEinsum,
    MonarchBroadcast,
    MonarchGather,
    Factors,
    with_dropout,
    FactorsOfChannels,
]


@pytest.mark.parametrize("layer", LAYERS)
def test_one_map(layer: Layer) -> None:
    model = nn.Sequential(layer(16, 24), nn.GELU(approximate="tanh"), layer(24, 16))
    inputs = at_sizes([2, "S", 16], SIZES)
    check(model, *inputs, rewrites={"MergedLinear": 2}, dynamic_shapes=({1: Dim.AUTO},))


class LowRankAttention(nn.Module):
    """PELA inside attention: queries, keys and values by one pair of factors, the output by another."""

    def __init__(self, dim: int = 16, heads: int = 2, rank: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, 3 * dim))
        self.proj = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        weights = F.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(-2))


def test_factors_inside_attention() -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    check(LowRankAttention(), *inputs, rewrites={"MergedLinear": 2}, dynamic_shapes=({1: Dim.AUTO},))
