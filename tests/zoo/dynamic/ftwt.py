"""FTWT: channels of a convolution kept or dropped for each image, as predicted from the layer's input.

Elkerdawy et al., "Fire Together Wire Together" (CVPR 2022); github.com/selkerdawy/FTWT, ``utils/layers.py``
(``ConvWithMask``, ``MaskPredictorNN``, ``AdaptiveNormalize``, ``BinarizerSTEStatic``, ``get_gt_mask_ratio``)
in the VGG of ``models/cifar/vgg.py``. As there, all channels are computed and multiplied by masks of 0 and 1,
and evaluation still computes the target masks of training, which nobody reads, and counts operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, images

Result = tuple[Tensor, list[Tensor], Tensor]


class Binarizer(torch.autograd.Function):
    """0 or 1, by writes through masks; its gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, threshold: float, inputs: Tensor) -> Tensor:
        outputs = inputs.clone()
        outputs[inputs.le(threshold)] = 0
        outputs[inputs.gt(threshold)] = 1
        return outputs


def target_mask(x: Tensor, mass: float) -> Tensor:
    """The fewest channels whose largest activations sum to ``mass`` of all."""
    activations = F.max_pool2d(x.abs(), kernel_size=x.size()[2:]).mean(dim=(2, 3))
    mask = torch.ones(*activations.shape, 1, 1, device=x.device)
    normalized = activations / activations.sum(1, keepdim=True)
    sorted_acts, sorted_idx = torch.sort(normalized, descending=True, dim=1)
    i, j = torch.where(torch.cumsum(sorted_acts, dim=1) - mass > 1e-5)
    mask[i, sorted_idx[i, j], 0, 0] = 0
    return mask


class Predictor(nn.Module):
    """Norms of the input's channels, then a 1x1 convolution to a logit for each output channel."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        norms = x.norm(p=2, dim=(2, 3))
        return self.conv(norms.view(x.size(0), -1, 1, 1))


class ConvWithMask(nn.Module):
    def __init__(self, inside: int, outside: int, mass: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outside)
        self.fn = nn.ReLU(inplace=True)
        self.mask = Predictor(inside, outside)
        self.mass = mass

    def forward(
        self, x: Tensor, all_masks: list[Tensor], all_targets: list[Tensor], prev: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        out = self.fn(self.bn(self.conv(x)))
        pred_logit = self.mask(x.detach())
        with torch.no_grad():
            target = target_mask(out, self.mass)
            binary = Binarizer.apply(0.5, nn.Sigmoid()(pred_logit))
        out = out * binary
        all_masks += [binary]
        all_targets += [target]
        active = binary.mean(dim=(2, 3)).sum(1).detach().cpu()
        flops = active * (out.shape[2] * out.shape[3]) * (prev * 9)
        return out, active, flops


class MaskedVGG(nn.Module):
    """``cfg`` are channels, "M" is a pooling. Returns the logits, the masks and the count of operations."""

    def __init__(self, cfg: Sequence[int | str], mass: float, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for entry in cfg:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers.append(ConvWithMask(inside, entry, mass))
                inside = entry
        self.features = nn.ModuleList(layers)
        self.classifier = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Result:
        all_masks: list[Tensor] = []
        all_targets: list[Tensor] = []
        total = x.new_zeros(x.size(0))
        active = torch.full((x.size(0),), 3.0)
        for layer in self.features:
            if isinstance(layer, ConvWithMask):
                x, active, flops = layer(x, all_masks, all_targets, active)
                total = total + flops
            else:
                x = layer(x)
        x = F.adaptive_avg_pool2d(x, 1)
        return self.classifier(x.view(x.size(0), -1)), all_masks, total


def _active(result: Result) -> Decisions:
    """Channels kept in each layer of the first image."""
    return tuple(int(mask[0].sum()) for mask in result[1])


_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)

NETWORKS = (
    DynamicNetwork(
        "ftwt",
        "FTWT on VGG-16, images [1, 3, 32, 32]",
        Form(lambda: MaskedVGG((8, "M", 12), 0.92, 5), images(2, 16), {(2, 7): 17, (1, 7): 72, (2, 5): 13}),
        Form(
            lambda: MaskedVGG(_VGG16, 0.92, 10),
            images(1, 32),
            {(28, 26, 54, 54, 137, 139, 129, 259, 251, 252, 263, 249, 235): 1},
        ),
        _active,
        idle=(
            "sorted_acts, sorted_idx = torch.sort(normalized, descending=True, dim=1)",
            "i, j = torch.where(torch.cumsum(sorted_acts, dim=1) - mass > 1e-5)",
        ),
    ),
)
