"""What the report of a compile says, and what it says it does not know."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.compiler import Report, choose
from regraft.errors import ShapeError


class Mixed(nn.Module):
    """One op that ONNX Runtime has no kernel for, between two that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(self.linear(x)) * 2


X = torch.randn(2, 4)


def test_without_verification_nothing_is_measured() -> None:
    report = regraft.compile(nn.Linear(4, 4).eval(), (X,)).report
    assert report.measured is None
    assert report.to_dict()["measured"] is None
    text = str(report)
    assert "not measured, estimated 0." in text
    assert "(default profile)" in text
    assert "not verified" in text


def test_verification_measures_each_executor_and_the_report_says_all() -> None:
    report = regraft.compile(Mixed().eval(), (X,), fallback="eager", verify=True).report
    measured = report.measured
    assert measured is not None
    assert [backend for backend, _ in measured.steps] == ["ort", "eager", "ort"]
    assert set(measured.executors) == {"ort", "eager"}
    assert all(seconds > 0 for seconds in (*measured.executors.values(), measured.seconds))
    assert measured.live_bytes == 2 * X.nbytes, "each step reads one result and makes one"
    short, full = str(report), report.full()
    assert "eager: 1 ops in " in short
    assert max(map(len, short.splitlines())) <= 100
    assert full.startswith(short)
    for part in ("captured op", "canonicalize.rewrite", "declined by", "step of the plan", "whole call"):
        assert part in full
        assert part not in short
    assert "fallback: aten.special_i0e x1 to eager: ort: " in short


def test_what_was_measured_is_json() -> None:
    compiled = regraft.compile(Mixed().eval(), (X,), fallback="eager")
    measured = compiled.report.measure(compiled, (X,), calls=2)
    content = json.loads(json.dumps(compiled.report.to_dict()))
    assert content["measured"]["calls"] == 2
    assert content["measured"]["seconds"] == measured.seconds
    assert content["estimated"]["profile"] == "default"


def test_the_estimate_is_that_of_the_machines_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    profile = dataclasses.replace(choose.load_profile(tmp_path), op_overhead=1.0, measured=True)
    choose.store_profile(profile, tmp_path)
    estimated = regraft.compile(model, (X,)).report.estimated
    assert estimated is not None
    assert estimated.profile == "measured"
    assert estimated.seconds == pytest.approx(3.0, abs=1e-3), "three ops, a second each"


def test_a_measurement_that_fails_is_none() -> None:
    compiled = regraft.compile(nn.Linear(4, 4).eval(), (X,))
    with pytest.raises(ShapeError):
        compiled.report.measure(compiled, (torch.randn(3, 4),))
    assert compiled.report.measured is None


class Products(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """2*5*4*3 operations for each product; 15 for the sum that ``addmm`` stands for as well."""
        w = torch.ones(4, 3)
        return torch.addmm(torch.ones(3), x, w) + torch.mm(x, w)


@pytest.mark.parametrize(
    ("model", "x", "flops"),
    [
        (nn.LSTM(8, 16), torch.randn(7, 3, 8), 2 * 7 * 3 * 4 * 16 * (8 + 16)),
        (
            nn.GRU(8, 16, num_layers=2, bidirectional=True, batch_first=True),
            torch.randn(3, 7, 8),
            2 * 7 * 3 * 3 * 16 * 2 * (8 + 16 + 32 + 16),
        ),
        (Products(), torch.randn(5, 4), 2 * (2 * 5 * 4 * 3) + 15 + 15),
    ],
)
def test_spellings_count_as_what_they_stand_for(model: nn.Module, x: Tensor, flops: int) -> None:
    report = regraft.compile(model.eval(), (x,), backends=("eager",)).report
    assert report.flops["before"] == flops


def test_uncounted_flops_are_named() -> None:
    report = regraft.compile(Mixed().eval(), (X,), fallback="eager").report
    assert report.uncounted == {"aten.special_i0e": 1}
    assert "and those of 1 ops that are unknown (aten.special_i0e)" in str(report)


class Widening(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        wide = torch.cat([x, x, x])  # 3 n
        narrow = wide.view(3, -1).sum(0)  # a view is no memory; wide is dead after this
        return torch.relu(narrow)


def test_the_peak_of_intermediates_follows_lifetimes() -> None:
    n = 1000
    report = regraft.compile(Widening().eval(), (torch.randn(n),)).report
    assert report.memory["intermediates"] == 4 * (3 * n + n)
    assert report.uncounted == {}


def test_symbols_count_at_the_sizes_of_the_example() -> None:
    shapes = {"x": {0: torch.export.Dim.AUTO}}
    report = regraft.compile(Widening().eval(), (torch.randn(500),), dynamic_shapes=shapes).report
    assert report.memory["intermediates"] == 4 * 4 * 500


def test_memory_of_the_process_is_bounded_by_its_peak() -> None:
    memory = regraft.compile(nn.Linear(4, 4).eval(), (X,)).report.memory
    growth, peak = memory["growth"], memory["peak_growth"]
    assert growth is not None
    assert peak is None or peak >= growth


def test_what_the_system_does_not_tell_is_unknown() -> None:
    memory = {"constants": 1_000_000, "intermediates": None, "growth": None, "peak_growth": None}
    text = str(Report(memory=memory))
    assert "constants 1.0 MB, intermediates unknown" in text
    assert "grew by unknown in the compile, at most by unknown" in text


def test_brackets_in_reasons_are_not_markup() -> None:
    report = Report(fallbacks={("aten.view", "ort", "shape [red] of [/]"): 1}, notes=["[bold]"])
    assert "shape [red] of [/]" in str(report)
    assert "note: [bold]" in str(report)
