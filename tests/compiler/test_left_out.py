"""Rewrites whose merged constants overflow: what else goes through the pipeline leaves them out as well."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.compiler import choose, tune
from regraft.ir import Progress

X = 1e-30 * torch.ones(5, 32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuning database of this test's own."""
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path))


def overflowing(by: float = 1e25) -> nn.Module:
    """Two layers whose merged matrix overflows."""
    layers = [nn.Linear(32, 32, bias=False) for _ in range(2)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(by)
    return nn.Sequential(*layers).eval()


def factored() -> nn.Module:
    """Two layers of which either form may run, whose merged matrix overflows."""
    layers = nn.Sequential(nn.Linear(64, 60, bias=False), nn.Linear(60, 64, bias=False))
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(1e25)
    return layers.eval()


class WrongTanh(regraft.Rewrite):
    """``tanh(x)  ->  sigmoid(x)``, which it is not."""

    exactness = regraft.Exactness.REASSOCIATES

    def pattern(self, op: Any, x: Any) -> Any:
        return op.aten.tanh(x)

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.sigmoid(m.x)


def test_bisect_looks_at_what_the_compile_does() -> None:
    report = regraft.bisect(overflowing(), (X,))
    assert (report.verdict, report.left_out) == ("right", ("MergedLinear",))
    assert "without  MergedLinear: constants that they merge overflow or vanish here" in str(report)
    assert report.to_dict()["left_out"] == ["MergedLinear"]
    assert regraft.bisect(nn.Linear(32, 4).eval(), (X,)).left_out == ()


def test_bisect_finds_the_one_that_is_wrong_beside_what_is_left_out() -> None:
    model = nn.Sequential(*overflowing(), nn.Tanh()).eval()
    report = regraft.bisect(model, (X,), rewrites=[WrongTanh])
    assert (report.verdict, report.rewrite, report.left_out) == ("rewrite", "WrongTanh", ("MergedLinear",))


def test_explain_says_that_a_rewrite_is_left_out_and_why() -> None:
    (told,) = regraft.explain(overflowing(), (X,), rewrite="MergedLinear").rewrites
    assert (told.hits, told.stage, told.progress) == (0, "algebra", Progress.LEFT_OUT)
    assert told.attempts[0].reason.startswith("it matches, but constants that it merges overflow or vanish")
    (told,) = regraft.explain(overflowing(by=1.0), (X,), rewrite="MergedLinear").rewrites
    assert told.progress is Progress.APPLIED


def test_tune_measures_no_form_that_no_compile_has() -> None:
    report = tune(factored(), (1e-30 * torch.ones(4, 64),), budget="5s")
    assert report.choices == ()
    assert any("left out, since constants that they merge" in note for note in report.notes)


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
