"""What the report says of choices between forms, and what the chosen ones need."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from regraft.compiler import choose
from regraft.testing import randomise
from tests.compiler.forms import FORMS, LowRank, S, alternative, compiled_low_rank


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of this test's own for the tuning database."""
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path))


def timetable(*known: choose.Measured) -> choose.Timetable:
    return choose.Timetable(choose.RooflineModel(choose.MachineProfile("m")), lambda op: known)


def test_times_say_which_measurements_they_come_from() -> None:
    table = timetable(choose.Measured(4, (9.0, 1.0), 0.01), choose.Measured(16, (9.0, 2.0), 0.02))
    choice = choose.decide(alternative(S), table, also=(3,))
    assert [choice.based_on[rows] for rows in (3, 4, 8, 16, 32)] == [(4,), (4,), (4, 16), (16,), (16,)]
    assert choice.measured_at == (4, 8, 16), "what lies beyond is scaled"
    assert not choice.measured
    content = choice.to_dict()
    assert content["based_on"]["8"] == [4, 16]
    assert content["noise"]["32"] == 0.02
    assert "estimated, scaled by what was measured at 4 rows (" in str(choice)


def test_times_at_other_rows_are_labelled_with_those() -> None:
    table = timetable(choose.Measured(4, (9.0, 1.0), 0.01))
    (_, line) = str(choose.decide(alternative(16), table)).splitlines()
    assert "at 16 rows: " in line
    assert "estimated, scaled by what was measured at 4" in line
    between = timetable(choose.Measured(4, (9.0, 1.0), 0.01), choose.Measured(64, (9.0, 1.0), 0.01))
    assert "from those measured at 4 and 64 rows" in str(choose.decide(alternative(16), between))
    assert str(choose.decide(alternative(16), timetable())).count("estimated") == 1


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (choose.Times((10, 5), (16,), 0.0), "merged is 2.00 times as fast"),
        (choose.Times((10, 12.5), (16,), 0.0), "merged takes 1.25 times as long"),
        (choose.Times((10, 9), (16,), 0.2), "merged is 1.11 times as fast, which is within the noise"),
        (choose.Times((10, 9.9), (16,), 0.0), "merged is 1.01 times as fast, too little to change"),
        (choose.Times((10, 9), (16,), 0.2, (10, 7)), "the noise would hide and the estimate confirms"),
    ],
)
def test_why_a_form_was_taken(times: choose.Times, expected: str) -> None:
    choice = choose.decide(alternative(16), lambda op, rows: times)
    assert expected in choice.why[16]
    assert expected in str(choice)


def test_layers_are_named_and_equal_choices_told_once() -> None:
    layers = nn.Sequential(*(LowRank(256, 250, 256) for _ in range(3)))
    compiled = regraft.compile(randomise(layers.eval()), (torch.randn(512, 256),))
    assert [choice.layers for choice in compiled.report.choices] == [
        (f"{i}.down", f"{i}.up") for i in range(3)
    ]
    text = " ".join(str(compiled.report).split())
    assert text.count("choice: ") == 1
    assert "(and 2 more like it): merged; 0.8 MB more" in text
    assert "layers: 0.down, 0.up, 1.down, 1.up, 2.down, 2.up at 512 rows: as written" in text


# -- what chosen forms need ----------------------------------------------------------------------

MERGED, FACTORS = 4 * (256 * 256 + 256), 4 * (2 * 256 * 250 + 256)


def test_a_file_has_one_form(tmp_path: Path) -> None:
    """Beside the original a merged layer is memory more; a file has it in the place of the factors."""
    layer, x = randomise(LowRank(256, 250, 256).eval()), torch.randn(512, 256)
    compiled = regraft.compile(layer, (x,)).report
    assert compiled.choices[0].extra_bytes == MERGED
    assert "merged; 0.3 MB more" in str(compiled)
    exported = regraft.export_onnx(layer, (x,), tmp_path / "layer.onnx")
    (choice,) = exported.compile.choices
    assert choice.extra_bytes == MERGED - FACTORS
    assert "merged; 0.2 MB less" in str(exported), "the report of an export tells of choices"
    assert exported.bytes < MERGED + 10_000


def test_a_file_with_both_forms_needs_more(tmp_path: Path) -> None:
    layer, x = randomise(LowRank(256, 250, 256).eval()), torch.randn(512, 256)
    shapes = ({0: Dim.AUTO},)
    (first,) = regraft.compile(layer, (x,), dynamic_shapes=shapes).report.choices
    database = choose.TuningDatabase(tmp_path / "tuning.db", choose.machine_name())
    for rows, us in ((1, (9.0, 1.0)), (1 << 16, (1.0, 9.0))):
        database.record(first.signature, FORMS, choose.Measured(rows, us, 0.0))
    exported = regraft.export_onnx(layer, (x,), tmp_path / "layer.onnx", dynamic_shapes=shapes)
    (choice,) = exported.compile.choices
    assert choice.order == (1, 0)
    assert choice.extra_bytes == MERGED
    assert exported.bytes > MERGED + FACTORS - 4 * 256 - 10_000


def test_what_another_op_reads_is_not_gone_from_a_file(tmp_path: Path) -> None:
    class Shared(LowRank):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.down.weight[x.argmax(-1) % 250]

    layer, x = randomise(Shared(256, 250, 256).eval()), torch.randn(512, 256)
    exported = regraft.export_onnx(layer, (x,), tmp_path / "layer.onnx")
    (choice,) = exported.compile.choices
    assert choice.extra_bytes == MERGED - FACTORS + 4 * 256 * 250


def test_the_reports_memory_has_what_was_made_of_constants() -> None:
    for rank, made in ((16, 0), (250, MERGED)):
        _, compiled = compiled_low_rank(rank, rows=512)
        memory, own = compiled.report.memory, 4 * (2 * 256 * rank + 256)
        assert memory["constants"] == own
        assert (memory["read"], memory["made"]) == ((own, 0) if not made else (0, MERGED))
        assert ("made of them 0.3 MB" in str(compiled.report)) == bool(made)


def test_intermediates_are_those_of_the_form_that_runs(tmp_path: Path) -> None:
    """As written there is a value between the two products."""
    layer = nn.Sequential(nn.Linear(64, 60, bias=False), nn.Linear(60, 64)).eval()
    database = choose.TuningDatabase(tmp_path / "tuning.db", choose.machine_name())

    def compiled(rows: int) -> Any:
        return regraft.compile(layer, (torch.randn(rows, 64),), dynamic_shapes=({0: Dim.AUTO},)).report

    (key,) = {choice.signature for choice in compiled(4).choices}
    for rows, us in ((1, (9.0, 1.0)), (1 << 16, (1.0, 9.0))):
        database.record(key, FORMS, choose.Measured(rows, us, 0.0))
    few, many = compiled(4), compiled(5000)
    assert few.choices[0].order == many.choices[0].order == (1, 0)
    assert few.memory["intermediates"] == 4 * 4 * 64
    assert many.memory["intermediates"] == 4 * 5000 * (60 + 64)
    assert few.bytes["after"] == 4 * (4 * (64 + 64) + 64 * 64 + 64)
    assert many.bytes["after"] == many.bytes["before"], "as written"


# -- the time of measuring -----------------------------------------------------------------------


def test_measuring_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: choose.Tuner, ops: Any) -> list[str]:
        time.sleep(0.3)
        return []

    monkeypatch.setattr(choose.Tuner, "run", run)
    _, compiled = compiled_low_rank(250, tune=True, budget="20s")
    spent = dict(compiled.report.time)
    assert spent["measuring"] >= 0.3
    del spent["verify"]
    assert spent.pop("total") >= sum(spent.values())
    assert "measuring " in str(compiled.report)
    assert "measuring" not in compiled_low_rank(16)[1].report.time


def test_a_computation_is_told_by_the_users_line_or_else_by_its_layer() -> None:
    inner = nn.Sequential(nn.Linear(256, 250, bias=False), nn.Linear(250, 256))
    model = nn.Sequential(inner, nn.ReLU()).eval()
    (choice,) = regraft.compile(model, (torch.randn(512, 256),)).report.choices
    assert choice.where == "the layer '0.1'"
    (choice,) = compiled_low_rank(250, rows=512)[1].report.choices
    assert "tests/compiler/forms.py:" in choice.where
    assert choice.where.endswith(" in up")
