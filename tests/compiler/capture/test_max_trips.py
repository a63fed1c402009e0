"""``max_trips``: a loop that a tensor ends takes no more trips, and a call that needs more says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import OptionError, RegraftError
from tests.compiler.capture.running import BACKENDS

HERE = Path(__file__).name


def doubles(x: Tensor) -> Tensor:
    while x.sum() < 100:
        x = x * 2
    return x


class Doubles(torch.nn.Module):
    """``doubles`` with torch's own loop."""

    def forward(self, x: Tensor) -> Tensor:
        (found,) = torch.while_loop(lambda x: x.sum() < 100, lambda x: (x * 2,), (x,))
        return found


def start(value: float) -> Tensor:
    return torch.full((1,), value)


@pytest.mark.parametrize("model", [doubles, Doubles().eval()], ids=["python", "while_loop"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_with_more_trips_says_so(model: Any, backend: str) -> None:
    made = regraft.compile(model, (start(50.0),), backends=(backend,), max_trips=4, cache=False)
    assert made(start(7.0)).item() == 112  # four trips
    assert made(start(200.0)).item() == 200
    for value in (6.0, -1.0):
        with pytest.raises(RegraftError, match=rf"{HERE}:\d+ takes more than 4 trips \(max_trips\)"):
            made(start(value))
    assert made(start(7.0)).item() == 112


def test_an_exported_program_is_bounded_too() -> None:
    program = torch.export.export(Doubles().eval(), (start(50.0),))
    made = regraft.compile(program, max_trips=4, cache=False)
    assert made(start(7.0)).item() == 112
    with pytest.raises(RegraftError, match="more than 4 trips"):
        made(start(6.0))


def test_a_file_ends_too_and_the_report_says_what_it_does_not_check(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = regraft.export_onnx(doubles, (start(50.0),), path, max_trips=4)
    (check,) = report.checks
    assert HERE in check
    assert "more than 4 trips" in check
    assert check in str(report)
    assert report.to_dict()["checks"] == [check]
    session = onnxruntime.InferenceSession(path)

    def run(value: float) -> float:
        found: Any = session.run(None, {report.inputs[0]: start(value).numpy()})[0]
        return found.item()

    assert run(7.0) == 112
    assert run(-1.0) == -(2.0**5)  # one trip more than it may take ends it


def test_a_file_of_a_model_without_checks_leaves_none_out(tmp_path: Path) -> None:
    report = regraft.export_onnx(doubles, (start(50.0),), tmp_path / "model.onnx")
    assert report.checks == ()
    assert "checks" not in str(report)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "many"])
def test_what_is_no_bound_is_refused(value: Any, tmp_path: Path) -> None:
    calls = (
        lambda: regraft.compile(doubles, (start(1.0),), max_trips=value),
        lambda: regraft.capture(doubles, (start(1.0),), max_trips=value),
        lambda: regraft.export_onnx(doubles, (start(1.0),), tmp_path / "x.onnx", max_trips=value),
    )
    for call in calls:
        with pytest.raises(OptionError, match="max_trips"):
            call()
