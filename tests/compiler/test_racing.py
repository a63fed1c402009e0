"""Races leave the model as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import regraft
from regraft.compiler import bench


class Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Counting(nn.Module):
    """State that the code also reaches by another way, and an argument that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Any
        self.register_buffer("count", torch.zeros(2))
        self.holder = Holder(self.count)

    def forward(self, x: Tensor) -> Tensor:
        self.holder.tensor.add_(1)
        x.mul_(2)
        return x + self.count


def test_a_race_runs_on_copies_of_state_and_arguments() -> None:
    model: Any = Counting().eval()
    compiled = regraft.compile(model, (torch.ones(2),))
    compiled(torch.ones(2))
    version, x = model.count._version, torch.ones(2)
    report = bench(model, compiled, (x,), rounds=20, peers=False, patience=0)
    assert set(report.errors) == {"regraft"}
    assert model.count.tolist() == [1.0, 1.0]
    assert model.holder.tensor is model.count
    assert model.count._version == version
    assert x.tolist() == [1.0, 1.0]
