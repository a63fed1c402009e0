"""Scales of layers, paths and norms, spelled by somebody who had not seen what recognises them.

Not edited to suit a recogniser. The originals are in ``tests/zoo/test_scales``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check

SIZES = [{"S": 6}, {"S": 1}, {"S": 19}]
Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


def by_addcmul(x: Tensor, branch: Tensor, gamma: Tensor) -> Tensor:
    return torch.addcmul(x, branch, gamma)


def in_place(x: Tensor, branch: Tensor, gamma: Tensor) -> Tensor:
    return branch.mul_(gamma).add_(x)


def by_division(x: Tensor, branch: Tensor, gamma: Tensor) -> Tensor:
    return x + branch / gamma


def by_einsum(x: Tensor, branch: Tensor, gamma: Tensor) -> Tensor:
    return x + torch.einsum("btd,d->btd", branch, gamma)


class ScaledBranch(nn.Module):
    """``x + gamma * ffn(norm(x))``; ``gamma`` is one number or one for each channel."""

    def __init__(self, combine: Combine, channels: int, dim: int = 16) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 32), nn.Linear(32, dim)
        self.gamma, self.combine = nn.Parameter(torch.ones(channels)), combine

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(x, self.fc2(F.gelu(self.fc1(self.norm(x)))), self.gamma)


@pytest.mark.parametrize("channels", [1, 16])
@pytest.mark.parametrize("combine", [by_addcmul, in_place, by_division])
def test_layer_scale(combine: Combine, channels: int) -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    model = ScaledBranch(combine, channels)
    check(model, *inputs, rewrites={"ScaledLayer": 1}, dynamic_shapes=({1: Dim.AUTO},))


def test_layer_scale_by_einsum() -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    model = ScaledBranch(by_einsum, 16)
    check(model, *inputs, rewrites={"ScaledLayer": 1}, dynamic_shapes=({1: Dim.AUTO},))


class WeighedPaths(nn.Module):
    """Two branches of one input and the input, weighed by one vector."""

    def __init__(self, form: str, dim: int = 16) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.weights, self.form = nn.Parameter(torch.ones(3)), form

    def forward(self, x: Tensor) -> Tensor:
        paths = [x, self.left(torch.tanh(x)), self.right(torch.sin(x))]
        if self.form == "sum":
            return sum(w * path for w, path in zip(self.weights, paths, strict=True))
        return paths[0] - paths[1] * self.weights[1] - self.weights[2] * paths[2]


@pytest.mark.parametrize("form", ["sum", "subtract"])
def test_weighed_paths(form: str) -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    check(WeighedPaths(form), *inputs, rewrites={"ScaledLayer": 2}, dynamic_shapes=({1: Dim.AUTO},))


class AddedPath(nn.Module):
    """``torch.add`` with the path's weight as its ``alpha``, the layer in ``addmm``."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(dim, dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.tanh(x).flatten(0, 1)
        branch = torch.addmm(self.bias, rows, self.weight).unflatten(0, x.shape[:2])
        return torch.add(x, branch, alpha=1.4 / 3**0.5)


def test_added_path() -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    check(AddedPath(), *inputs, rewrites={"ScaledLayer": 1}, dynamic_shapes=({1: Dim.AUTO},))


class ScaledHead(nn.Module):
    """A head over scaled features."""

    def __init__(self, form: str, dim: int = 16, out: int = 24) -> None:
        super().__init__()
        self.head, self.diagonal = nn.Linear(dim, out), nn.Parameter(torch.ones(dim))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sin(x)
        if self.form == "in place":
            return self.head(hidden.div_(4.0))
        if self.form == "diagonal":
            return F.linear(hidden * self.diagonal, self.head.weight, self.head.bias)
        return torch.einsum("btd,vd->btv", 0.25 * hidden, self.head.weight)


@pytest.mark.parametrize("form", ["in place", "diagonal", "einsum"])
def test_scaled_head(form: str) -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    check(ScaledHead(form), *inputs, rewrites={"ScaledInput": 1}, dynamic_shapes=({1: Dim.AUTO},))


class ParallelNorms(nn.Module):
    """Attention's place is taken by a linear layer: two norms of one input, each before its own layer."""

    def __init__(self, form: str, dim: int = 16) -> None:
        super().__init__()
        self.g1, self.b1 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.g2, self.b2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.mix, self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, 32), nn.Linear(32, dim)
        self.form = form

    def norm(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        if self.form == "functional":
            return F.layer_norm(x, gain.shape, gain, shift)
        if self.form == "rms":
            return F.rms_norm(x, gain.shape, gain, 1e-6)
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * gain + shift

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.norm(x, self.g1, self.b1))
        return x + mixed + self.fc2(F.relu(self.fc1(self.norm(x, self.g2, self.b2))))


@pytest.mark.parametrize("form", ["functional", "rms", "by hand"])
def test_two_norms_of_one_input(form: str) -> None:
    """By hand, scale and shift stand outside of the norm: there is one, and no twin of it."""
    inputs = at_sizes([2, "S", 16], SIZES)
    fired = {"ScaledInput": 2, "ShiftedInput": 2} if form == "by hand" else {"TwinNorm": 2}
    compiled = check(ParallelNorms(form), *inputs, rewrites=fired, dynamic_shapes=({1: Dim.AUTO},))
    assert compiled.ir.count("norm(") == 1
