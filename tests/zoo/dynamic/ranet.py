"""RANet: sub-networks of rising resolution that reuse the features of the ones before, exits between.

Yang et al., "Resolution Adaptive Networks" (CVPR 2020); github.com/yangle15/RANet-pytorch,
``models/RANet.py`` (``RAFirstLayer``, ``_BlockNormal``, ``_BlockUpNormal``, ``RANet.forward``). For one
image: the exit rule, which the repository applies to saved logits (``adaptive_inference.py``,
``dynamic_eval_with_threshold``), is in the loop, with a threshold for each exit but the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, images


class ConvBasic(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Bottleneck(nn.Module):
    """1x1 then 3x3, norms after."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        inner = min(inside, 2 * outside)
        self.net = nn.Sequential(ConvBasic(inside, inner, 1), ConvBasic(inner, outside))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    _, _, h, w = like.size()
    return F.interpolate(x, size=(h, w), mode="bilinear", align_corners=True)


class NormalLayer(nn.Module):
    """Dense: the input beside what is made of it."""

    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.conv_normal = Bottleneck(inside, growth)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        if not isinstance(x, list):
            x = [x]
        return torch.cat([x[0], self.conv_normal(x[0])], dim=1)


class UpLayer(nn.Module):
    """Dense, with half of the growth from the features of the lower resolution."""

    def __init__(self, inside: int, low: int, growth: int) -> None:
        super().__init__()
        self.conv_up = Bottleneck(low, growth // 2)
        self.conv_normal = Bottleneck(inside, growth - growth // 2)

    def forward(self, x: list[Tensor]) -> Tensor:
        res = self.conv_normal(x[1])
        return torch.cat([_resized(x[1], res), _resized(self.conv_up(x[0]), res), res], dim=1)


class NormalBlock(nn.Module):
    """Returns its output and the features of all its layers, for the next resolution."""

    def __init__(self, layers: int, inside: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NormalLayer(inside + i * growth, growth) for i in range(layers))
        self.widths = [inside + i * growth for i in range(layers + 1)]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        output = [x]
        for layer in self.layers:
            x = layer(x)
            output.append(x)
        return x, output


class UpBlock(nn.Module):
    """Fuses the features of the block at the same place of the lower resolution."""

    def __init__(self, layers: int, inside: int, low: Sequence[int], growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(UpLayer(inside + i * growth, low[i], growth) for i in range(layers))
        self.widths = [inside + i * growth for i in range(layers + 1)]
        self.conv_last = ConvBasic(low[layers], self.widths[-1] // 2, kernel=1)

    def forward(self, x: Tensor, low_feat: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        output = [x]
        for i in range(len(self.layers)):
            inp = [low_feat[i]]
            inp.append(x)
            x = self.layers[i](inp)
            output.append(x)
        last = _resized(self.conv_last(low_feat[len(self.layers)]), x)
        return torch.cat([x, last], dim=1), output


class FirstLayer(nn.Module):
    """The image at each resolution, the lowest first."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        falling = list(widths[::-1])
        self.layers = nn.ModuleList([ConvBasic(3, falling[0])])
        for inside, outside in pairwise(falling):
            self.layers.append(ConvBasic(inside, outside, stride=2))

    def forward(self, x: Tensor) -> list[Tensor]:
        res = []
        for layer in self.layers:
            x = layer(x)
            res.append(x)
        return res[::-1]


class Classifier(nn.Module):
    def __init__(self, inside: int, channels: int, classes: int) -> None:
        super().__init__()
        self.m = nn.Sequential(
            ConvBasic(inside, channels, stride=2), ConvBasic(channels, channels), nn.AdaptiveAvgPool2d(1)
        )
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        res = self.m(x)
        return self.linear(res.view(res.size(0), -1))


class RANet(nn.Module):
    """Each scale has ``step`` blocks more than the one below, and a classifier after each of those.

    Returns the logits and the index of the exit.
    """

    def __init__(
        self,
        widths: Sequence[int],
        growths: Sequence[int],
        step: int,
        layers: int,
        classes: int,
        thresholds: Sequence[float],
    ) -> None:
        super().__init__()
        self.first_layer = FirstLayer(widths)
        self.scale_flows, self.classifier = nn.ModuleList(), nn.ModuleList()
        self.thresholds = list(thresholds)
        self.num_blocks = [step * i for i in range(len(widths) + 1)]
        low: list[list[int]] = []
        for scale, (inside, growth) in enumerate(zip(widths, growths, strict=True)):
            flow, made = nn.ModuleList(), []
            for index in range(self.num_blocks[scale + 1]):
                if index < self.num_blocks[scale]:
                    block = UpBlock(layers, inside, low[index], growth)
                    inside = block.widths[-1] + block.widths[-1] // 2
                else:
                    block = NormalBlock(layers, inside, growth)
                    inside = block.widths[-1]
                    self.classifier.append(Classifier(inside, 2 * widths[-1], classes))
                flow.append(block)
                made.append(block.widths)
            self.scale_flows.append(flow)
            low = made

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        inp = self.first_layer(x)
        low_ftrs = []
        classifier_idx = 0
        for ii in range(len(self.scale_flows)):
            _x = inp[ii]
            _low_ftrs = []
            for i in range(self.num_blocks[ii + 1]):
                if isinstance(self.scale_flows[ii][i], NormalBlock):
                    _x, _low_ftr = self.scale_flows[ii][i](_x)
                else:
                    _x, _low_ftr = self.scale_flows[ii][i](_x, low_ftrs[i])
                _low_ftrs.append(_low_ftr)
                if i >= self.num_blocks[ii]:
                    logits = self.classifier[classifier_idx](_x)
                    if classifier_idx == len(self.thresholds):
                        return logits, classifier_idx
                    max_preds, _ = F.softmax(logits, dim=1).max(dim=1)
                    if max_preds.item() >= self.thresholds[classifier_idx]:
                        return logits, classifier_idx
                    classifier_idx += 1
            low_ftrs = _low_ftrs


def _exit(result: tuple[Tensor, int]) -> Decisions:
    return (int(result[1]),)


NETWORKS = (
    DynamicNetwork(
        "ranet",
        "RANet, 3 scales, 6 exits, image [1, 3, 32, 32]",
        Form(lambda: RANet((12, 8), (8, 4), 1, 2, 5, (0.3687,)), images(1, 16), {(0,): 58, (1,): 153}),
        Form(
            lambda: RANet((64, 32, 16), (24, 12, 6), 2, 4, 10, (0.1595, 0.1658, 0.1776, 0.1476, 0.1334)),
            images(1, 32),
            {(0,): 3, (1,): 16, (2,): 61, (3,): 119, (4,): 67, (5,): 32},
        ),
        _exit,
    ),
)
