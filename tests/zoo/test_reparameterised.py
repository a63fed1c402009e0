"""Convolutions that are trained as several branches and are one at inference.

- FFNet (MetaMixer): ysj9909/FFNet, models/ffnet.py: ``RepVGGDW``, ``FFNifiedAttention``, ``FFN`` and the
  downsampling of ``BN -> 1x1`` plus identity.
- RepVGG: DingXiaoH/RepVGG, repvgg.py (``RepVGGBlock.forward`` before ``switch_to_deploy``).
- Conv-LoRA: microsoft/LoRA, loralib/layers.py (``ConvLoRA.forward``); peft, tuners/lora/layer.py
  (``Conv2d``).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.zoo.checking import check, normal


class ConvBN(nn.Sequential):
    def __init__(self, a: int, b: int, k: int = 1, stride: int = 1, pad: int = 0, groups: int = 1) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(a, b, k, stride, pad, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(b))


class RepVGGDW(nn.Module):
    """Depthwise 7x7 beside 3x3, and the input itself where the size stays."""

    def __init__(self, dim: int, stride: int = 1, identity: bool = False) -> None:
        super().__init__()
        self.conv = ConvBN(dim, dim, 7, stride, 3, groups=dim)
        self.conv1 = ConvBN(dim, dim, 3, stride, 1, groups=dim)
        self.identity = identity

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) + self.conv1(x)
        return y + x if self.identity else y


class FFNifiedAttention(nn.Module):
    """1x1 -> depthwise -> GELU -> depthwise, times a layer scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = ConvBN(dim, dim)
        self.dw1, self.act, self.dw2 = RepVGGDW(dim), nn.GELU(), RepVGGDW(dim)
        self.layer_scale = nn.Parameter(1e-6 * torch.ones(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * self.dw2(self.act(self.dw1(self.proj(x))))


class ChannelMixer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dw = RepVGGDW(dim, identity=True)
        self.pw1, self.act, self.pw2 = ConvBN(dim, 3 * dim), nn.GELU(), ConvBN(3 * dim, dim)
        self.layer_scale = nn.Parameter(1e-6 * torch.ones(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * self.pw2(self.act(self.pw1(self.dw(x))))


class Downsample(nn.Module):
    """Strided depthwise branches, then ``x + conv1x1(bn(x))``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduce = RepVGGDW(dim, stride=2)
        self.bn = nn.BatchNorm2d(dim)
        self.pw = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return x + self.pw(self.bn(x))


class RepVGGBlock(nn.Module):
    """3x3, 1x1 and identity, each with its own batch normalisation."""

    def __init__(self, dim: int, out: int, groups: int = 1) -> None:
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(dim) if dim == out else None
        self.rbr_dense = ConvBN(dim, out, 3, 1, 1, groups)
        self.rbr_1x1 = ConvBN(dim, out, 1, 1, 0, groups)
        self.nonlinearity = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return self.nonlinearity(self.rbr_dense(inputs) + self.rbr_1x1(inputs) + id_out)


class ConvLoRA(nn.Module):
    """loralib's: the adapted kernel is computed in each forward."""

    def __init__(self, a: int, b: int, kernel_size: int = 3, r: int = 2, lora_alpha: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(a, b, kernel_size, padding=1)
        self.lora_A = nn.Parameter(torch.zeros(r * kernel_size, a * kernel_size))
        self.lora_B = nn.Parameter(torch.zeros(b * kernel_size, r * kernel_size))
        self.scaling = lora_alpha / r

    def forward(self, x: Tensor) -> Tensor:
        return self.conv._conv_forward(
            x,
            self.conv.weight + (self.lora_B @ self.lora_A).view(self.conv.weight.shape) * self.scaling,
            self.conv.bias,
        )


class PeftConv2d(nn.Module):
    """peft's: a k x k convolution to few channels and a 1x1 one back, beside the base layer."""

    def __init__(self, a: int, b: int, kernel_size: int = 3, r: int = 2) -> None:
        super().__init__()
        self.base_layer = nn.Conv2d(a, b, kernel_size, padding=1)
        self.lora_A = nn.Conv2d(a, r, kernel_size, padding=1, bias=False)
        self.lora_B = nn.Conv2d(r, b, 1, bias=False)
        self.scaling = 2.0

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        return result + self.lora_B(self.lora_A(x)) * self.scaling


IMAGES = [(normal(2, 8, 9, 9),), (normal(1, 8, 9, 9),)]


def graph_of(compiled: object) -> str:
    text = compiled.ir
    return text[text.index("func @forward") :]


FFNET = {
    FFNifiedAttention: ({"ConvBranches": 2, "ScaledLayer": 1}, 3),
    ChannelMixer: ({"ConvBranches": 1, "ConvIdentity": 1, "ScaledLayer": 1}, 3),
    Downsample: ({"ConvBranches": 1, "ConvOfBatchNorm": 1, "ConvIdentity": 1}, 2),
}


@pytest.mark.parametrize("layer", FFNET)
def test_ffnet(layer: type[nn.Module]) -> None:
    """One convolution for each depthwise block and each product, and nothing else but GELU and residuals."""
    fired, convolutions = FFNET[layer]
    compiled = check(layer(8), *IMAGES, rewrites=fired, dynamic_shapes=({0: Dim.AUTO},))
    graph = graph_of(compiled)
    assert graph.count("aten.conv2d(") == convolutions
    assert "aten.batch_norm" not in graph
    assert "aten.mul" not in graph


@pytest.mark.parametrize(("out", "groups"), [(8, 1), (8, 2), (12, 1)])
def test_repvgg(out: int, groups: int) -> None:
    fired = {"ConvBranches": 1, "ConvIdentity": int(out == 8)}
    compiled = check(RepVGGBlock(8, out, groups), *IMAGES, rewrites=fired, dynamic_shapes=({0: Dim.AUTO},))
    assert graph_of(compiled).count("aten.conv2d(") == 1


@pytest.mark.parametrize("layer", [ConvLoRA, PeftConv2d])
def test_conv_lora(layer: type[nn.Module]) -> None:
    compiled = check(layer(8, 6), *IMAGES, dynamic_shapes=({0: Dim.AUTO},))
    assert graph_of(compiled).count("aten.conv2d(") == 1
