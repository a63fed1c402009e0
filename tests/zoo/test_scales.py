"""Scales beside linear layers, as their authors write them.

- Path-ensemble ViT: arXiv:2308.06548, equations 5 to 7: a layer as the sum of its scaled paths; no code.
- MiniCPM: openbmb/MiniCPM-2B-sft-bf16, modeling_minicpm.py (``MiniCPMDecoderLayer.forward``): residual
  branches times ``scale_depth / sqrt(layers)``, embeddings times ``scale_emb``, a head over a width ratio.
- GPT-NeoX: transformers, modeling_gpt_neox.py (``GPTNeoXLayer.forward``, ``use_parallel_residual``):
  two norms of one input.
- CaiT: facebookresearch/deit, cait_models.py (``LayerScale_Block``).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check

SIZES = [{"S": 6}, {"S": 1}, {"S": 17}]


class Attention(nn.Module):
    """timm's."""

    def __init__(self, dim: int, num_heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        x = (attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c)
        return self.proj(x)


def feed_forward(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class EnsembleScale(nn.Module):
    """A learned number for one path."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class PathEnsemble(nn.Module):
    """``x = x_0 + sum of path outputs``; the scaled sum of the kept paths is the result."""

    def __init__(self, dim: int = 16, depth: int = 2, pruned: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * depth))
        self.paths = nn.ModuleList(m for _ in range(depth) for m in (Attention(dim), feed_forward(dim)))
        self.scales = nn.ModuleList(EnsembleScale() for _ in range(2 * depth + 1))
        self.pruned = pruned

    def forward(self, x: Tensor) -> Tensor:
        outputs = [x]
        for norm, path in zip(self.norms, self.paths, strict=True):
            y = path(norm(x))
            outputs.append(y)
            x = x + y
        total = self.scales[0](outputs[0])
        for i, out in enumerate(outputs[1:]):
            if i not in self.pruned:
                total = total + self.scales[i + 1](out)
        return total


class MiniCPM(nn.Module):
    """Scaled embeddings, residual branches and head; rotary positions and norms left out."""

    def __init__(self, vocab: int = 40, dim: int = 16, layers: int = 3, tie: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, dim)
        self.gate = nn.ModuleList(nn.Linear(dim, 2 * dim, bias=False) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(2 * dim, dim, bias=False) for _ in range(layers))
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        if tie:
            self.lm_head.weight = self.embed_tokens.weight
        self.scale_emb, self.scale_depth, self.layers = 12.0, 1.4, layers
        self.dim_model_base = 4

    def forward(self, ids: Tensor) -> Tensor:
        hidden_states = self.embed_tokens(ids) * self.scale_emb
        for gate, down in zip(self.gate, self.down, strict=True):
            residual = hidden_states
            hidden_states = down(F.silu(gate(hidden_states)))
            hidden_states = residual + hidden_states * (self.scale_depth / math.sqrt(self.layers))
        return self.lm_head(hidden_states / (hidden_states.shape[-1] / self.dim_model_base))


class NeoXLayer(nn.Module):
    """``x + attention(ln1(x)) + mlp(ln2(x))``."""

    def __init__(self, dim: int = 16, shared: bool = False) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(dim)
        self.post_attention_layernorm = nn.LayerNorm(dim)
        self.attention, self.mlp = Attention(dim), feed_forward(dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        attn_output = self.attention(self.input_layernorm(hidden_states))
        mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))
        return mlp_output + attn_output + hidden_states


class LayerScaleBlock(nn.Module):
    """``x + gamma * branch(norm(x))``, a learned factor for each channel."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim), feed_forward(dim)
        self.gamma_1 = nn.Parameter(1e-4 * torch.ones(dim))
        self.gamma_2 = nn.Parameter(1e-4 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


def test_path_ensemble() -> None:
    """The last path is read by the weighted sum alone; the others are summands of later layers as well."""
    fired = {"ScaledLayer": 1}
    check(PathEnsemble(), *at_sizes([2, "S", 16], SIZES), rewrites=fired, dynamic_shapes=({1: Dim.AUTO},))


def test_layer_scale() -> None:
    fired = {"ScaledLayer": 2}
    check(LayerScaleBlock(), *at_sizes([2, "S", 16], SIZES), rewrites=fired, dynamic_shapes=({1: Dim.AUTO},))


@pytest.mark.parametrize("tie", [False, True])
def test_depth_and_embedding_factors(tie: bool) -> None:
    ids = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    fired = {"ScaledLayer": 3, "ScaledInput": 0} if tie else {"ScaledLayer": 4, "ScaledInput": 1}
    check(MiniCPM(tie=tie), (ids,), (ids[:1],), rewrites=fired, dynamic_shapes=({0: Dim.AUTO},))


def test_two_norms_of_one_input() -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    compiled = check(NeoXLayer(), *inputs, rewrites={"TwinNorm": 2}, dynamic_shapes=({1: Dim.AUTO},))
    assert compiled.ir.count("aten.layer_norm(") == 1
