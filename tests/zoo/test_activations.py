"""An MLP with its activation spelled out.

GELU: Hendrycks and Gimpel, arXiv:1606.08415, as in BERT's first release, GPT-2 (tanh) and Megatron-LM.
SiLU: Elfwing et al., arXiv:1702.03118; Ramachandran et al., arXiv:1710.05941.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.zoo.checking import at_sizes, check

Activation = Callable[[Tensor], Tensor]


class MLP(nn.Module):
    """Two linears with an activation between, as every transformer has."""

    def __init__(self, activation: Activation, width: int = 32, hidden: int = 80) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


def gelu_bert(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_late_half(x: Tensor) -> Tensor:
    return 0.5 * (x * (1 + torch.erf(x * (1 / math.sqrt(2)))))


def gelu_by_distribution(x: Tensor) -> Tensor:
    """x times the normal distribution function, as in the paper's formula."""
    return x * (0.5 + 0.5 * torch.erf(x / 2**0.5))


def gelu_gpt2(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_megatron(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


def silu_by_product(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def silu_swapped(x: Tensor) -> Tensor:
    return x.sigmoid().mul(x)


def silu_by_division(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


@pytest.mark.parametrize(
    ("activation", "rewrite"),
    [
        (gelu_bert, "GeluErf"),
        (gelu_late_half, "GeluErf"),
        (gelu_by_distribution, "GeluErf"),
        (gelu_gpt2, "GeluTanh"),
        (gelu_megatron, "GeluTanh"),
        (silu_by_product, "SiLU"),
        (silu_swapped, "SiLU"),
        (silu_by_division, "SiLU"),
    ],
)
def test_spelled_out_activation(activation: Activation, rewrite: str) -> None:
    inputs = at_sizes([3, "S", 32], [{"S": 7}, {"S": 1}, {"S": 13}])
    check(MLP(activation), *inputs, rewrites={rewrite: 1}, dynamic_shapes=({1: Dim.AUTO},))


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Softplus()]
)
def test_module_activation(activation: nn.Module) -> None:
    check(MLP(activation), *at_sizes([4, 32], [{}]))


def test_quick_gelu_is_not_taken_for_another() -> None:
    """CLIP's x * sigmoid(1.702 x) is neither SiLU nor GELU."""
    model = MLP(lambda x: x * torch.sigmoid(1.702 * x))
    check(model, *at_sizes([4, 32], [{}]), rewrites={"SiLU": 0, "GeluErf": 0, "GeluTanh": 0})
