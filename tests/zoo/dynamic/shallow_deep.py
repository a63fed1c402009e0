"""Shallow-Deep Networks: image classifiers with internal classifiers, left at the first confident one.

Kaya, Hong and Dumitras, "Shallow-Deep Networks" (ICML 2019); github.com/yigitcankaya/Shallow-Deep-Networks:
``early_exit`` of ``architectures/SDNs/{VGG,ResNet,MobileNet,WideResNet}_SDN.py`` and
``aux_funcs.InternalClassifier``. Networks 1 to 4 of DyCL. For one image. As there, layers without a
classifier replace their ``forward`` on the instance, and where no exit was confident NumPy picks the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, images

Result = tuple[Tensor, int, bool]
Block = Callable[[int, int, int], nn.Module]
"""Makes a layer from its input and output channels and its stride."""


class InternalClassifier(nn.Module):
    """Maxima and averages mixed by a learned weight, then a linear layer; small maps are not pooled."""

    def __init__(self, size: int, channels: int, classes: int) -> None:
        super().__init__()
        if size > 4:
            kernel = size // 4
            self.max_pool, self.avg_pool = nn.MaxPool2d(kernel), nn.AvgPool2d(kernel)
            self.alpha = nn.Parameter(torch.rand(1))
            self.linear = nn.Linear(channels * (size // kernel) ** 2, classes)
            self.forward = self.forward_with_pooling
        else:
            self.linear = nn.Linear(channels * size * size, classes)
            self.forward = self.forward_without_pooling

    def forward_with_pooling(self, x: Tensor) -> Tensor:
        maxima = self.alpha * self.max_pool(x)
        averages = (1 - self.alpha) * self.avg_pool(x)
        mixed = maxima + averages
        return self.linear(mixed.view(mixed.size(0), -1))

    def forward_without_pooling(self, x: Tensor) -> Tensor:
        return self.linear(x.view(x.size(0), -1))


class Layer(nn.Module):
    """A layer of a network: its output, whether it has a classifier, and the logits of that."""

    def __init__(self, body: nn.Module, classifier: nn.Module | None) -> None:
        super().__init__()
        self.body = body
        self.output = classifier
        if classifier is None:
            self.forward = self.only_forward

    def forward(self, x: Tensor) -> tuple[Tensor, int, Tensor | None]:
        x = self.body(x)
        return x, 1, self.output(x)

    def only_forward(self, x: Tensor) -> tuple[Tensor, int, Tensor | None]:
        return self.body(x), 0, None


class ShallowDeep(nn.Module):
    """The loop of all four networks.

    Returns the logits, the index of the exit, and whether it was left early.
    """

    def __init__(self, stem: nn.Module, layers: Sequence[Layer], end: nn.Module, threshold: float) -> None:
        super().__init__()
        self.stem = stem
        self.layers = nn.ModuleList(layers)
        self.end = end
        self.confidence_threshold = threshold

    def forward(self, x: Tensor) -> Result:
        answers = []
        confidences = []
        x = self.stem(x)
        exit_id = 0
        for layer in self.layers:
            x, has_output, logits = layer(x)
            if has_output:
                answers.append(logits)
                probabilities = F.softmax(logits[0], dim=0)
                confidence = torch.max(probabilities)
                confidences.append(confidence)
                if confidence >= self.confidence_threshold:
                    is_early = True
                    return logits, exit_id, is_early
                exit_id += has_output
        logits = self.end(x)
        answers.append(logits)
        confidences.append(torch.max(F.softmax(logits[0], dim=0)))
        best = np.argmax(confidences)
        is_early = False
        return answers[best], best, is_early


class Residual(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class WideResidual(nn.Module):
    """WideResNet's block: norms first, the stride in the second convolution, biases."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.ReLU(inplace=True),
            nn.Conv2d(inside, outside, 3, padding=1),
            nn.Dropout(0.3),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, stride, padding=1),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def _separable(inside: int, outside: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, inside, 3, stride, padding=1, groups=inside, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, outside, 1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
    )


def _convolution(inside: int, outside: int, pool: int) -> nn.Module:
    layers = [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(pool)) if pool > 1 else nn.Sequential(*layers)


@dataclass(frozen=True)
class Row:
    """A layer of a table: output channels, stride (VGG: pooling), whether a classifier follows."""

    out: int
    stride: int = 1
    exit: bool = False


def _layers(make: Block, rows: Sequence[Row], inside: int, size: int, classes: int) -> list[Layer]:
    layers: list[Layer] = []
    for row in rows:
        size //= row.stride
        classifier = InternalClassifier(size, row.out, classes) if row.exit else None
        layers.append(Layer(make(inside, row.out, row.stride), classifier))
        inside = row.out
    return layers


def _map_size(rows: Sequence[Row], image: int) -> int:
    return image // math.prod(row.stride for row in rows)


def vgg(rows: Sequence[Row], image: int, hidden: int, classes: int, threshold: float) -> ShallowDeep:
    layers = _layers(_convolution, rows, 3, image, classes)
    flat = rows[-1].out * _map_size(rows, image) ** 2
    head = nn.Sequential(nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Dropout(0.5))
    end = nn.Sequential(nn.Linear(hidden, hidden), nn.Dropout(0.5), nn.Linear(hidden, classes))
    return ShallowDeep(nn.Sequential(), [*layers, Layer(head, None)], end, threshold)


def resnet(rows: Sequence[Row], image: int, width: int, classes: int, threshold: float) -> ShallowDeep:
    stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    pool = nn.AvgPool2d(_map_size(rows, image))
    end = nn.Sequential(pool, nn.Flatten(), nn.Linear(rows[-1].out, classes))
    return ShallowDeep(stem, _layers(Residual, rows, width, image, classes), end, threshold)


def mobilenet(rows: Sequence[Row], image: int, width: int, classes: int, threshold: float) -> ShallowDeep:
    norm = nn.BatchNorm2d(width)
    stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), norm, nn.ReLU(inplace=True))
    pool = nn.AvgPool2d(_map_size(rows, image))
    end = nn.Sequential(pool, nn.Flatten(), nn.Linear(rows[-1].out, classes))
    return ShallowDeep(stem, _layers(_separable, rows, width, image, classes), end, threshold)


def wide_resnet(rows: Sequence[Row], image: int, width: int, classes: int, threshold: float) -> ShallowDeep:
    end = nn.Sequential(
        nn.BatchNorm2d(rows[-1].out),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(_map_size(rows, image)),
        nn.Flatten(),
        nn.Linear(rows[-1].out, classes),
    )
    stem = nn.Conv2d(3, width, 3, padding=1)
    return ShallowDeep(stem, _layers(WideResidual, rows, width, image, classes), end, threshold)


def staged(widths: Sequence[int], depth: int, exits: Sequence[int]) -> tuple[Row, ...]:
    """``depth`` blocks a stage, each stage after the first at half the size; ``exits`` counts over all."""
    return tuple(
        Row(width, 2 if stage and not block else 1, stage * depth + block in exits)
        for stage, width in enumerate(widths)
        for block in range(depth)
    )


def _vgg16() -> tuple[Row, ...]:
    channels = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    pools = (1, 2, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 2)
    exits = (1, 3, 5, 6, 8, 9)
    return tuple(Row(*each, index in exits) for index, each in enumerate(zip(channels, pools, strict=True)))


def _mobilenet() -> tuple[Row, ...]:
    out = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    exits = (2, 4, 6, 8, 10, 11)
    return tuple(Row(*each, index in exits) for index, each in enumerate(zip(out, strides, strict=True)))


def _decisions(result: Result) -> Decisions:
    _, exit_id, is_early = result
    return int(exit_id), int(is_early)


def _network(name: str, workload: str, small: Form, full: Form) -> DynamicNetwork:
    return DynamicNetwork(f"shallow_deep_{name}", f"Shallow-Deep {workload}", small, full, _decisions)


def _heads(exits: Sequence[int], gains: Sequence[float]) -> dict[str, float]:
    return {f"layers.{i}.output.linear.weight": gain for i, gain in zip(exits, gains, strict=True)}


_RESNET_EXITS, _WIDE_EXITS = (3, 7, 11, 15, 19, 23), (2, 4, 6, 8, 10, 12)
_SMALL_VGG = (Row(8, 1), Row(8, 2, True), Row(12, 2, True), Row(16, 2))
_SMALL_MOBILENET = (Row(12), Row(16, 2, True), Row(24, 2, True), Row(24, 2))

NETWORKS = (
    _network(
        "vgg",
        "VGG-16, image [1, 3, 32, 32]",
        Form(
            lambda: vgg(_SMALL_VGG, 16, 24, 5, 0.55),
            images(1, 16),
            {(0, 0): 73, (0, 1): 129, (1, 0): 197, (1, 1): 61, (2, 0): 132},
            gains={"end.2.weight": 4.0},
        ),
        Form(
            lambda: vgg(_vgg16(), 32, 512, 10, 0.6),
            images(1, 32),
            {
                (0, 1): 88,
                (1, 0): 50,
                (1, 1): 76,
                (2, 1): 198,
                (3, 0): 89,
                (3, 1): 39,
                (4, 0): 170,
                (4, 1): 142,
                (5, 0): 169,
                (5, 1): 193,
                (6, 0): 79,
            },
            gains=_heads((1, 3, 5, 6, 8, 9), (0.81, 3.1, 2.1, 7.4, 11.0, 16.0)) | {"end.2.weight": 11.0},
        ),
    ),
    _network(
        "resnet",
        "ResNet-56, image [1, 3, 32, 32]",
        Form(
            lambda: resnet(staged((8, 12, 16), 2, (1, 3)), 16, 8, 5, 0.7),
            images(1, 16),
            {(0, 0): 57, (0, 1): 19, (1, 0): 107, (1, 1): 54, (2, 0): 179},
            gains={
                "layers.1.output.linear.weight": 0.6,
                "layers.3.output.linear.weight": 1.3,
                "end.2.weight": 2.5,
            },
        ),
        Form(
            lambda: resnet(staged((16, 32, 64), 9, _RESNET_EXITS), 32, 16, 10, 0.6),
            images(1, 32),
            {
                (0, 1): 25,
                (1, 0): 117,
                (1, 1): 1,
                (2, 0): 23,
                (2, 1): 127,
                (3, 0): 47,
                (3, 1): 114,
                (4, 0): 107,
                (4, 1): 41,
                (5, 0): 183,
                (5, 1): 35,
                (6, 0): 119,
            },
            gains=_heads(_RESNET_EXITS, (0.46, 0.88, 0.32, 0.56, 0.26, 0.083)) | {"end.2.weight": 0.068},
        ),
    ),
    _network(
        "mobilenet",
        "MobileNet, image [1, 3, 32, 32]",
        Form(
            lambda: mobilenet(_SMALL_MOBILENET, 16, 8, 5, 0.7),
            images(1, 16),
            {(0, 0): 143, (0, 1): 7, (1, 0): 52, (1, 1): 183, (2, 0): 82},
            gains={
                "layers.1.output.linear.weight": 3.0,
                "layers.2.output.linear.weight": 5.0,
                "end.2.weight": 6.0,
            },
        ),
        Form(
            lambda: mobilenet(_mobilenet(), 32, 32, 10, 0.6),
            images(1, 32),
            {
                (0, 1): 59,
                (1, 1): 20,
                (2, 1): 144,
                (3, 1): 69,
                (5, 1): 21,
                (6, 0): 102,
            },
            gains=_heads((2, 4, 6, 8, 10, 11), (0.29, 2.9, 6.2, 7.0, 14.0, 22.0))
            | {"stem.0.weight": 25.0, "end.2.weight": 6.6},
        ),
    ),
    _network(
        "wide_resnet",
        "WideResNet-32-4, image [1, 3, 32, 32]",
        Form(
            lambda: wide_resnet(staged((8, 12, 16), 1, (0, 1)), 16, 8, 5, 0.7),
            images(1, 16),
            {(0, 0): 50, (0, 1): 178, (1, 0): 193, (1, 1): 5, (2, 0): 96},
            gains={"layers.0.output.linear.weight": 0.6, "end.4.weight": 1.5},
        ),
        Form(
            lambda: wide_resnet(staged((64, 128, 256), 5, _WIDE_EXITS), 32, 16, 10, 0.6),
            images(1, 32),
            {
                (0, 0): 110,
                (0, 1): 168,
                (1, 0): 50,
                (1, 1): 157,
                (2, 0): 2,
                (2, 1): 161,
                (3, 0): 133,
                (3, 1): 129,
                (4, 0): 117,
                (4, 1): 77,
                (5, 0): 158,
                (5, 1): 188,
                (6, 0): 57,
            },
            gains=_heads(_WIDE_EXITS, (0.73, 0.4, 0.3, 0.29, 0.28, 0.18)) | {"end.4.weight": 0.44},
        ),
    ),
)
