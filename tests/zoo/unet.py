"""U-Nets (Ronneberger et al., arXiv:1505.04597): an encoder and a decoder joined by skips, upsampling by a
transposed convolution as in the paper, or by interpolation (Odena et al., "Deconvolution and Checkerboard
Artifacts", Distill 2016). Convolutions are padded, as most implementations have them.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _double(inside: int, outside: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (inside, outside):
        layers += [
            nn.Conv2d(width, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(True),
        ]
    return nn.Sequential(*layers)


class Up(nn.Module):
    """Twice the size, with half the channels."""

    def __init__(self, channels: int, upsampling: str) -> None:
        super().__init__()
        self.upsampling = upsampling
        if upsampling == "transposed":
            self.resize = nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)
        else:
            self.resize = nn.Conv2d(channels, channels // 2, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.upsampling == "transposed":
            return self.resize(x)
        align = False if self.upsampling == "bilinear" else None
        return self.resize(F.interpolate(x, size=skip.shape[-2:], mode=self.upsampling, align_corners=align))


class UNet(nn.Module):
    """``depth`` halvings of the image; ``upsampling`` is ``transposed``, ``nearest`` or ``bilinear``.

    With ``transposed`` the sides of the image are multiples of ``2 ** depth``; the others take any.
    """

    def __init__(self, width: int, depth: int, classes: int, upsampling: str) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.stem = _double(3, width)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_double(thin, wide) for thin, wide in pairs)
        self.up = nn.ModuleList(Up(wide, upsampling) for _, wide in reversed(pairs))
        self.merge = nn.ModuleList(_double(wide, thin) for thin, wide in reversed(pairs))
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        skips = [self.stem(images)]
        for down in self.down:
            skips.append(down(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            skip = skips.pop()
            x = merge(torch.cat([skip, up(x, skip)], 1))
        return self.classify(x)
