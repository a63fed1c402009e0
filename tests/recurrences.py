"""Recurrences written as Python loops, for tests of fixed and of open numbers of steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SelectiveScan(nn.Module):
    """Mamba's recurrence: decay and input of each step depend on the step."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.rate = nn.Linear(5, 1 + 2 * 4), nn.Linear(1, 5)
        self.log_decay, self.skip = nn.Parameter(torch.zeros(5, 4)), nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        decay = -torch.exp(self.log_decay)
        rate, enters, leaves = self.project(x).split([1, 4, 4], dim=-1)
        rate = nn.functional.softplus(self.rate(rate))
        h = x.new_zeros(x.shape[0], 5, 4)
        rows = []
        for t in range(x.shape[1]):
            kept = torch.exp(rate[:, t, :, None] * decay)
            new = rate[:, t, :, None] * enters[:, t, None, :] * x[:, t, :, None]
            h = kept * h + new
            rows.append((h * leaves[:, t, None, :]).sum(-1))
        return torch.stack(rows, 1) + x * self.skip, h
