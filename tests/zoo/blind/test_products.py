"""Chains of products, spelled by somebody who had not seen what recognises them.

Not edited to suit a recogniser. The originals are in ``tests/zoo/test_products``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check, normal


class EinsumAttention(nn.Module):
    """Linear attention, its weights formed first."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.relu(q) + 0.01, F.relu(k) + 0.01
        weights = torch.einsum("bnd,bmd->bnm", q, k)
        return torch.einsum("bnm,bme->bne", weights, v)


class ScaledAttention(nn.Module):
    """Over flat heads, with a scale between the products."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.bmm(q.sigmoid(), k.exp().transpose(1, 2)) * q.shape[-1] ** -0.5
        return torch.bmm(scores, v)


class NormalisedAttention(nn.Module):
    """The weights of a query are divided by their sum, as softmax attention does it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.matmul(F.elu(q) + 1, (F.elu(k) + 1).transpose(-2, -1))
        weights = weights / weights.sum(dim=-1, keepdim=True)
        return torch.matmul(weights, v)


@pytest.mark.parametrize("attention", [EinsumAttention, ScaledAttention, NormalisedAttention])
def test_linear_attention(attention: type[nn.Module]) -> None:
    arguments = tuple(normal(2, 40, 8, seed=s) for s in range(3))
    compiled = check(attention(), arguments, rewrites={"ProductOrder": 1})
    assert compiled.report.flops["after"] < 0.6 * compiled.report.flops["before"]


@pytest.mark.parametrize("attention", [EinsumAttention, ScaledAttention, NormalisedAttention])
def test_linear_attention_of_any_length(attention: type[nn.Module]) -> None:
    length = Dim("length", min=2, max=4096)
    shapes = {name: {1: length} for name in ("q", "k", "v")}
    inputs = [tuple(normal(2, n, 4, seed=s) for s in range(3)) for n in (9, 2, 900)]
    compiled = check(attention(), *inputs, dynamic_shapes=shapes, rewrites={"ProductOrder": 1})
    (choice,) = compiled.report.choices
    assert choice.forms[choice.order[-1]] == "(A (B C))"


class GaussianAttention(nn.Module):
    """SOFT's product over landmarks, ``distances`` being the squared distances of two sets of points."""

    def forward(self, q: Tensor, landmarks: Tensor, v: Tensor) -> Tensor:
        far = torch.exp(-0.5 * self.distances(q, landmarks))
        near = torch.exp(-0.5 * self.distances(landmarks, landmarks))
        inverse = near / near.sum(dim=(-1, -2), keepdim=True)
        for _ in range(3):
            inverse = 2 * inverse - inverse @ near @ inverse
        return self.product(far, inverse, v)

    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def product(self, far: Tensor, inverse: Tensor, v: Tensor) -> Tensor:
        return far @ inverse @ far.mT @ v


class BySums(GaussianAttention):
    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        return a.pow(2).sum(-1, keepdim=True) + b.pow(2).sum(-1).unsqueeze(-2) - 2 * a @ b.mT


class ByOnesLike(GaussianAttention):
    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        left = torch.einsum("bhnc,bhmc->bhnm", a * a, torch.ones_like(b))
        right = torch.einsum("bhnc,bhmc->bhnm", torch.ones_like(a), b * b)
        return left + right - 2 * torch.einsum("bhnc,bhmc->bhnm", a, b)

    def product(self, far: Tensor, inverse: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bhnm,bhml->bhnl", far, inverse)
        return torch.einsum("bhnl,bhkl,bhkc->bhnc", weights, far, v)


class ByNewOnes(GaussianAttention):
    """Over flat heads, with the products in one bracket each."""

    def distances(self, a: Tensor, b: Tensor) -> Tensor:
        (batch, heads, n, c), m = a.shape, b.shape[-2]
        a, b = a.reshape(-1, n, c), b.reshape(-1, m, c)
        ones = a.new_ones(c, m), a.new_ones(n, c)
        squares = a.square() @ ones[0] + ones[1] @ b.square().transpose(1, 2)
        return torch.baddbmm(squares, a, b.transpose(1, 2), alpha=-2).view(batch, heads, n, m)

    def product(self, far: Tensor, inverse: Tensor, v: Tensor) -> Tensor:
        return torch.matmul(torch.matmul(torch.matmul(far, inverse), far.transpose(2, 3)), v)


@pytest.mark.parametrize(("form", "ones"), [(BySums, 0), (ByOnesLike, 4), (ByNewOnes, 4)])
def test_gaussian_attention(form: type[nn.Module], ones: int) -> None:
    arguments = normal(2, 2, 60, 8), normal(2, 2, 5, 8, seed=1), normal(2, 2, 60, 8, seed=2)
    compiled = check(form(), arguments, rewrites={"ProductOrder": 1, "SumOfOnes": ones})
    flops = compiled.report.flops
    assert flops["after"] < 0.9 * flops["before"]


class BilinearPooling(nn.Module):
    """LAMA: ``softmax over t of ((H U) * (c V)) P``, times H."""

    def __init__(self, form: str, states: int = 12, rank: int = 5, heads: int = 3) -> None:
        super().__init__()
        self.u, self.v = nn.Linear(states, rank, bias=False), nn.Linear(states, rank, bias=False)
        self.p = nn.Linear(rank, heads, bias=False)
        self.form = form

    def forward(self, h: Tensor) -> Tensor:
        context = h.mean(dim=1)
        if self.form == "einsum":
            scores = torch.einsum("btr,br,hr->bth", self.u(h), self.v(context), self.p.weight)
            return torch.einsum("bth,bts->bhs", scores.softmax(dim=1), h)
        if self.form == "diagonal":
            folded = torch.diag_embed(self.v(context)) @ self.p.weight.T
            return (self.u(h) @ folded).softmax(dim=1).mT @ h
        pooled = self.u(h).mul_(self.v(context).unsqueeze(1))
        return torch.bmm(F.softmax(self.p(pooled).transpose(1, 2), dim=-1), h)


@pytest.mark.parametrize("form", ["einsum", "diagonal", "in place"])
def test_bilinear_pooling(form: str) -> None:
    inputs = at_sizes([2, "T", 12], [{"T": 7}, {"T": 1}, {"T": 30}])
    compiled = check(BilinearPooling(form), *inputs, dynamic_shapes=({1: Dim.AUTO},))
    assert compiled.report.flops["after"] <= compiled.report.flops["before"]
