"""Normalisation layers as people write them.

RMSNorm: Zhang and Sennrich, arXiv:1910.07467, as in T5, Llama and the authors' code.
LayerNorm: Ba et al., arXiv:1607.06450, as in BERT's first release in PyTorch and the Annotated Transformer.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.zoo.checking import at_sizes, check

EPS = 1e-6
Norm = Callable[[Tensor, Tensor], Tensor]


class Norms(nn.Module):
    """Two norms with a linear and a residual connection between, as in a block."""

    def __init__(self, norm: Norm, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(width))
        self.second = nn.Parameter(torch.ones(width))
        self.linear = nn.Linear(width, width)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear(self.norm(x, self.first)), self.second)


def rms_t5(x: Tensor, weight: Tensor) -> Tensor:
    variance = x.to(torch.promote_types(x.dtype, torch.float32)).pow(2).mean(-1, keepdim=True)
    return weight * (x * torch.rsqrt(variance + EPS))


def rms_square_root(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + EPS) * weight


def rms_product(x: Tensor, weight: Tensor) -> Tensor:
    return (x * (torch.mean(x * x, dim=-1, keepdim=True) + EPS).pow(-0.5)) * weight


def layer_norm_bert(x: Tensor, weight: Tensor) -> Tensor:
    u = x.mean(-1, keepdim=True)
    s = (x - u).pow(2).mean(-1, keepdim=True)
    return weight * ((x - u) / torch.sqrt(s + EPS))


def layer_norm_variance(x: Tensor, weight: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + EPS) * weight


SPELLINGS = [
    (rms_t5, {"RMSNorm": 2, "RMSNormWeight": 2}),
    (rms_square_root, {"RMSNorm": 2, "RMSNormWeight": 2}),
    (rms_product, {"RMSNorm": 2, "RMSNormWeight": 2}),
    (layer_norm_bert, {"LayerNorm": 2}),
    (layer_norm_variance, {"LayerNorm": 2, "LayerNormWeight": 2}),
]


@pytest.mark.parametrize(("norm", "rewrites"), SPELLINGS)
def test_spelled_out(norm: Norm, rewrites: dict[str, int]) -> None:
    inputs = at_sizes(["B", 5, 48], [{"B": 3}, {"B": 1}, {"B": 7}])
    check(Norms(norm), *inputs, rewrites=rewrites, dynamic_shapes=({0: Dim.AUTO},))


def test_unbiased_deviation_stays_what_it_is() -> None:
    """The Annotated Transformer divides by ``std + eps`` of the unbiased estimate: another function."""

    def annotated(x: Tensor, weight: Tensor) -> Tensor:
        return weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + EPS)

    check(Norms(annotated), *at_sizes([4, 48], [{}]), rewrites={"LayerNorm": 0})


@pytest.mark.parametrize("dim", [0, 1])
def test_other_axes_are_not_taken_for_rows(dim: int) -> None:
    def across(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + EPS) * weight

    check(Norms(across), *at_sizes([4, 5, 48], [{}]), rewrites={"RMSNorm": 0})
