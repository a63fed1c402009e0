"""A small residual network (He et al., arXiv:1512.03385) with batch normalisation (arXiv:1502.03167)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.zoo.checking import check, normal


class Block(nn.Module):
    """Two convolutions with batch normalisation and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outside) for _ in range(3))
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y))
        return torch.relu(y + self.norms[2](self.shortcut(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.blocks = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(torch.flatten(self.pool(self.blocks(self.stem(images))), 1))


def test_residual_network() -> None:
    examples = [(normal(batch, 3, 32, 32),) for batch in (2, 1, 5)]
    check(ResNet(), *examples, dynamic_shapes=({0: Dim.AUTO},))
