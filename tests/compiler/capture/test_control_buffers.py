"""Buffers that arms and trips assign and write to through their attributes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.compiler.capture.running import check_calls

CALLS = [(torch.tensor([[1.0, -0.4], [0.7, 0.2]]) * scale,) for scale in (2.0, -3.0, 0.1, 9.0, -0.5)]


class Counts(nn.Module):
    """A count of the trips, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x * 0.5
            self.n += 1
        return x * self.n


class Assigns(Counts):
    def forward(self, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x * 0.5
            if x.sum() > 0:
                self.n = self.n + 2
        return x + self.n


class Traces(nn.Module):
    trace: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("trace", torch.zeros(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        i, row = 0, x[0]
        while row.norm() > 0.5 and i < 4:
            row = row * 0.6
            self.trace[i] = row
            i += 1
        return row


class Cools(nn.Module):
    """The buffer itself ends the loop, which may be left."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("heat", torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        while self.heat > 0.5:
            self.heat *= 0.8
            if x.sum() > self.heat:
                break
        else:
            self.heat = self.heat + 3
        return x / self.heat


class Within(nn.Module):
    """A module in the model has the buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Counts()

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x * 0.5
            self.inner.n += 1
        return x + self.inner.n


class AssignsWithin(Within):
    """A buffer of a module in the model, in a trip and behind it."""

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x * 0.5
            self.inner.n = self.inner.n + 1
        before = self.inner.n
        self.inner.n = self.inner.n * 2
        return x + before


class ByName(Counts):
    """An assignment that is spelt as a call."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            setattr(self, "n", self.n + 1)  # noqa: B010
        return x + self.n


class InArms(Counts):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            self.n += 1
        elif x.sum() > -2:
            self.n = self.n * 3 + 1
        return x * self.n


@pytest.mark.parametrize("model", [Counts, Assigns, Traces, Cools, Within, AssignsWithin, ByName, InArms])
def test_every_call_leaves_what_eager_leaves(model: type[nn.Module]) -> None:
    check_calls(model().eval(), CALLS[0], CALLS[1:], backends=("ort",))
