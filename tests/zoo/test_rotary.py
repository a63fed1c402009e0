"""Rotary position embedding: Su et al., RoFormer, arXiv:2104.09864.

The halves form is that of GPT-NeoX and Llama in transformers; the pairs form that of RoFormer, GPT-J and
Meta's Llama.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.zoo.checking import at_sizes, check

Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]


class Rotated(nn.Module):
    """Projects to heads and rotates them by their positions."""

    def __init__(
        self, rotate: Rotate, repeat: Callable[[Tensor], Tensor], heads: int = 2, size: int = 16
    ) -> None:
        super().__init__()
        self.project = nn.Linear(32, heads * size, bias=False)
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(0, size, 2).float() / size))
        self.rotate, self.repeat, self.heads, self.size = rotate, repeat, heads, size

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.project(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        angles = torch.outer(torch.arange(length, device=x.device).to(x.dtype), self.frequencies)
        angles = self.repeat(angles)
        return self.rotate(q, angles.cos(), angles.sin())


def twice(angles: Tensor) -> Tensor:
    return torch.cat((angles, angles), dim=-1)


def once(angles: Tensor) -> Tensor:
    return angles


def interleaved(angles: Tensor) -> Tensor:
    return angles.repeat_interleave(2, dim=-1)


def by_rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def by_chunks(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return (cos * x) + (sin * torch.cat([-b, a], -1))


def by_two_products(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each half on its own, as in Flash Attention's reference."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def by_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Neighbours in place of halves, as in GPT-J."""
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


@pytest.mark.parametrize(
    ("rotate", "repeat", "hits"),
    [
        (by_rotate_half, twice, 1),
        (by_chunks, twice, 1),
        (by_two_products, once, 0),
        (by_pairs, interleaved, 0),
    ],
)
def test_rotary(rotate: Rotate, repeat: Callable[[Tensor], Tensor], hits: int) -> None:
    inputs = at_sizes([2, "S", 32], [{"S": 6}, {"S": 1}, {"S": 13}])
    check(Rotated(rotate, repeat), *inputs, rewrites={"Rotary": hits}, dynamic_shapes=({1: Dim.AUTO},))
