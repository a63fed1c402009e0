"""``tune="again"``: what is known is measured anew, and takes the place of the earlier times."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regraft.compiler import choose
from regraft.ir import Op
from tests.compiler.forms import FORMS, S, Takes, alternative, compiled_low_rank


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of this test's own for the tuning database."""
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path))


def spoilt(path: Path) -> None:
    """Let the database say what a disturbed run may have measured."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE times SET us = 1e6 WHERE form = 'merged'")


def test_what_is_known_is_measured_again_on_request(tmp_path: Path) -> None:
    compiled_low_rank(250, tune=True, budget="20s")
    spoilt(tmp_path / "tuning.db")
    for options in ({}, {"tune": True, "budget": "20s"}):
        _, compiled = compiled_low_rank(250, **options)
        assert compiled.report.choices[0].times[4][1] == 1e6, "what is known is not measured"
    _, again = compiled_low_rank(250, tune="again", budget="20s")
    assert again.report.choices[0].times[4][1] < 1e5
    assert any("by 1 of them forms compare otherwise" in note for note in again.report.notes)
    _, later = compiled_low_rank(250)
    assert later.report.choices[0].times == again.report.choices[0].times


def test_a_budget_that_ends_leaves_the_earlier_times(tmp_path: Path) -> None:
    _, before = compiled_low_rank(250, tune=True, budget="20s")
    _, again = compiled_low_rank(250, tune="again", budget=1e-6)
    assert again.report.choices[0].times == before.report.choices[0].times
    assert any("0 of 1 measurements; the others stand as they were" in note for note in again.report.notes)


def test_only_earlier_times_are_measured_again(tmp_path: Path) -> None:
    old = choose.TuningDatabase(tmp_path / "t.db", "m")
    old.record("key", FORMS, choose.Measured(4, (1.0, 2.0), 0.0))
    since = time.time()
    again = choose.TuningDatabase(tmp_path / "t.db", "m", since).of("m")
    assert again.lookup("key", FORMS) == [choose.Measured(4, (1.0, 2.0), 0.0)]
    assert again.recent.lookup("key", FORMS) == []
    again.record("key", FORMS, choose.Measured(4, (3.0, 4.0), 0.0))
    assert again.recent.lookup("key", FORMS) == again.lookup("key", FORMS)
    assert old.lookup("key", FORMS) == [choose.Measured(4, (3.0, 4.0), 0.0)]
    assert old.clear() == 2
    assert again.times("key") == {}


def test_times_measured_again_take_the_place_of_all_at_this_number_of_rows(tmp_path: Path) -> None:
    old = choose.TuningDatabase(tmp_path / "t.db", "m")
    old.record("key", (*FORMS, "third"), choose.Measured(4, (1.0, 2.0, 3.0), 0.0))
    old.record("key", FORMS, choose.Measured(8, (1.0, 2.0), 0.0))
    again = choose.TuningDatabase(tmp_path / "t.db", "m", time.time())
    again.record("key", FORMS, choose.Measured(4, (5.0, 6.0), 0.0))
    again.record("key", ("fourth",), choose.Measured(4, (7.0,), 0.0))
    forms = {rows: {form: us for form, (us, _) in each.items()} for rows, each in old.times("key").items()}
    assert forms == {
        4: {"as written": 5.0, "merged": 6.0, "fourth": 7.0},
        8: {"as written": 1.0, "merged": 2.0},
    }
    written = old.written("key")
    assert written[8] < again.since < written[4]


def test_small_budgets_measure_everything_again_the_oldest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, int]] = []

    class Counting(choose.Tuner):
        """Each measurement takes one second of a clock of its own."""

        def _lowered(self, op: Op, backend: Any) -> Any:
            return ["never called"]

        def _measure(self, op: Op, forms: Any, rows: int) -> choose.Measured:
            names = [inner.name for inner in op.regions[1].ops]
            measured.append(("relu" if "aten.relu" in names else "linear", rows))
            return choose.Measured(rows, (1.0, 2.0), 0.0)

    clock = SimpleNamespace(perf_counter=lambda: float(len(measured)))
    monkeypatch.setattr("regraft.compiler.choose.tune.time", clock)
    ops = [alternative(S), alternative(S, merged="relu")]

    def run(budget: float, since: float) -> tuple[list[tuple[str, int]], list[str]]:
        database = choose.TuningDatabase(tmp_path / "t.db", "m", since)
        executors = choose.Executors((Takes("wide", "aten.linear", "aten.relu"),), {"wide": database})
        before = len(measured)
        notes = Counting(executors, None, None, budget, rows=(1, 4)).run(ops)  # type: ignore[arg-type]
        return measured[before:], notes

    every = [("linear", 1), ("linear", 4), ("relu", 1), ("relu", 4)]
    assert run(10, 0.0)[0] == every
    assert run(10, 0.0)[0] == []
    found, notes = run(3, time.time())
    assert found == every[:3]
    assert notes[-1] == (
        "the budget of 3 s sufficed for 3 of 4 measurements; the others stand as they were, and the next run "
        "that measures again begins with the oldest"
    )
    assert run(2, time.time())[0] == [every[3], every[2]]
    assert run(2, time.time())[0] == every[:2]
