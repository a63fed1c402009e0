"""Times that say nothing here: of another machine or version, or written in part. They are kept, not read."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.compiler import choose
from regraft.errors import OptionError
from regraft.testing import randomise

FORMS = ("as written", "merged")


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a tuning database of this test's own."""
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path))
    return tmp_path / "tuning.db"


def compiled(**options: Any) -> Any:
    layers = nn.Sequential(nn.Linear(64, 60, bias=False), nn.Linear(60, 64))
    return regraft.compile(randomise(layers.eval()), (torch.ones(4, 64),), **options)


def rows_of(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM times ORDER BY form").fetchall()


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    "renamed",
    [
        "replace(machine, 'onnxruntime ', 'onnxruntime 0.')",
        "replace(machine, 'torch ', 'torch 1.')",
        "replace(machine, 'threads ', 'threads 9')",
        "'ort on some other machine'",
    ],
)
def test_times_of_another_version_or_machine_are_kept_and_not_read(database: Path, renamed: str) -> None:
    assert compiled(tune=True, budget="20s").report.choices[0].measured
    change(database, f"UPDATE times SET machine = {renamed}, us = 1e9")
    before = rows_of(database)
    assert before
    again = compiled()
    assert not again.report.choices[0].measured
    assert rows_of(database) == before
    assert compiled(tune=True, budget="20s").report.choices[0].measured
    assert set(before) < set(rows_of(database)), "what others measured stays beside it"


def test_an_entry_without_one_of_its_forms_is_measured_again(database: Path) -> None:
    assert compiled(tune=True, budget="20s").report.choices[0].measured
    change(database, "DELETE FROM times WHERE form = 'merged'")
    assert not compiled().report.choices[0].measured
    assert compiled(tune=True, budget="20s").report.choices[0].measured
    assert compiled().report.choices[0].measured


def test_a_transaction_that_did_not_end_leaves_nothing(database: Path) -> None:
    """Both forms are written together or not at all."""
    tuning = choose.TuningDatabase(database, "here")
    tuning.record("key", FORMS, choose.Measured(4, (1.0, 2.0), 0.0))
    fails = "SELECT RAISE(ABORT, 'the disk is full')"
    change(
        database, f"CREATE TRIGGER full BEFORE INSERT ON times WHEN NEW.form = 'merged' BEGIN {fails}; END"
    )
    with pytest.raises(OptionError, match="the disk is full"):
        tuning.record("key", FORMS, choose.Measured(4, (5.0, 6.0), 0.0))
    assert tuning.lookup("key", FORMS) == [choose.Measured(4, (1.0, 2.0), 0.0)]
