"""MobileNets: inverted residuals (V2: Sandler et al., arXiv:1801.04381), with squeeze and excitation and
hard swish (V3: Howard et al., arXiv:1905.02244; Hu et al., arXiv:1709.01507). Written from the tables there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """A line of the papers' tables: kernel, expanded and output channels, options of the block."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    hard_swish: bool
    stride: int


class SqueezeExcite(nn.Module):
    """Channels weighted by a gate of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 4, 8)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def _convolution(
    inside: int, outside: int, kernel: int, stride: int, groups: int, act: nn.Module
) -> nn.Module:
    padding = kernel // 2
    convolution = nn.Conv2d(inside, outside, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), act)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; a shortcut where the shapes allow it."""

    def __init__(self, inside: int, row: Row, version: int) -> None:
        super().__init__()
        plain = nn.ReLU6 if version == 2 else nn.ReLU
        make = nn.Hardswish if row.hard_swish else plain
        wide = row.expanded
        layers: list[nn.Module] = []
        if wide != inside:
            layers.append(_convolution(inside, wide, 1, 1, 1, make()))
        layers.append(_convolution(wide, wide, row.kernel, row.stride, wide, make()))
        if row.squeeze:
            layers.append(SqueezeExcite(wide))
        layers.append(_convolution(wide, row.out, 1, 1, 1, nn.Identity()))
        self.layers = nn.Sequential(*layers)
        self.shortcut = row.stride == 1 and inside == row.out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


class MobileNet(nn.Module):
    """``version`` is 2 or 3: which activations, and whether the head has a hidden layer."""

    def __init__(self, version: int, stem: int, rows: Sequence[Row], last: int, classes: int) -> None:
        super().__init__()
        last_act: nn.Module = nn.ReLU6() if version == 2 else nn.Hardswish()
        first_act: nn.Module = nn.ReLU6() if version == 2 else nn.Hardswish()
        inside = [stem, *(row.out for row in rows)]
        blocks = [InvertedResidual(n, row, version) for n, row in zip(inside, rows, strict=False)]
        self.features = nn.Sequential(
            _convolution(3, stem, 3, 2, 1, first_act),
            *blocks,
            _convolution(inside[-1], last, 1, 1, 1, last_act),
        )
        hidden = [nn.Linear(last, last), nn.Hardswish()] if version == 3 else []
        self.head = nn.Sequential(*hidden, nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean([2, 3]))


def v2_rows() -> tuple[Row, ...]:
    """Table 2 of the V2 paper: expansion, channels, repeats, stride."""
    rows: list[Row] = []
    inside = 32
    for expansion, out, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for index in range(repeats):
            rows.append(Row(3, inside * expansion, out, False, False, stride if index == 0 else 1))
            inside = out
    return tuple(rows)


def v3_rows() -> tuple[Row, ...]:
    """Table 1 of the V3 paper (large)."""
    table = (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    )
    return tuple(Row(*entry) for entry in table)
