"""What an observer of a compile hears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.compiler import PHASES, Progress
from regraft.errors import OptionError


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU()).eval()


def heard(**options: object) -> tuple[list[Progress], Any]:
    events: list[Progress] = []
    compiled = regraft.compile(small(), (torch.randn(2, 4),), progress=events.append, **options)  # type: ignore[arg-type]
    return events, compiled.report


def test_each_phase_begins_and_ends_in_order() -> None:
    events, report = heard(verify=True)
    edges = [(e.phase, e.done) for e in events if e.step is None]
    phases = [phase for phase in PHASES if phase != "cache"]  # tests compile without one
    assert edges == [(phase, done) for phase in phases for done in (False, True)]
    ended = {e.phase: e.seconds for e in events if e.done}
    assert ended == {phase: report.time[phase] for phase in phases}


def test_passes_are_steps_of_the_rewrites() -> None:
    events, report = heard()
    steps = [(e.step, e.seconds) for e in events if e.step is not None]
    assert steps == report.passes
    assert {e.phase for e in events if e.step is not None} == {"rewrites"}
    assert "verify" not in {e.phase for e in events}


def test_an_export_is_observed_too(tmp_path: Path) -> None:
    events: list[Progress] = []
    regraft.export_onnx(small(), (torch.randn(2, 4),), tmp_path / "m.onnx", progress=events.append)
    assert [e.phase for e in events if e.done] == ["export", "decompositions", "import", "rewrites", "lower"]


@pytest.mark.parametrize("phase", ["export", "rewrites", "lower"])
def test_an_exception_of_the_observer_ends_the_compile(phase: str) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.phase == phase:
            raise Stop

    with pytest.raises(Stop):
        regraft.compile(small(), (torch.randn(2, 4),), progress=stop)


def test_an_observer_must_be_callable() -> None:
    with pytest.raises(OptionError, match="progress: expected a function"):
        regraft.compile(small(), (torch.randn(2, 4),), progress=3)  # type: ignore[arg-type]
