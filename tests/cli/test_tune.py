"""``regraft tune``: what it measures, says, draws, merges and refuses."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.cli.running import Invoke

MODELS = """
import torch
from torch import nn
from torch.export import Dim


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Linear(64, 60, bias=False)
        self.up = nn.Linear(60, 64)

    def forward(self, x):
        return torch.relu(self.up(self.down(x)))


def fixed():
    return nn.Sequential(LowRank(), LowRank()).eval(), (torch.randn(5, 64),)


def varying():
    model, args = fixed()
    return {"model": model, "args": args, "dynamic_shapes": ({0: Dim.AUTO(max=4096)},)}


def plain():
    return nn.Linear(4, 4).eval(), (torch.randn(2, 4),)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path / "state"))
    path = tmp_path / "low_rank.py"
    path.write_text(MODELS)
    return path


def tuned(invoke: Invoke, *arguments: object) -> dict[str, Any]:
    result = invoke("tune", *arguments, "--json", "-q")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def measuring(*times: tuple[float, float]) -> AbstractContextManager[mock.Mock]:
    """Measurements that take these microseconds, one after the other; Ctrl-C comes after the last."""

    def three(pair: tuple[float, float]) -> tuple[list[list[float]], list[float]]:
        return [[1e-6 * us] * 3 for us in pair], [1e-6 * pair[0]] * 3

    told = [*map(three, times), KeyboardInterrupt]
    return mock.patch("regraft.compiler.choose.tune.interleaved", side_effect=told)


def us(values: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in values]


def test_kernels_of_a_back_end_are_measured_and_kept(invoke: Invoke, models: Path) -> None:
    arguments = (f"{models}:plain", "--backends", "tvm", "--budget", "60s")
    (kernel,) = tuned(invoke, *arguments)["kernels"]
    assert kernel["calls"] == 1
    assert set(kernel["measured_us"]) == set(kernel["default_us"]) == {"2"}
    (again,) = tuned(invoke, *arguments)["kernels"]
    assert again == kernel
    shown = " ".join(invoke("tune", *arguments).stdout.split())
    assert "kernel linear of float32 4->4, 2 rows: measured" in shown
    assert "kept in" in shown


def test_times_are_measured_kept_and_used_by_later_compiles(invoke: Invoke, models: Path) -> None:
    report = tuned(invoke, f"{models}:varying", "--tokens", "1,8,64")
    first, second = report["choices"]
    assert set(first["measured_at"]) >= {1, 8, 64}
    assert all(len(first["microseconds"][n]) == len(first["estimated_microseconds"][n]) == 2 for n in "18")
    assert first["microseconds"] == second["microseconds"], "two computations of one kind are measured once"
    assert Path(report["database"]).is_file()
    compiled = json.loads(invoke("compile", f"{models}:varying", "--json", "-q", "--no-cache").stdout)
    assert compiled["choices"][0]["microseconds"]["8"] == first["microseconds"]["8"]


def test_the_report_is_for_people(invoke: Invoke, models: Path) -> None:
    told = ([[20e-6] * 3, [10e-6] * 3], [20e-6] * 3)
    with mock.patch("regraft.compiler.choose.tune.interleaved", return_value=told):
        result = invoke("tune", f"{models}:varying", "--tokens", "1,16")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "(and 1 more like it): merged; " in text
    assert "layers: 0.down, 0.up, 1.down, 1.up" in text
    rows = [line.split()[0] for line in result.stdout.splitlines() if "(estimated" in line]
    assert rows == ["1", "16"]
    assert "merged is 2.00 times as fast" in text
    assert "MB beside the model's own" in text
    assert "tune: rewrites" in result.stderr


def test_a_run_goes_on_from_where_the_last_one_stopped(invoke: Invoke, models: Path) -> None:
    arguments = (f"{models}:varying", "--tokens", "1,8,64")
    cut_off = tuned(invoke, *arguments, "--budget", "0.001ms")
    assert any("sufficed for 0 of 3 measurements; the next run goes on" in note for note in cut_off["notes"])
    with measuring((1, 2)):
        assert invoke("tune", *arguments).exit_code == 130
    with measuring((3, 4), (5, 6)) as measured:
        times = tuned(invoke, *arguments)["choices"][0]["microseconds"]
    assert measured.call_count == 2
    assert [us(times[n]) for n in ("1", "8", "64")] == [[1, 2], [3, 4], [5, 6]]


def test_what_is_known_is_measured_again(invoke: Invoke, models: Path) -> None:
    with measuring((9, 1)):
        tuned(invoke, f"{models}:fixed")
    with measuring((2, 3)) as measured:
        kept = tuned(invoke, f"{models}:fixed")
    assert measured.call_count == 0
    assert any("the times of all are known" in note for note in kept["notes"])
    assert us(kept["choices"][0]["microseconds"]["5"]) == [9, 1]
    with measuring((2, 3)) as measured:
        again = tuned(invoke, f"{models}:fixed", "--again")
    assert measured.call_count == 1
    assert us(again["choices"][0]["microseconds"]["5"]) == [2, 3]
    assert any("forms compare otherwise, by a factor of up to 13.50" in note for note in again["notes"])


def test_what_was_measured_is_forgotten(invoke: Invoke, models: Path) -> None:
    nothing = invoke("cache", "clear", "--tuning").stdout
    assert "0 measured times forgotten" in " ".join(nothing.split())
    database = Path(tuned(invoke, f"{models}:fixed")["database"])
    assert json.loads(invoke("cache", "clear", "--json").stdout).keys() == {"removed", "removed_code"}
    assert json.loads(invoke("cache", "clear", "--tuning", "--json").stdout)["removed_times"] == 2
    assert database.is_file()
    with measuring((2, 3)):
        assert us(tuned(invoke, f"{models}:fixed")["choices"][0]["microseconds"]["5"]) == [2, 3]
    refused = invoke("cache", "clear", "--tuning", "--folder", "elsewhere")
    assert refused.exit_code == 2
    assert "--tuning forgets the user's own times" in " ".join(refused.stderr.replace("│", " ").split())


def test_fixed_sizes_have_one_number_of_rows(invoke: Invoke, models: Path) -> None:
    report = tuned(invoke, f"{models}:fixed", "--tokens", "1,8")
    assert list(report["choices"][0]["microseconds"]) == ["5"]
    assert any("rows 5 are fixed by the example" in note for note in report["notes"])
    outside = tuned(invoke, f"{models}:varying", "--tokens", "8,100000")
    assert any("no computation can have 100000 rows" in note for note in outside["notes"])


def test_a_model_without_a_choice(invoke: Invoke, models: Path) -> None:
    assert "nothing to choose" in invoke("tune", f"{models}:plain").stdout
    drawn = invoke("tune", f"{models}:plain", "--plot", "times.png")
    assert (drawn.exit_code, Path("times.png").exists()) == (1, False)
    assert "nothing to draw" in drawn.stderr


def test_a_limit_that_is_too_small_is_the_reason(invoke: Invoke, models: Path) -> None:
    with measuring((9, 1)):
        free = tuned(invoke, f"{models}:fixed")
    assert free["choices"][0]["chosen"] == ["merged"]
    assert free["extra_bytes"] == 2 * 4 * (64 * 64 + 64)
    limited = tuned(invoke, f"{models}:fixed", "--memory-limit", "20kB")
    assert [choice["chosen"] for choice in limited["choices"]] == [["merged"], ["as written"]]
    assert "would pass the memory limit" in limited["choices"][1]["reason"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_times_are_drawn(invoke: Invoke, models: Path, suffix: str) -> None:
    result = invoke("tune", f"{models}:varying", "--tokens", "1,8", "--plot", f"times.{suffix}")
    assert result.exit_code == 0, result.output
    content = Path(f"times.{suffix}").read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert [path.name for path in Path().iterdir()] == [f"times.{suffix}"]
    assert invoke("tune", f"{models}:varying", "--plot", f"times.{suffix}").exit_code == 1
    assert Path(f"times.{suffix}").read_bytes() == content


def test_a_plot_needs_matplotlib(invoke: Invoke, models: Path) -> None:
    with mock.patch.dict(sys.modules, {"matplotlib": None}):
        result = invoke("tune", f"{models}:varying", "--plot", "times.png")
    assert result.exit_code == 1
    assert "pip install 'regraft[plot]'" in result.stderr


def test_databases_are_merged(
    invoke: Invoke, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere, measuring((9, 1)):
        elsewhere.setenv("REGRAFT_CACHE_DIR", str(tmp_path / "a folder?"))
        elsewhere.setattr("regraft.compiler.choosing.machine_name", lambda *_: "another machine")
        other = tuned(invoke, f"{models}:fixed")["database"]
    assert tuned(invoke, "--merge", other) == {"merged": {other: 2}}
    with measuring((2, 3)):
        report = tuned(invoke, f"{models}:fixed")
    assert us(report["choices"][0]["microseconds"]["5"]) == [2, 3], "those of the other machine do not count"
    assert any("has 2 times of other machines" in note for note in report["notes"])


def test_a_half_written_database_is_set_aside(invoke: Invoke, models: Path, tmp_path: Path) -> None:
    path = Path(tuned(invoke, f"{models}:fixed")["database"])
    path.write_bytes(path.read_bytes()[:5000])
    report = tuned(invoke, f"{models}:fixed")
    assert any("was damaged" in note and "set aside" in note for note in report["notes"])
    (aside,) = path.parent.glob("tuning.db.damaged-*")
    refused = invoke("tune", "--merge", aside)
    assert refused.exit_code == 1
    assert f"{aside} is not a tuning database" in refused.stderr


def forged(database: str, version: int, time: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(f"UPDATE times SET us = {time}")
        connection.execute(f"PRAGMA user_version={version}")


@pytest.mark.parametrize(
    ("version", "time", "message"),
    [
        (9, "1.0", "is of format 9, newer than"),
        (1, "-1.0", "a time of -1.0"),
        (1, "'soon'", "a time of 'soon'"),
    ],
)
def test_foreign_databases_are_refused(
    invoke: Invoke,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
    time: str,
    message: str,
) -> None:
    other = str(tuned(invoke, f"{models}:fixed")["database"])
    forged(other, version, time)
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path / "here"))
    result = invoke("tune", "--merge", other)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name a FACTORY to tune"),
        (["{file}:fixed", "--budget", "0s"], 1, "expected a positive time, such as '30s'"),
        (["{file}:fixed", "--budget", "soon"], 1, "expected a positive time, such as '30s'"),
        (["{file}:fixed", "--tokens", "1,x"], 1, "--tokens 1,x: expected numbers from 1 on"),
        (["{file}:fixed", "--tokens", "0"], 1, "expected numbers from 1 on"),
        (
            ["{file}:fixed", "--memory-limit", "much"],
            1,
            "--memory-limit: expected a number of bytes, or a size such as",
        ),
        (["{file}:fixed", "--plot", "times.gif"], 1, "must end in .png, .svg, .pdf"),
        (["{file}:fixed", "--plot", "{file}"], 1, "there is something at this path already"),
        (["{file}:fixed", "--plot", "absent/times.png"], 1, "the folder 'absent' does not exist"),
        (["--merge", "absent.db", "--again"], 2, "--again measures the computations of a FACTORY"),
        (["--merge", "absent.db"], 1, "there is no tuning database at absent.db"),
        (["--merge", "{file}", "--plot", "times.png"], 2, "--plot draws"),
    ],
)
def test_mistakes(invoke: Invoke, models: Path, arguments: list[str], code: int, message: str) -> None:
    result = invoke("tune", *(each.replace("{file}", str(models)) for each in arguments))
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_without_a_home(invoke: Invoke, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGRAFT_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with mock.patch("pathlib.Path.home", side_effect=RuntimeError("no home")):
        result = invoke("tune", f"{models}:fixed")
    assert result.exit_code == 1
    assert "there is no folder for the tuning database; set REGRAFT_CACHE_DIR" in result.stderr


def test_doctor_counts_the_times(invoke: Invoke, models: Path, tmp_path: Path) -> None:
    with measuring((1, 2)):
        assert invoke("tune", f"{models}:varying", "--tokens", "1,8").exit_code == 130
    path = tmp_path / "state" / "tuning.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO times SELECT replace(machine, 'torch ', 'torch 1.'), "
            "signature, rows, form, us, noise, written FROM times LIMIT 1"
        )
    before = path.read_bytes()
    tuning = json.loads(invoke("doctor", "--json", "-q").stdout)["tuning"]
    assert tuning == {"path": str(path), "bytes": len(before), "times": 3, "here": 2}
    text = " ".join(invoke("doctor").stdout.split())
    assert "3 times, 2 of them of this machine and these versions: " in text
    path.write_bytes(b"no database")
    tuning = json.loads(invoke("doctor", "--json", "-q").stdout)["tuning"]
    assert (tuning["times"], tuning["here"]) == (None, None)
    assert "is not a tuning database" in tuning["problem"]
    assert path.read_bytes() == b"no database", "it is only read"
