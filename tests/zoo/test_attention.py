"""Attention spelled out: Vaswani et al., arXiv:1706.03762, in the spellings of common code.

minGPT and nanoGPT (a causal mask in a buffer, https://github.com/karpathy/nanoGPT), BERT (an additive mask),
transformers of old (``masked_fill`` with the least number of the type). Grouped queries: Ainslie et al.,
arXiv:2305.13245.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.zoo.checking import check, normal

WIDTH, HEADS, LONGEST = 32, 4, 24


class SpelledOut(nn.Module):
    """Multi-head attention by matrix products; ``scale`` and ``mask`` say how."""

    below = torch.finfo(torch.float32).min

    def __init__(self, scale: str = "mul", mask: str = "none") -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("seen", torch.tril(torch.ones(LONGEST, LONGEST)).view(1, 1, LONGEST, LONGEST))
        self.scale, self.mask = scale, mask

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        size = width // HEADS
        q, k, v = (f(x).view(batch, length, HEADS, size).transpose(1, 2) for f in self.qkv)
        weights = self.masked(self.scaled(q, k, size), length, mask).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))

    def scaled(self, q: Tensor, k: Tensor, size: int) -> Tensor:
        keys = k.transpose(-2, -1)
        if self.scale == "div":
            return torch.matmul(q, keys) / math.sqrt(size)
        if self.scale == "query":
            return torch.matmul(q * size**-0.5, keys)
        return q @ keys * (1.0 / math.sqrt(size))

    def masked(self, scores: Tensor, length: int, mask: Tensor | None) -> Tensor:
        if self.mask == "added":
            return scores + mask
        if self.mask == "buffer":
            return scores.masked_fill(self.seen[:, :, :length, :length] == 0, float("-inf"))
        if self.mask == "tril":
            hidden = torch.tril(torch.ones(length, length)) == 0
            return scores.masked_fill(hidden, float("-inf"))
        if self.mask == "filled":
            return scores.masked_fill(mask == 0, self.below)
        return scores


def inputs(mask: str, length: int) -> tuple[Tensor, ...]:
    x = normal(2, length, WIDTH)
    if mask == "added":
        return x, normal(2, 1, length, length)
    if mask == "filled":
        visible = torch.rand(2, 1, 1, length, generator=torch.Generator().manual_seed(1)) > 0.3
        return x, visible.index_fill(-1, torch.tensor([0]), True).long()
    return (x,)


DYNAMIC = {"added": {2: Dim.AUTO, 3: Dim.AUTO}, "filled": {3: Dim.AUTO}}


@pytest.mark.parametrize("mask", ["none", "added", "buffer", "filled", "tril"])
@pytest.mark.parametrize("scale", ["mul", "div"])
def test_spelled_out(scale: str, mask: str) -> None:
    shapes = ({1: Dim.AUTO}, *([DYNAMIC[mask]] if mask in DYNAMIC else []))
    examples = [inputs(mask, length) for length in (9, 1, 17)]
    # A constant's values are not read, nor an input's: either could hide all keys of a query with -inf.
    hits = 0 if mask in ("added", "buffer") else 1
    check(SpelledOut(scale, mask), *examples, rewrites={"SpelledOutAttention": hits}, dynamic_shapes=shapes)


def test_a_mask_that_only_weakens_stays_what_it_is() -> None:
    """The Annotated Transformer fills with -1e9, which a score could in principle exceed."""
    model = SpelledOut("div", "filled")
    model.below = -1e9
    check(model, inputs("filled", 9), rewrites={"SpelledOutAttention": 0})


def test_scaled_query() -> None:
    check(SpelledOut("query"), inputs("none", 9), rewrites={"SpelledOutAttention": 1})


def test_causal_buffer_of_a_fixed_length() -> None:
    check(SpelledOut("div", "buffer"), inputs("buffer", LONGEST), rewrites={"SpelledOutAttention": 0})


def test_a_row_that_is_hidden_by_infinities_stays_nan() -> None:
    class Hidden(SpelledOut):
        below = float("-inf")

    x, mask = inputs("filled", 5)
    mask[0] = 0
    model = Hidden("div", "filled")
    assert model(x, mask).isnan().any()
    check(model, (x, mask), rewrites={"SpelledOutAttention": 0})


class GroupedQueries(nn.Module):
    """Four query heads over two heads of keys and values, by ``repeat_interleave`` or by ``expand``."""

    def __init__(self, repeat: str, groups: int = 2) -> None:
        super().__init__()
        self.size = WIDTH // HEADS
        self.q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.kv = nn.Linear(WIDTH, 2 * groups * self.size, bias=False)
        self.repeat, self.groups = repeat, groups

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q = self.q(x).view(batch, length, HEADS, self.size).transpose(1, 2)
        k, v = (
            self.kv(x).view(batch, length, 2 * self.groups, self.size).transpose(1, 2).split(self.groups, 1)
        )
        k, v = self.repeated(k), self.repeated(v)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(batch, length, width)

    def repeated(self, heads: Tensor) -> Tensor:
        times = HEADS // self.groups
        if self.repeat == "interleave":
            return heads.repeat_interleave(times, dim=1)
        batch, groups, length, size = heads.shape
        wide = heads[:, :, None].expand(batch, groups, times, length, size)
        return wide.reshape(batch, groups * times, length, size)


@pytest.mark.parametrize("repeat", ["interleave", "expand"])
def test_grouped_queries(repeat: str) -> None:
    examples = [(normal(2, length, WIDTH),) for length in (6, 1, 11)]
    model = GroupedQueries(repeat)
    check(model, *examples, rewrites={"GroupedHeads": 1}, dynamic_shapes=({1: Dim.AUTO},))


def test_multi_head_attention_module() -> None:
    """torch's own module, which decides for itself what to call."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    check(Module(), (normal(2, 7, WIDTH),))


def test_encoder_layer_module() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, activation="gelu", batch_first=True, norm_first=True)
    check(layer, (normal(2, 7, WIDTH),))
