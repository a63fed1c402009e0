"""BlockDrop: a policy network decides, before the trunk runs, which of its residual blocks do.

Wu et al., "BlockDrop" (CVPR 2018); github.com/Tushar-N/blockdrop, ``models/resnet.py``: ``FlatResNet32``,
``forward_single`` for one image and ``forward`` for a batch, ``Policy32``; the policy is rounded as in
``test.py``, by writes through masks. Network 9 of DyCL.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, images


class Residual(nn.Module):
    """The residual branch alone: the sum and the last activation are the network's."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Downsample(nn.Module):
    """Means, and channels of zeros, which the original writes as a product with 0."""

    def __init__(self, ratio: int, stride: int) -> None:
        super().__init__()
        self.avg = nn.AvgPool2d(stride)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        x = self.avg(x)
        return torch.cat([x] + [x.mul(0)] * (self.ratio - 1), 1)


class FlatResNet(nn.Module):
    """Blocks in segments of rising width, each segment after the first at half the size."""

    def __init__(self, layers: Sequence[int], width: int, image: int) -> None:
        super().__init__()
        self.layer_config = layers
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.blocks, self.ds = nn.ModuleList(), nn.ModuleList()
        inside = width
        for segment, count in enumerate(layers):
            outside, stride = width << segment, 2 if segment else 1
            same = inside == outside
            self.ds.append(nn.Sequential() if same else Downsample(outside // inside, stride))
            first = Residual(inside, outside, stride)
            self.blocks.append(
                nn.ModuleList([first, *(Residual(outside, outside, 1) for _ in range(count - 1))])
            )
            inside = outside
        self.avgpool = nn.AvgPool2d(image >> (len(layers) - 1))
        self.fc: nn.Module = nn.Sequential()
        self.features = inside

    def seed(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)))

    def classify(self, x: Tensor) -> Tensor:
        x = self.avgpool(x)
        return self.fc(x.view(x.size(0), -1))

    def forward(self, x: Tensor, policy: Tensor) -> Tensor:
        x = self.seed(x)
        t = 0
        for segment, num_blocks in enumerate(self.layer_config):
            for b in range(num_blocks):
                action = policy[:, t].contiguous()
                residual = self.ds[segment](x) if b == 0 else x

                if action.data.sum() == 0:
                    x = residual
                    t += 1
                    continue

                action_mask = action.float().view(-1, 1, 1, 1)
                fx = F.relu(residual + self.blocks[segment][b](x))
                x = fx * action_mask + residual * (1 - action_mask)
                t += 1
        return self.classify(x)

    def forward_single(self, x: Tensor, policy: Tensor) -> Tensor:
        x = self.seed(x)
        t = 0
        for segment, num_blocks in enumerate(self.layer_config):
            for b in range(num_blocks):
                residual = self.ds[segment](x) if b == 0 else x
                if policy[t] == 1:
                    x = residual + self.blocks[segment][b](x)
                    x = F.relu(x)
                else:
                    x = residual
                t += 1
        return self.classify(x)

    def forward_full(self, x: Tensor) -> Tensor:
        x = self.seed(x)
        for segment, num_blocks in enumerate(self.layer_config):
            for b in range(num_blocks):
                residual = self.ds[segment](x) if b == 0 else x
                x = F.relu(residual + self.blocks[segment][b](x))
        return self.classify(x)


class Policy(nn.Module):
    """A probability for each block of the trunk, and the value estimate that only training reads."""

    def __init__(self, blocks: int, width: int, image: int) -> None:
        super().__init__()
        self.features = FlatResNet((1, 1, 1), width, image)
        self.logit = nn.Linear(self.features.features, blocks)
        self.vnet = nn.Linear(self.features.features, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features.forward_full(x)
        value = self.vnet(x)
        probs = torch.sigmoid(self.logit(x))
        return probs, value


class BlockDrop(nn.Module):
    """Policy and trunk; ``single`` takes the trunk's way for one image. Returns the logits and the policy."""

    def __init__(self, layers: Sequence[int], width: int, image: int, classes: int, single: bool) -> None:
        super().__init__()
        self.agent = Policy(sum(layers), width, image)
        self.rnet = FlatResNet(layers, width, image)
        self.rnet.fc = nn.Linear(self.rnet.features, classes)
        self.single = single

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        probs, _ = self.agent(x)
        policy = probs.clone()
        policy[policy < 0.5] = 0.0
        policy[policy >= 0.5] = 1.0
        if self.single:
            return self.rnet.forward_single(x, policy.data.squeeze(0)), policy
        return self.rnet(x, policy), policy


def _decisions(result: tuple[Tensor, Tensor]) -> Decisions:
    return tuple(int(bit) for bit in result[1].flatten())


_GAINS = {"agent.logit.weight": 4.0}
_SMALL_SHIFTS = {"agent.logit.bias": (-7.3, -13.0, -0.9, 4.8, 3.6)}
_SMALL_PATHS = {(0, 0, 0, 1, 1): 34, (1, 1, 1, 0, 0): 30}
_SMALL_BATCH_PATHS = {(1, 1, 1, 0, 0, 1, 1, 1, 0, 0): 48, (0, 0, 0, 1, 1, 0, 0, 0, 1, 1): 181}

_SHIFTS = {
    "agent.logit.bias": (
        *(
            -4.87,
            0.22,
            1.66,
            -6.23,
            -2.3,
            -4.59,
            -3.19,
            0.02,
            2.84,
            2.9,
            3.8,
            -0.44,
            3.3,
            -4.74,
            4.86,
            -3.74,
            4.57,
            4.87,
        ),
        *(
            0.11,
            1.07,
            3.54,
            -1.89,
            -4.78,
            -1.31,
            -6.84,
            -0.5,
            1.03,
            1.03,
            0.84,
            -2.43,
            -3.41,
            2.68,
            -0.34,
            2.91,
            0.33,
            4.32,
        ),
        *(
            -0.92,
            2.59,
            5.06,
            -3.71,
            4.51,
            -1.32,
            7.48,
            -0.88,
            -2.98,
            -0.52,
            -0.36,
            0.51,
            4.22,
            -1.74,
            -2.27,
            4.82,
            -0.91,
            0.53,
        ),
    )
}


def _bits(text: str) -> Decisions:
    return tuple(int(bit) for bit in text)


_PATHS = {
    _bits("111111100000010100110111111111100110000101011111011010"): 16,
    _bits("100110010011001100000001000001101001010010100010000111"): 35,
}
_BATCH_PATHS = {
    _bits("000000011000111011011001000000001001011010100001100111011000101001000110011000110011111111")
    + _bits("001001111101001110"): 35
}

NETWORKS = (
    DynamicNetwork(
        "blockdrop",
        "BlockDrop on ResNet-110, image [1, 3, 32, 32]",
        Form(
            lambda: BlockDrop((2, 1, 2), 8, 16, 5, single=True),
            images(1, 16),
            _SMALL_PATHS,
            _GAINS,
            _SMALL_SHIFTS,
        ),
        Form(
            lambda: BlockDrop((18, 18, 18), 16, 32, 10, single=True), images(1, 32), _PATHS, _GAINS, _SHIFTS
        ),
        _decisions,
    ),
    DynamicNetwork(
        "blockdrop_batch",
        "BlockDrop on ResNet-110, images [2, 3, 32, 32]",
        Form(
            lambda: BlockDrop((2, 1, 2), 8, 16, 5, single=False),
            images(2, 16),
            _SMALL_BATCH_PATHS,
            _GAINS,
            _SMALL_SHIFTS,
        ),
        Form(
            lambda: BlockDrop((18, 18, 18), 16, 32, 10, single=False),
            images(2, 32),
            _BATCH_PATHS,
            _GAINS,
            _SHIFTS,
        ),
        _decisions,
    ),
)
