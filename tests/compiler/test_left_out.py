"""Rewrites whose merged constants overflow: what else goes through the pipeline leaves them out as well."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.compiler import choose

X = 1e-30 * torch.ones(5, 32)


def overflowing() -> nn.Module:
    """Two layers whose merged matrix overflows."""
    layers = [nn.Linear(32, 32, bias=False) for _ in range(2)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(1e25)
    return nn.Sequential(*layers).eval()


def test_a_compile_that_begins_anew_measures_for_what_is_left_of_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budgets: list[float] = []

    def run(self: choose.Tuner, ops: Any) -> list[str]:
        budgets.append(self.budget)
        time.sleep(0.05)
        return []

    monkeypatch.setattr(choose.Tuner, "run", run)
    compiled = regraft.compile(overflowing(), (X,), cache=False, tune=True, budget="20s")
    assert any("left out" in note for note in compiled.report.notes)
    first, second = budgets
    assert first == 20
    assert second <= 20 - 0.05
