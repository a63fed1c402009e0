"""Which kernels a compile takes: measured, kept, taken again, and what is said of them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from regraft.backends import backend
from regraft.backends.tvm import bench, building, cpu, templates, tune, worker
from regraft.errors import BackendError
from regraft.timing import Measured

GEMM = next(t for t in templates.TEMPLATES if t.name == "gemm")


class InThisProcess:
    """The worker's work without its process, so that tests can break it. Counts what it measures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tuned: list[str] = []

    def build(self, text: str, host: cpu.Cpu, configs: Mapping[str, Sequence[str]]) -> Any:
        answer = worker.build(text, host, configs, self.folder)
        return SimpleNamespace(**{**answer, "library": Path(answer["library"]).read_bytes()})

    def tune(
        self,
        text: str,
        host: cpu.Cpu,
        key: str,
        rows: Sequence[int],
        known: tune.Times,
        deadline: float,
        first: Sequence[str],
    ) -> Any:
        self.tuned.append(key)
        answer = worker.tune(text, host, key, rows, known, deadline - time.perf_counter(), first)
        found = [
            (m["signature"], m["forms"], Measured(m["rows"], m["us"], m["noise"])) for m in answer["measured"]
        ]
        return found, answer["notes"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A back end that builds in this process, with a tuning database of its own."""
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(tune, "MOST_CANDIDATES", 4)
    made: Any = backend("tvm")
    made._builder = InThisProcess(tmp_path)
    return made


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.LayerNorm(96), nn.Linear(96, 32)).eval()


def compiled(here: Any, rows: int = 16, **options: Any) -> regraft.CompiledModel:
    x = torch.randn(rows, 64)
    found = regraft.compile(model(), (x,), backends=(here,), cache=False, verify=True, **options)
    torch.testing.assert_close(found(x), model()(x).detach(), rtol=1e-4, atol=1e-5)
    return found


def kernels(found: regraft.CompiledModel) -> list[dict[str, Any]]:
    return found.report.to_dict()["kernels"]


def test_what_is_measured_is_taken_again_without_measuring(here: Any) -> None:
    untuned = kernels(compiled(here))
    assert [kernel["measured_us"] for kernel in untuned] == [{}, {}]
    assert all("the default, estimated" in kernel["text"] for kernel in untuned)
    assert not here._builder.tuned
    tuned = kernels(compiled(here, tune=True, budget="30s"))
    assert len(here._builder.tuned) == 2
    for kernel in tuned:
        assert set(kernel["measured_us"]) == set(kernel["default_us"]) == {16}
        assert kernel["measured_us"][16] <= kernel["default_us"][16]
        assert "times as fast as the default" in kernel["text"]
    again = kernels(compiled(here))
    assert again == tuned
    assert kernels(compiled(here, tune=True)) == tuned
    assert len(here._builder.tuned) == 2
    compiled(here, tune="again", budget="30s")
    assert len(here._builder.tuned) == 4, "what is known is measured on request"


def test_a_record_decides_and_is_interpolated(here: Any, tmp_path: Path) -> None:
    """The third config is made the fastest in the database, at 16 rows and at 64."""
    for rows in (16, 64):
        compiled(here, rows, tune=True)
    chosen = {}
    for rows in (16, 32, 64):
        problem = templates.Gemm(rows, 32, 96, epilogue=(templates.bias(),))
        third = GEMM.ranked(problem, cpu.host_cpu(2), 4)[2]
        chosen[rows] = third
    _made_fastest(tmp_path / "state" / "tuning.db", str(chosen[16]), columns=32)
    (kernel,) = [k for k in kernels(compiled(here)) if "96->32" in k["title"]]
    assert kernel["config"] == str(chosen[16])
    assert kernel["measured_us"] == {16: 0.25}
    (between,) = [k for k in kernels(compiled(here, 32)) if "96->32" in k["title"]]
    assert set(between["measured_us"]) == {32}
    assert between["measured_at"] == [16, 64]
    assert "from what was measured at 16 and 64 rows, " in between["text"]
    assert kernel["measured_at"] == [16]
    (beyond,) = [k for k in kernels(compiled(here, 65)) if "96->32" in k["title"]]
    assert not beyond["measured_us"]


def _made_fastest(path: Path, config: str, columns: int) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        changed = connection.execute(
            "UPDATE times SET us = 0.25 WHERE form = ? AND signature LIKE ?", (config, f"%n{columns} %")
        )
        assert changed.rowcount


def test_any_number_of_rows_is_measured_at_several(here: Any) -> None:
    x = torch.randn(4, 64)
    sizes = {"input": {0: Dim("n", min=1, max=512)}}
    found = regraft.compile(
        model(), (x,), dynamic_shapes=sizes, backends=(here,), cache=False, tune=True, budget="60s"
    )
    assert [set(kernel["measured_us"]) for kernel in kernels(found)] == [{1, 16, 128}] * 2


def _slow_builds(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the tuner's clock say that a build takes a minute; the result has those ``built``."""
    own, clock = bench.KernelBench.build, SimpleNamespace(now=0.0, built=list[str]())

    def build(self: bench.KernelBench, config: Any) -> Any:
        clock.built.append(str(config))
        clock.now += 60.0
        return own(self, config)

    monkeypatch.setattr(bench.KernelBench, "build", build)
    monkeypatch.setattr(
        worker, "KernelTuner", partial(tune.KernelTuner, clock=lambda: time.perf_counter() + clock.now)
    )
    return clock


def _known(path: Path, columns: int) -> dict[str, float]:
    """Config -> microseconds, of the kernel with so many columns."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT form, us FROM times WHERE signature LIKE ?"
        return dict(connection.execute(query, (f"%n{columns} %",)))


def test_a_budget_that_ends_is_told_and_the_next_run_goes_on(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiled(here, tune=True, budget=1e-3)
    assert "the budget sufficed for 0 of 2 kernels; the next run goes on from there" in first.report.notes
    assert not here._builder.tuned
    compiled(here, tune=True)
    assert len(here._builder.tuned) == 2


def test_a_budget_that_ends_within_a_kernel_is_no_verdict_on_the_rest(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the database and a worker: what was not tried at first is tried by the next run alone."""
    built = _slow_builds(monkeypatch).built
    first = compiled(here, tune=True, budget="300s")
    for count in (2, 3):  # the second kernel has all the time that is left by the real clock
        note = f"the budget sufficed to build {count} of 4 candidates; the next run goes on from there"
        assert any(note in each for each in first.report.notes)
    assert len(built) == 2 + 3
    compiled(here, tune=True, budget="2000s")
    assert len(built) == 5 + (1 + 2) + (1 + 1), "the defaults, and what was not tried"
    compiled(here, tune=True)
    assert len(built) == 10


def test_a_budget_that_ends_before_all_is_measured_again_leaves_what_was_known(here: Any) -> None:
    before = kernels(compiled(here, tune=True, budget="60s"))
    over = compiled(here, tune="again", budget=1e-3)
    rest = "the others stand as they were, and the next run that measures again begins with the oldest"
    assert f"the budget sufficed for 0 of 2 kernels; {rest}" in over.report.notes
    assert kernels(over) == before


def test_where_all_is_measured_again_earlier_times_do_not_stay_beside_the_new_ones(
    here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The budget suffices for two or three of four candidates, the default and the best one among them."""
    compiled(here, tune=True, budget="60s")
    database = tmp_path / "state" / "tuning.db"
    problem = templates.Gemm(16, 32, 96, epilogue=(templates.bias(),))
    default, *_, last = map(str, GEMM.ranked(problem, cpu.host_cpu(2), 4))
    _made_fastest(database, last, columns=32)
    assert len(_known(database, columns=32)) == 4
    _slow_builds(monkeypatch)
    again = compiled(here, tune="again", budget="300s")
    known = _known(database, columns=32)
    assert {default, last} <= known.keys()
    assert 2 <= len(known) < 4
    assert known[last] != 0.25
    rest = f"to build {len(known)} of 4 candidates; the next run goes on from there"
    assert any(rest in note for note in again.report.notes)
    assert "measuring" in again.report.time
    compiled(here, tune=True, budget="2000s")
    later = _known(database, columns=32)
    assert len(later) == 4
    assert later[last] == known[last], "the next run measures what is missing"


def test_an_error_in_measuring_is_told_and_the_estimate_stands(
    here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: Any) -> Any:
        raise BackendError("the process that runs TVM ended with status -9", "tvm")

    monkeypatch.setattr(here._builder, "tune", refused)
    found = compiled(here, tune=True)
    notes = [note for note in found.report.notes if "not measured: the process that runs TVM" in note]
    assert len(notes) == 2
    assert "kernel float32 64->96, 16 rows: not measured" in "".join(notes)
    assert all("the default, estimated" in kernel["text"] for kernel in kernels(found))


def test_a_wrong_candidate_is_never_taken(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate but the last one of each kernel gives wrong values."""
    built = bench.KernelBench.build
    kept: dict[str, Any] = {}

    def build(self: bench.KernelBench, config: Any) -> Any:
        last = self.template.ranked(self.problem, cpu.host_cpu(2), tune.MOST_CANDIDATES)[-1]
        kernel = built(self, config)
        if config == last:
            kept[str(config)] = config
            return kernel
        return lambda *tensors: lambda: tensors[-1].fill_(3.0)

    monkeypatch.setattr(bench.KernelBench, "build", build)
    found = compiled(here, tune=True)
    assert {kernel["config"] for kernel in kernels(found)} == set(kept)
    assert sum("gives wrong values and is never chosen" in note for note in found.report.notes) == 6


def test_a_record_that_no_longer_builds_is_told(
    here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = compiled(here, tune=True)
    problem = templates.Gemm(16, 32, 96, epilogue=(templates.bias(),))
    host = cpu.host_cpu(2)
    default = GEMM.default(problem, host)
    # What was the fastest just now is built already.
    known = {str(default), *(kernel["config"] for kernel in kernels(measured))}
    broken = next(config for config in GEMM.ranked(problem, host, 8) if str(config) not in known)
    _made_fastest(tmp_path / "state" / "tuning.db", str(broken), columns=32)
    functions: list[Any] = []
    whole, one = building.build, type(GEMM).build

    def build_one(self: Any, asked: Any, config: Any, symbol: str) -> Any:
        function = one(self, asked, config, symbol)
        if config == broken and asked.columns == 32:
            functions.append(function)
        return function

    def build(given: Sequence[Any]) -> Any:
        if any(function is each for function in functions for each in given):
            raise BackendError("no such instruction", "tvm")
        return whole(given)

    monkeypatch.setattr(type(GEMM), "build", build_one)
    monkeypatch.setattr(building, "build", build)
    found = compiled(here)
    (kernel,) = [k for k in kernels(found) if "96->32" in k["title"]]
    assert kernel["config"] != str(broken)
    assert kernel["default_us"], f"the default {default} was measured"
    note = f"the tuned kernel {broken} does not build, the next one is taken: no such instruction"
    assert note in found.report.notes


def test_what_is_copied_is_in_the_report(here: Any) -> None:
    found = compiled(here)
    assert found.report.measured is not None
    assert found.report.measured.copied == {}
    x = torch.randn(16 * 64 + 1)[1:].view(16, 64)
    assert found.report.measure(found, (x.t().contiguous().t(),)).copied == {"tvm": 1}
    assert "1 arguments copied for tvm" in str(found.report)
