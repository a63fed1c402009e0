"""Structured linear layers of feed-forward networks, and LoRA, as their authors write them.

- StructuredFFN: CLAIRE-Labo/StructuredFFN, src/modules/op: low_rank.py, block_dense.py, block_shuffle.py.
- PELA: guoyang9/PELA, DeiT/low_rank.py: each linear layer as a Sequential of two.
- LoRA: Hu et al. 2021, arXiv:2106.09685, equation 3; microsoft/LoRA, loralib/layers.py (``Linear.forward``).
- DoRA: Liu et al. 2024, arXiv:2402.09353, equation 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check

SIZES = [{"S": 6}, {"S": 1}, {"S": 33}]


class LowRank(nn.Module):
    def __init__(self, in_features: int, out_features: int, rank: int = 8) -> None:
        super().__init__()
        self.lr1 = nn.Parameter(torch.empty(rank, in_features).normal_())
        self.lr2 = nn.Parameter(torch.empty(out_features, rank).normal_())

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.lr1)
        return F.linear(out, self.lr2)


class BlockDense(nn.Module):
    """Block-diagonal, then dense: ``x -> [T, k, p] -> bmm -> [T, k q] -> linear``."""

    def __init__(self, in_features: int, out_features: int, rank: int = 12, nblocks: int = 4) -> None:
        super().__init__()
        self.nblocks, self.rank = nblocks, rank
        self.blkdiag = nn.Parameter(torch.empty(nblocks, rank // nblocks, in_features // nblocks).normal_())
        self.lr = nn.Parameter(torch.empty(out_features, rank).normal_())

    def forward(self, x: Tensor) -> Tensor:
        bs, seq, _ = x.shape
        x = x.reshape(bs * seq, self.nblocks, -1).transpose(0, 1)
        out = torch.bmm(x, self.blkdiag.transpose(-1, -2)).transpose(0, 1).reshape(bs * seq, -1)
        return F.linear(out, self.lr).reshape(bs, seq, -1)


class BlockShuffle(nn.Module):
    """Two block-diagonal products with a shuffle after each (Monarch)."""

    def __init__(self, in_features: int, out_features: int, nblocks: int = 4) -> None:
        super().__init__()
        small = in_features < out_features
        inner = in_features if small else out_features
        self.nblocks = nblocks
        self.blkdiag1 = nn.Parameter(torch.empty(nblocks, inner // nblocks, in_features // nblocks).normal_())
        self.blkdiag2 = nn.Parameter(
            torch.empty(nblocks, out_features // nblocks, inner // nblocks).normal_()
        )

    def forward(self, x: Tensor) -> Tensor:
        batch_shape, batch_dim = x.shape[:-1], math.prod(x.shape[:-1])
        k, _, p = self.blkdiag1.shape
        blocks, s, r = self.blkdiag2.shape
        x = x.reshape(batch_dim, k, p).transpose(0, 1)
        out1 = torch.bmm(x, self.blkdiag1.transpose(-1, -2)).transpose(0, 1)
        out1 = out1.reshape(batch_dim, r, blocks).transpose(-1, -2).contiguous().transpose(0, 1)
        out2 = torch.bmm(out1, self.blkdiag2.transpose(-1, -2))
        return out2.permute(1, 2, 0).reshape(*batch_shape, s * blocks)


class MLP(nn.Module):
    """fc1 -> bias and tanh-GELU -> fc2, both linear layers structured; biases are added outside of them."""

    def __init__(self, layer: Callable[[int, int], nn.Module], width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.fc1, self.fc2 = layer(width, hidden), layer(hidden, width)
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.fc1(x) + self.bias1, approximate="tanh")
        return self.fc2(h) + self.bias2


@pytest.mark.parametrize("layer", [LowRank, BlockDense, BlockShuffle])
def test_structured_ffn(layer: Callable[[int, int], nn.Module]) -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    check(MLP(layer), *inputs, rewrites={"MergedLinear": 2}, dynamic_shapes=({1: Dim.AUTO},))
    check(MLP(layer), inputs[0], rewrites={"MergedLinear": 2})


def pela(model: nn.Module, compress_ratio: float = 3.0, omitted: Sequence[str] = ()) -> nn.Module:
    """Every linear layer of ``model`` as ``Sequential(Linear(n, r, bias=False), Linear(r, m, bias))``."""
    for name, child in model.named_children():
        if isinstance(child, nn.Linear) and name not in omitted and child.out_features >= 10:
            n, m = child.in_features, child.out_features
            rank = max(1, math.floor(n * m / (compress_ratio * (n + m))))
            first, second = nn.Linear(n, rank, bias=False), nn.Linear(rank, m, bias=child.bias is not None)
            setattr(model, name, nn.Sequential(first, second))
        else:
            pela(child, compress_ratio, omitted)
    return model


class Mlp(nn.Module):
    """timm's, which DeiT uses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc2(self.act(self.fc1(x))))


def test_pela() -> None:
    # fc2's two layers and the head are three products one after the other: one map.
    inputs = at_sizes([3, "S", 24], SIZES)
    check(pela(Mlp()), *inputs, rewrites={"MergedLinear": 2}, dynamic_shapes=({1: Dim.AUTO},))


class LoRALinear(nn.Linear):
    """loralib's layer, in eval mode but not merged."""

    def __init__(self, in_features: int, out_features: int, r: int = 4, lora_alpha: int = 8) -> None:
        super().__init__(in_features, out_features)
        self.lora_A = nn.Parameter(torch.zeros(r, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r))
        self.scaling = lora_alpha / r
        self.lora_dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        result = F.linear(x, self.weight, bias=self.bias)
        dropped = self.lora_dropout(x)
        return result + dropped @ self.lora_A.transpose(0, 1) @ self.lora_B.transpose(0, 1) * self.scaling


class PeftLinear(nn.Module):
    """peft's spelling: layers in dictionaries by adapter, here two at once."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(width, out)
        self.lora_A = nn.ModuleDict({n: nn.Linear(width, 4, bias=False) for n in ("default", "other")})
        self.lora_B = nn.ModuleDict({n: nn.Linear(4, out, bias=False) for n in ("default", "other")})
        self.scaling = {"default": 2.0, "other": 0.5}

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        for name in self.lora_A:
            result = result + self.lora_B[name](self.lora_A[name](x)) * self.scaling[name]
        return result


class DoRALinear(nn.Module):
    """``(W + s B A) m / ||W + s B A||``, the norm taken anew in each forward."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, width).normal_())
        self.lora_A, self.lora_B = nn.Parameter(torch.zeros(3, width)), nn.Parameter(torch.zeros(out, 3))
        self.m = nn.Parameter(torch.ones(out, 1))

    def forward(self, x: Tensor) -> Tensor:
        adapted = self.weight + 0.5 * (self.lora_B @ self.lora_A)
        norm = torch.linalg.vector_norm(adapted, dim=1, keepdim=True)
        return F.linear(x, self.m * adapted / norm)


@pytest.mark.parametrize("layer", [LoRALinear, PeftLinear])
def test_lora(layer: Callable[[int, int], nn.Module]) -> None:
    model = nn.Sequential(layer(16, 24), nn.GELU(), layer(24, 16))
    inputs = at_sizes([2, "S", 16], SIZES)
    compiled = check(model, *inputs, rewrites={"MergedLinear": 2}, dynamic_shapes=({1: Dim.AUTO},))
    assert [choice.order for choice in compiled.report.choices] == [(1,), (1,)], "merging never costs here"
    assert compiled.ir.count("aten.linear(") >= 2


def test_dora_is_a_weight() -> None:
    """The weight depends on constants alone: a recipe, without any rewrite of its own."""
    model = nn.Sequential(DoRALinear(16, 24), nn.GELU(), DoRALinear(24, 16))
    compiled = check(model, *at_sizes([2, "S", 16], SIZES), dynamic_shapes=({1: Dim.AUTO},))
    graph = compiled.ir[compiled.ir.index("func @forward") :]
    assert graph.count("rg.ffn(") == 1, "two layers and nothing else"
    assert "linalg_vector_norm" not in graph
