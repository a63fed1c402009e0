"""Gated feed-forward networks: Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202.

Llama's form has three matrices; ModernBERT (arXiv:2412.13663) and many others pack gate and up into one.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check

Activation = Callable[[Tensor], Tensor]
SIZES = [{"S": 6}, {"S": 1}, {"S": 11}]


class GatedFFN(nn.Module):
    """down(act(gate(x)) * up(x)): SwiGLU with ``silu``, GeGLU with ``gelu``, ReGLU with ``relu``."""

    def __init__(self, activation: Activation, width: int = 32, hidden: int = 88, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias)
        self.up = nn.Linear(width, hidden, bias)
        self.down = nn.Linear(hidden, width, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


class UpFirst(GatedFFN):
    """The factors the other way round, as T5 1.1 writes them."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * self.activation(self.gate(x)))


class PackedFFN(nn.Module):
    """One matrix for gate and up, as in ModernBERT's ``Wi``."""

    def __init__(self, activation: Activation, split: str, width: int = 32, hidden: int = 88) -> None:
        super().__init__()
        self.packed = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.activation, self.split, self.hidden = activation, split, hidden

    def forward(self, x: Tensor) -> Tensor:
        both = self.packed(x)
        if self.split == "chunk":
            gate, up = both.chunk(2, dim=-1)
        elif self.split == "split":
            gate, up = torch.split(both, self.hidden, dim=-1)
        else:
            gate, up = both[..., : self.hidden], both[..., self.hidden :]
        return self.down(self.activation(gate) * up)


@pytest.mark.parametrize("activation", [F.silu, F.gelu, F.relu, torch.sigmoid])
@pytest.mark.parametrize("form", [GatedFFN, UpFirst])
def test_three_matrices(form: type[GatedFFN], activation: Activation) -> None:
    inputs = at_sizes([2, "S", 32], SIZES)
    check(form(activation), *inputs, rewrites={"GatedFFN": 1}, dynamic_shapes=({1: Dim.AUTO},))


def test_with_biases() -> None:
    check(GatedFFN(F.silu, bias=True), *at_sizes([5, 32], [{}]), rewrites={"GatedFFN": 1})


def test_spelled_out_silu_in_the_gate() -> None:
    model = GatedFFN(lambda x: x * torch.sigmoid(x))
    check(model, *at_sizes([5, 32], [{}]), rewrites={"SiLU": 1, "GatedFFN": 1})


@pytest.mark.parametrize("split", ["chunk", "split", "slice"])
@pytest.mark.parametrize("activation", [F.silu, F.gelu])
def test_packed(activation: Activation, split: str) -> None:
    inputs = at_sizes([2, "S", 32], SIZES)
    check(PackedFFN(activation, split), *inputs, dynamic_shapes=({1: Dim.AUTO},))
