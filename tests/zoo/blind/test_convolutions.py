"""Re-parameterised convolutions, spelled by somebody who had not seen what recognises them.

Not edited to suit a recogniser. The originals are in ``tests/zoo/test_reparameterised``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import check, normal

IMAGES = [(normal(2, 8, 9, 9),), (normal(1, 8, 9, 9),)]
BATCH = ({0: Dim.AUTO},)


def convolutions(compiled: Any) -> int:
    text = compiled.ir[compiled.ir.index("func @forward") :]
    assert "batch_norm" not in text
    return text.count("aten.conv2d(") + text.count("aten.convolution(")


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


class FunctionalRep(nn.Module):
    """Bare parameters, the statistics in buffers."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.dense, self.point = zeros(dim, dim, 3, 3), zeros(dim, dim, 1, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(dim) for _ in range(3))

    def normed(self, i: int, x: Tensor) -> Tensor:
        norm = self.norms[i]
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(
            self.normed(0, x)
            + self.normed(1, F.conv2d(x, self.point))
            + self.normed(2, F.conv2d(x, self.dense, padding="same"))
        )


class SummedRep(nn.Module):
    """The branches in a list, one of them nothing at all."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                nn.Identity(),
                nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)),
                nn.Conv2d(dim, dim, 1),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.stack([branch(x) for branch in self.branches]).sum(0))


class InPlaceRep(nn.Module):
    """Groups, in-place sums, and each channel's scale and shift by hand in place of a norm."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.dense = nn.Conv2d(dim, dim, 3, padding=1, groups=2)
        self.point = nn.Conv2d(dim, dim, 1, groups=2, bias=False)
        self.scale, self.shift = nn.Parameter(torch.ones(dim)), zeros(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.point(x)
        y *= self.scale[:, None, None]
        y += self.shift.view(1, -1, 1, 1)
        y += self.dense(x)
        y += x
        return y.relu_()


@pytest.mark.parametrize("block", [FunctionalRep, SummedRep, InPlaceRep])
def test_branches_and_identity(block: type[nn.Module]) -> None:
    compiled = check(block(), *IMAGES, rewrites={"ConvIdentity": 1}, dynamic_shapes=BATCH)
    assert convolutions(compiled) == 1


class Crossed(nn.Module):
    """ACNet's three kernels (arXiv:1908.03930, figure 1), each with its norm."""

    def __init__(self, dim: int = 8, out: int = 12) -> None:
        super().__init__()
        kernels = ((3, 3), (1, 3), (3, 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, out, k, padding=(k[0] // 2, k[1] // 2), bias=False) for k in kernels
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in kernels)

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(sum(norm(conv(x)) for conv, norm in zip(self.convs, self.norms, strict=True)))


def test_crossed_kernels() -> None:
    assert convolutions(check(Crossed(), *IMAGES, dynamic_shapes=BATCH)) == 1


class NormedPoint(nn.Module):
    """A norm before a 1x1 convolution, the norm spelled in three ways."""

    def __init__(self, form: str, dim: int = 8) -> None:
        super().__init__()
        self.norm, self.point = nn.BatchNorm2d(dim), nn.Conv2d(dim, dim, 1)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        norm, image = self.norm, (1, -1, 1, 1)
        if self.form == "module":
            y = norm(x)
        elif self.form == "affine":
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            y = x * gain.view(image) + (norm.bias - norm.running_mean * gain).view(image)
        else:
            y = (x - norm.running_mean.view(image)) / (norm.running_var.view(image) + norm.eps).sqrt()
            y = torch.addcmul(norm.bias.view(image), y, norm.weight.view(image))
        return F.conv2d(y, self.point.weight, self.point.bias) + x


@pytest.mark.parametrize("form", ["module", "affine", "by hand"])
def test_norm_before_a_point(form: str) -> None:
    compiled = check(NormedPoint(form), *IMAGES, rewrites={"ConvIdentity": 1}, dynamic_shapes=BATCH)
    assert convolutions(compiled) == 1
    graph = compiled.ir[compiled.ir.index("func @forward") :]
    assert "aten.mul" not in graph
    assert "aten.add" not in graph


class AdaptedConvolution(nn.Module):
    """Conv-LoRA with the change of the kernel, or of the result, in three spellings."""

    def __init__(self, form: str, dim: int = 8, out: int = 6, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Conv2d(dim, out, 3, stride=2, padding=1)
        self.a, self.b = zeros(rank, dim, 3, 3), zeros(out, rank)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "kernel":
            delta = torch.einsum("or,rikl->oikl", self.b, self.a)
            return F.conv2d(x, self.base.weight + 0.5 * delta, self.base.bias, 2, 1)
        low = F.conv2d(x, self.a, stride=2, padding=1)
        if self.form == "beside":
            return F.conv2d(low.mul(0.5), self.b[:, :, None, None]) + self.base(x)
        return torch.add(self.base(x), torch.einsum("brhw,or->bohw", low, self.b), alpha=0.5)


@pytest.mark.parametrize("form", ["kernel", "beside", "einsum"])
def test_adapted(form: str) -> None:
    assert convolutions(check(AdaptedConvolution(form), *IMAGES, dynamic_shapes=BATCH)) == 1
