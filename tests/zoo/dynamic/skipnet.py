"""SkipNet: residual blocks behind gates that see the features before them.

Wang et al., "SkipNet" (ECCV 2018); github.com/ucbdrive/skipnet, ``cifar/models.py``: ``ResNetFeedForwardSP``
with ``FeedforwardGateI`` and ``ResNetRecurrentGateSP`` with ``RNNGate``. Networks 5 and 6 of DyCL. As there,
blocks and gates are attributes found by name, a block's downsampling is registered beside it too and runs for
the skipped features, the recurrent gate keeps its hidden state on itself, and the masks are straight-through
expressions that are exactly 0 or 1. The repository runs every block and blends (``SkipNet``); ``Skipping`` is
its loop for one image with a test in place of the blend, as DyCL runs it. The gates flatten where the
original squeezes, which fails for one image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, Paths, images

Result = tuple[Tensor, list[Tensor], list[Tensor]]
Trained = tuple[Paths, Mapping[str, float], Mapping[str, float | Sequence[float]]]
"""The last three fields of a form: paths, gains and shifts."""


def conv3x3(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inside, outside, stride), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = conv3x3(outside, outside), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return self.relu(out)


class FeedForwardGate(nn.Module):
    """A small convolutional network over a map of ``size``; returns the mask and log-probabilities."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.maxpool = nn.MaxPool2d(2)
        self.conv1, self.bn1, self.relu1 = (
            conv3x3(channels, channels),
            nn.BatchNorm2d(channels),
            nn.ReLU(True),
        )
        self.conv2, self.bn2, self.relu2 = (
            conv3x3(channels, channels, 2),
            nn.BatchNorm2d(channels),
            nn.ReLU(True),
        )
        pooled = math.floor(size / 2)
        pooled = math.floor(pooled / 2 + 0.5)
        self.avg_layer = nn.AvgPool2d(pooled)
        self.linear_layer = nn.Conv2d(channels, 2, 1)
        self.prob_layer = nn.Softmax(dim=1)
        self.logprob = nn.LogSoftmax(dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.maxpool(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.linear_layer(self.avg_layer(x)).flatten(1)
        softmax = self.prob_layer(x)
        logprob = self.logprob(x)
        mask = (softmax[:, 1] > 0.5).float().detach() - softmax[:, 1].detach() + softmax[:, 1]
        return mask.view(mask.size(0), 1, 1, 1), logprob


class RecurrentGate(nn.Module):
    """One LSTM for all blocks, over their embedded features; its hidden state is an attribute."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden_dim = hidden
        self.rnn = nn.LSTM(width, hidden)
        self.hidden = None
        self.proj = nn.Linear(hidden, 1)
        self.prob = nn.Sigmoid()

    def init_hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, x.size(0), self.hidden_dim)
        return x.new_zeros(shape), x.new_zeros(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.size(0)
        out, self.hidden = self.rnn(x.view(1, batch, -1), self.hidden)
        prob = self.prob(self.proj(out.squeeze(0)))
        mask = (prob > 0.5).float().detach() - prob.detach() + prob
        return mask.view(batch, 1, 1, 1), prob


class SkipNet(nn.Module):
    """``layers`` blocks in three groups of ``widths``; ``recurrent`` tells the kind of gate.

    Returns the logits, the masks of all blocks but the first, and the gates' probabilities.
    """

    def __init__(
        self, layers: Sequence[int], widths: Sequence[int], image: int, classes: int, recurrent: bool
    ) -> None:
        super().__init__()
        self.num_layers = layers
        self.inplanes = widths[0]
        self.conv1, self.bn1, self.relu = conv3x3(3, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU(True)
        self.control = RecurrentGate(10, 10) if recurrent else None
        for group, (count, width) in enumerate(zip(layers, widths, strict=True), start=1):
            self._make_group(group, count, width, image >> (group - 1))
        self.avgpool = nn.AvgPool2d(image >> 2)
        self.fc = nn.Linear(widths[-1], classes)

    def _make_group(self, group: int, count: int, width: int, size: int) -> None:
        for index in range(count):
            stride = 2 if group > 1 and index == 0 else 1
            downsample = None
            if stride != 1 or self.inplanes != width:
                downsample = nn.Sequential(
                    nn.Conv2d(self.inplanes, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )
            if self.control is None:
                gate = FeedForwardGate(size, width)
            else:
                gate = nn.Sequential(nn.AvgPool2d(size), nn.Conv2d(width, 10, 1))
            setattr(self, f"group{group}_ds{index}", downsample)
            setattr(self, f"group{group}_layer{index}", BasicBlock(self.inplanes, width, stride, downsample))
            setattr(self, f"group{group}_gate{index}", gate)
            self.inplanes = width

    def gate(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.control is None:
            return getattr(self, name)(x)
        return self.control(getattr(self, name)(x))

    def forward(self, x: Tensor) -> Result:
        x = self.relu(self.bn1(self.conv1(x)))
        if self.control is not None:
            self.control.hidden = self.control.init_hidden(x)
        masks = []
        probabilities = []
        x = self.group1_layer0(x)
        mask, probability = self.gate("group1_gate0", x)
        probabilities.append(probability)
        masks.append(mask.squeeze())
        prev = x

        for g in range(3):
            for i in range(0 + int(g == 0), self.num_layers[g]):
                if getattr(self, f"group{g + 1}_ds{i}") is not None:
                    prev = getattr(self, f"group{g + 1}_ds{i}")(prev)
                x = getattr(self, f"group{g + 1}_layer{i}")(x)
                prev = x = mask.expand_as(x) * x + (1 - mask).expand_as(prev) * prev
                mask, probability = self.gate(f"group{g + 1}_gate{i}", x)
                probabilities.append(probability)
                masks.append(mask.squeeze())

        del masks[-1]
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        return self.fc(x), masks, probabilities


class Skipping(SkipNet):
    """The same network for one image: a block whose gate says no does not run."""

    def forward(self, x: Tensor) -> Result:
        x = self.relu(self.bn1(self.conv1(x)))
        if self.control is not None:
            self.control.hidden = self.control.init_hidden(x)
        masks = []
        probabilities = []
        x = self.group1_layer0(x)
        mask, probability = self.gate("group1_gate0", x)
        probabilities.append(probability)
        masks.append(mask.squeeze())

        for g in range(3):
            for i in range(0 + int(g == 0), self.num_layers[g]):
                if mask > 0.5:
                    x = getattr(self, f"group{g + 1}_layer{i}")(x)
                elif getattr(self, f"group{g + 1}_ds{i}") is not None:
                    x = getattr(self, f"group{g + 1}_ds{i}")(x)
                mask, probability = self.gate(f"group{g + 1}_gate{i}", x)
                probabilities.append(probability)
                masks.append(mask.squeeze())

        del masks[-1]
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        return self.fc(x), masks, probabilities


def _decisions(result: Result) -> Decisions:
    return tuple(int(mask) for mask in result[1])


def _network(
    name: str, kind: type[SkipNet], recurrent: bool, small: Trained, full: Trained
) -> DynamicNetwork:
    gate = "RNN" if recurrent else "feed-forward"
    return DynamicNetwork(
        name,
        f"SkipNet-38 with {gate} gates, image [1, 3, 32, 32]",
        Form(lambda: kind((2, 2, 1), (8, 12, 16), 16, 5, recurrent), images(1, 16), *small),
        Form(lambda: kind((6, 6, 6), (16, 32, 64), 32, 10, recurrent), images(1, 32), *full),
        _decisions,
    )


def _gates(layers: Sequence[int]) -> list[str]:
    """Those whose masks are used: the last block's is not."""
    return [f"group{g}_gate{i}" for g, count in enumerate(layers, start=1) for i in range(count)][:-1]


def _feed_forward(layers: Sequence[int], paths: Paths, shifts: Sequence[float]) -> Trained:
    """``shifts`` are added to each gate's logit for running the block."""
    gates = _gates(layers)
    gains = {f"{gate}.linear_layer.weight": 4.0 for gate in gates}
    terms = {f"{gate}.linear_layer.bias": (0.0, s) for gate, s in zip(gates, shifts, strict=True)}
    return paths, gains, terms


def _recurrent(layers: Sequence[int], paths: Paths, shift: float) -> Trained:
    gains = {f"{gate}.1.weight": 8.0 for gate in _gates(layers)}
    return paths, {**gains, "control.proj.weight": 4.0}, {"control.proj.bias": shift}


_SMALL_FEED_FORWARD = _feed_forward(
    (2, 2, 1), {(1, 1, 0, 1): 159, (0, 0, 1, 0): 70}, (-2.392, -4.617, 4.779, -0.566)
)
_SMALL_RECURRENT = _recurrent((2, 2, 1), {(0, 0, 0, 0): 29, (0, 1, 1, 1): 153}, -1.2)
_FEED_FORWARD = _feed_forward(
    (6, 6, 6),
    {
        (1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0): 7,
        (0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 1): 28,
        (1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0): 43,
    },
    (
        *(-3.456, 9.711, 1.585, -0.752, -9.656, -0.304),
        *(6.665, -2.473, 0.476, 0.55, 11.181, -2.73),
        *(3.733, 3.019, 4.162, -1.659, 1.687),
    ),
)
_RECURRENT = _recurrent(
    (6, 6, 6),
    {
        (0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 0): 2,
        (0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 1, 1, 1): 30,
        (0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 1): 139,
        (0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1): 145,
        (0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1): 117,
        (0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1): 129,
    },
    -1.0,
)

NETWORKS = (
    _network("skipnet_ff", SkipNet, False, _SMALL_FEED_FORWARD, _FEED_FORWARD),
    _network("skipnet_rnn", SkipNet, True, _SMALL_RECURRENT, _RECURRENT),
    _network("skipnet_ff_skipping", Skipping, False, _SMALL_FEED_FORWARD, _FEED_FORWARD),
    _network("skipnet_rnn_skipping", Skipping, True, _SMALL_RECURRENT, _RECURRENT),
)
