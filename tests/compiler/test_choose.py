"""Choosing forms: estimates, measured times, thresholds, limits, and what the report says."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import regraft
from regraft.compiler import choose
from regraft.errors import OptionError
from regraft.ir import (
    OPS,
    Builder,
    DType,
    Function,
    Leaf,
    Module,
    Op,
    PassContext,
    Recipe,
    Region,
    TensorType,
    symbol,
    symbols_in,
)
from regraft.testing import assert_close, randomise
from tests.compiler.forms import FORMS, LowRank, S, Takes, alternative, compiled_low_rank

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's own for profile and tuning database."""
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path))
    return tmp_path


def products(compiled: Any) -> int:
    return sum(line.strip().startswith("%") and "aten.linear(" in line for line in compiled.ir.splitlines())


def test_small_ranks_stay_factored_and_large_ones_are_merged() -> None:
    for rank, form in ((16, "as written"), (250, "merged")):
        _, compiled = compiled_low_rank(rank, rows=512)
        (choice,) = compiled.report.choices
        assert (choice.forms[choice.order[0]], choice.cuts) == (form, ())
        assert "rg.alt" not in compiled.ir
    assert not choice.measured
    assert choice.extra_bytes == (256 * 256 + 256) * 4


def test_memory_limit_is_kept_and_said() -> None:
    _, compiled = compiled_low_rank(250, memory_limit=1000)
    (choice,) = compiled.report.choices
    assert choice.order == (0,)
    assert "0.3 MB more would pass the memory limit" in choice.reason
    assert "memory limit" in " ".join(str(compiled.report).split())


def recipe(size: int) -> Recipe:
    """Ones of the shape ``[size, size]``."""
    body = Region()
    b = Builder(OPS, body)
    ones = b.aten.full((size, size), 1.0, dtype=DType.F32)
    b.create("cf.yield", ((ones,),))
    return Recipe(body)


def sharing(count: int, merged: Recipe) -> Module:
    """``count`` alternatives, one after the other, whose second form reads ``merged``."""
    body = Region([TensorType(DType.F32, (16, 4))])
    b = Builder(OPS, body)
    value = body.args[0]
    for _ in range(count):
        forms = Region([value.type]), Region([value.type])
        for form, constant in zip(forms, (Leaf("w", merged.type, torch.ones(4, 4)), merged), strict=True):
            inner = Builder(OPS, form)
            product = inner.aten.linear(form.args[0], inner.constant(constant))
            inner.create("cf.yield", ((product,),))
        attrs = {"rows": 16, "forms": ("as written", "merged")}
        value = b.create("rg.alt", ((value,),), attrs, regions=forms).result
    b.create("cf.yield", ((value,),))
    return Module({"forward": Function("forward", body)})


@pytest.mark.parametrize(
    ("limit", "chosen", "extra"), [(64, [1, 1, 1], [64, 0, 0]), (63, [0, 0, 0], [0, 0, 0])]
)
def test_a_constant_that_several_computations_need_counts_once(
    limit: int, chosen: list[int], extra: list[int]
) -> None:
    choosing = choose.ChooseForms(lambda op, rows: choose.Times((2.0, 1.0)), memory_limit=limit)
    choosing.run(sharing(3, recipe(4)), PassContext(OPS))
    assert [choice.order for choice in choosing.choices] == [(form,) for form in chosen]
    assert [choice.extra_bytes for choice in choosing.choices] == extra


def test_forms_are_timed_where_all_of_them_run(tmp_path: Path) -> None:
    op = alternative(16, merged="relu")
    narrow, wide = Takes("narrow", "aten.linear"), Takes("wide", "aten.linear", "aten.relu")
    database = choose.TuningDatabase(tmp_path / "t.db", "")
    databases = {name: database.of(name) for name in ("narrow", "wide")}
    key = choose.decide(op, choose.Timetable(choose.RooflineModel(choose.MachineProfile("m")))).signature
    for name, us in (("narrow", 1.0), ("wide", 2.0)):
        databases[name].record(key, FORMS, choose.Measured(16, (us, us), 0.0))
    executors = choose.Executors((narrow, wide), databases)
    assert executors.of(op) is wide, "the second form has an op that the first back end does not take"
    assert executors.known(op) == [choose.Measured(16, (2.0, 2.0), 0.0)]
    alone = choose.Executors((narrow,), databases)
    tuner = choose.Tuner(alone, None, None, budget=10)  # type: ignore[arg-type]
    assert alone.known(op) == []
    (note,) = tuner.run([op])
    assert "no back end takes all its forms" in note


def decided(op: Op, slow_start: Sequence[float], per_row: Sequence[float], noise: float = 0.0) -> Any:
    def times(_: Op, rows: int) -> choose.Times:
        us = tuple(a + b * rows for a, b in zip(slow_start, per_row, strict=True))
        return choose.Times(us, (rows,), noise)

    return choose.decide(op, times)


def test_thresholds_are_where_the_times_cross() -> None:
    choice = decided(alternative(S), (10, 2), (1, 2))  # 10 + n = 2 + 2 n at n = 8
    assert choice.order == (1, 0)
    assert choice.cuts == (8,)
    assert choice.measured
    first, at_one, at_the_cut = str(choice).splitlines()
    assert first.endswith(": merged, from 8 rows as written")
    assert at_one.startswith("    at 1 row: as written 11.0 us, merged 4.0 us, measured (noise 0.0 %); ")
    assert at_one.endswith("; merged is 2.75 times as fast")
    assert at_the_cut.startswith("    at 8 rows: as written 18.0 us, merged 18.0 us")
    assert at_the_cut.endswith("; merged takes 1.00 times as long")


def test_noise_keeps_the_reference() -> None:
    assert decided(alternative(16), (10, 9), (0, 0)).order == (1,)
    assert decided(alternative(16), (10, 9), (0, 0), noise=0.2).order == (0,)
    assert decided(alternative(16), (10, 9.9), (0, 0)).order == (0,)


@pytest.mark.parametrize(
    ("estimated", "order"), [((10, 7), (1,)), ((10, 11), (0,)), ((10, 9.9), (0,)), ((), (0,))]
)
def test_where_noise_hides_the_difference_the_estimate_has_to_agree(
    estimated: tuple[float, ...], order: tuple[int, ...]
) -> None:
    noisy = choose.Times((10, 9), (16,), 0.2, estimated)
    assert choose.decide(alternative(16), lambda op, rows: noisy).order == order


def test_a_form_that_was_measured_to_be_no_faster_is_not_taken() -> None:
    refuted = choose.Times((10, 10), (16,), 0.2, (10, 5))
    assert choose.decide(alternative(16), lambda op, rows: refuted).order == (0,)


def test_calls_of_one_thread_are_timed_by_what_they_take_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"core": 0.0, "wall": 0.0}

    def call() -> None:
        taken["core"] += 2e-3
        taken["wall"] += 9e-3

    clocks = SimpleNamespace(process_time=lambda: taken["core"], perf_counter=lambda: taken["wall"])
    monkeypatch.setattr("regraft.compiler.choose.tune.time", clocks)
    for threads, us in ((1, 2000), (2, 9000), (None, 9000)):
        found = choose.measured(16, [call, call], threads=threads)
        assert found.us == pytest.approx((us, us))
        assert found.noise == pytest.approx(0)


def test_at_most_eight_intervals() -> None:
    def times(_: Op, rows: int) -> choose.Times:
        return choose.Times((1.0, 0.5 if rows.bit_length() % 2 else 2.0))

    choice = choose.decide(alternative(S), times)
    assert len(choice.order) == 8
    assert len(choice.cuts) == 7


def test_a_form_that_gains_too_little_to_change_to_is_none_to_change_back_from() -> None:
    """Merged wins at few rows and ties at many: what is as written would be faster nowhere."""

    def times(_: Op, rows: int) -> choose.Times:
        return choose.Times((10.0 + rows, 2.0 + rows))

    choice = choose.decide(alternative(S), times)
    assert (choice.order, choice.cuts) == ((1,), ())
    assert choice.times[1 << 16][1] > 0.98 * choice.times[1 << 16][0], "there by too little"
    assert str(choice).splitlines()[0].endswith(": merged")
    assert "rows as written" not in str(choice)


@pytest.mark.parametrize(
    ("measured", "estimated"), [((10.0, 10.1), (10.0, 9.9)), ((10.0, 9.9), (10.0, 12.0))]
)
def test_a_tie_is_none_where_the_reference_is_faster_by_measurement_or_by_estimate(
    measured: tuple[float, float], estimated: tuple[float, float]
) -> None:
    def times(_: Op, rows: int) -> choose.Times:
        return choose.Times((10.0, 5.0)) if rows < 100 else choose.Times(measured, (rows,), 0.0, estimated)

    choice = choose.decide(alternative(S), times)
    assert (choice.order, choice.cuts) == ((1, 0), (100,))


def test_a_tie_at_few_rows_is_that_of_the_form_that_wins_later() -> None:
    def times(_: Op, rows: int) -> choose.Times:
        return choose.Times((10.0, 9.9)) if rows < 100 else choose.Times((10.0, 5.0))

    assert choose.decide(alternative(S), times).order == (1,)


def test_no_change_is_named_that_lies_beyond_what_is_declared() -> None:
    """As written is faster from 9 rows on, and there are 8 at most."""
    choice = decided(alternative(symbol("t", 1, 8)), (10, 2), (1, 2))
    assert (choice.order, choice.cuts) == ((1,), ())
    assert decided(alternative(symbol("t", 1, 9)), (10, 2), (1, 2)).cuts == (8,)


@pytest.mark.parametrize("rows", [1, 7, 8, 30])
def test_both_forms_of_a_dynamic_model_compute_the_same(rows: int, tmp_path: Path) -> None:
    layer = randomise(LowRank(64, 60, 64).eval())
    example, shapes = (torch.randn(5, 64),), ({0: Dim.AUTO},)
    database = choose.TuningDatabase(tmp_path / "tuning.db", choose.machine_name())
    first = regraft.compile(layer, example, dynamic_shapes=shapes)
    (key,) = {choice.signature for choice in first.report.choices}
    for count, us in ((1, (9.0, 1.0)), (8, (3.0, 3.1)), (1 << 16, (1.0, 9.0))):
        database.record(key, ("as written", "merged"), choose.Measured(count, us, 0.0))
    compiled = regraft.compile(layer, example, dynamic_shapes=shapes)
    (choice,) = compiled.report.choices
    assert choice.order == (1, 0)
    assert 1 < choice.cuts[0] <= 8
    assert "rg.alt" in compiled.ir
    x = torch.randn(rows, 64)
    with torch.no_grad():
        assert_close(compiled(x), layer.double()(x.double()), layer.float()(x), reassociates=True)


# -- the profile -------------------------------------------------------------------------------


def test_profiles_are_kept_by_machine(tmp_path: Path) -> None:
    first, second = (
        choose.MachineProfile("one", peak=1e9, measured=True),
        choose.MachineProfile(choose.machine_name()),
    )
    choose.store_profile(first, tmp_path)
    choose.store_profile(second, tmp_path)
    assert choose.load_profile(tmp_path) == second
    assert {"one", second.name} == set(json.loads((tmp_path / "machine.json").read_text())["profiles"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 99, "profiles": {}}'])
def test_a_damaged_profile_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(text)
    assert choose.load_profile(tmp_path) == choose.MachineProfile(choose.machine_name())


def test_measuring_gives_plausible_figures() -> None:
    found = choose.measure_profile()
    assert found.measured
    assert 1e9 < found.memory_bandwidth < 1e13
    assert 1e9 < found.peak < 1e14
    assert 0 < found.op_overhead < 1e-3
    assert [rows for rows, _ in found.efficiency] == sorted(rows for rows, _ in found.efficiency)


def test_times_hold_for_the_versions_of_the_back_end_that_was_timed() -> None:
    assert "apache-tvm" in choose.machine_name(2, "tvm")
    assert "apache-tvm" not in choose.machine_name(2, "ort")


def test_efficiency_is_interpolated() -> None:
    profile = choose.MachineProfile("m", efficiency=((1, 0.1), (4, 0.3), (16, 1.0)))
    assert profile.efficiency_at(1) == 0.1
    assert profile.efficiency_at(2) == pytest.approx(0.2)
    assert profile.efficiency_at(1000) == 1.0


# -- the database ------------------------------------------------------------------------------


def test_rows_of_other_machines_are_not_read(tmp_path: Path) -> None:
    here, there = (choose.TuningDatabase(tmp_path / "t.db", machine) for machine in ("here", "there"))
    there.record("key", FORMS, choose.Measured(4, (1.0, 2.0), 0.0))
    assert here.lookup("key", FORMS) == []
    assert there.lookup("key", FORMS) == [choose.Measured(4, (1.0, 2.0), 0.0)]


def test_a_damaged_database_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "tuning.db"
    path.write_bytes(b"this is no database, and long enough to be looked at" * 100)
    _, compiled = compiled_low_rank(16)
    assert any("set aside" in note for note in compiled.report.notes)
    (aside,) = tmp_path.glob("tuning.db.damaged-*")
    assert aside.read_bytes().startswith(b"this is no database")


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "tuning.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    content = path.read_bytes()
    _, compiled = compiled_low_rank(16)
    assert any("newer than this regraft's" in note for note in compiled.report.notes)
    with pytest.raises(OptionError, match="newer than this regraft's"):
        compiled_low_rank(16, tune=True)
    assert path.read_bytes() == content


def test_merging_keeps_the_newer_rows(tmp_path: Path) -> None:
    a, b = (choose.TuningDatabase(tmp_path / name, "m") for name in ("a.db", "b.db"))
    a.record("old", FORMS, choose.Measured(1, (1.0, 1.0), 0.0))
    b.record("old", FORMS, choose.Measured(1, (2.0, 2.0), 0.0))
    b.record("new", FORMS, choose.Measured(1, (3.0, 3.0), 0.0))
    assert a.merge(tmp_path / "b.db") == 4
    assert a.lookup("old", FORMS)[0].us == (2.0, 2.0)
    assert a.lookup("new", FORMS)[0].us == (3.0, 3.0)
    assert b.merge(tmp_path / "a.db") == 4
    with pytest.raises(OptionError, match="no tuning database"):
        a.merge(tmp_path / "absent.db")
    (tmp_path / "text.db").write_text("text")
    with pytest.raises(OptionError, match="is not a tuning database"):
        a.merge(tmp_path / "text.db")


def test_the_latest_times_are_those_of_one_run_also_after_a_merge(tmp_path: Path) -> None:
    a, b = (choose.TuningDatabase(tmp_path / name, "m") for name in ("a.db", "b.db"))
    a.record("key", (*FORMS, "third"), choose.Measured(1, (3.0, 2.0, 1.0), 0.0))
    a.record("key", FORMS, choose.Measured(2, (5.0, 6.0), 0.1))
    b.record("key", FORMS, choose.Measured(1, (8.0, 9.0), 0.0))
    a.merge(tmp_path / "b.db")
    newer, two = (
        {"as written": (8.0, 0.0), "merged": (9.0, 0.0)},
        {"as written": (5.0, 0.1), "merged": (6.0, 0.1)},
    )
    assert a.latest("key") == {1: newer, 2: two}
    assert a.times("key")[1] == {**newer, "third": (1.0, 0.0)}
    assert a.latest("absent") == {}


def test_a_database_that_is_damaged_later_is_an_error(tmp_path: Path) -> None:
    database = choose.TuningDatabase(tmp_path / "t.db", "m")
    with contextlib.closing(sqlite3.connect(tmp_path / "t.db")) as connection:
        connection.execute("DROP TABLE times")
    with pytest.raises(OptionError, match="cannot be used: no such table"):
        database.lookup("key", FORMS)
    with pytest.raises(OptionError, match="cannot be used: no such table"):
        database.record("key", FORMS, choose.Measured(1, (1.0, 2.0), 0.0))


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.compiler.writers", str(tmp_path / "t.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert len(choose.TuningDatabase(tmp_path / "t.db", "m").lookup("key", FORMS)) == 40


# -- tuning ------------------------------------------------------------------------------------


def test_tuning_measures_once_and_is_used_later(tmp_path: Path) -> None:
    _, first = compiled_low_rank(250, tune=True, budget="20s")
    assert first.report.choices[0].measured
    before = (tmp_path / "tuning.db").stat().st_mtime_ns
    _, second = compiled_low_rank(250)
    assert second.report.choices[0].measured
    assert second.report.choices[0].times == first.report.choices[0].times
    assert (tmp_path / "tuning.db").stat().st_mtime_ns == before


class Gram(nn.Module):
    """A product that is cheaper from the left or from the right, as the length has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.transpose(-1, -2)) @ x


def chosen_for_gram(width: int, **options: Any) -> choose.Choice:
    shapes = ({0: Dim.AUTO, 1: Dim.AUTO},)
    compiled = regraft.compile(Gram().eval(), (torch.randn(2, 16, width),), dynamic_shapes=shapes, **options)
    (choice,) = compiled.report.choices
    return choice


def test_sizes_beside_the_rows_are_tuned_at_their_least(tmp_path: Path) -> None:
    tuned = chosen_for_gram(4, tune=True, budget="20s")
    database = choose.TuningDatabase(tmp_path / "tuning.db", choose.machine_name())
    assert database.lookup(tuned.signature, tuned.forms)


def test_products_of_other_widths_are_told_apart() -> None:
    narrow, wide = chosen_for_gram(4), chosen_for_gram(64)
    assert narrow.signature != wide.signature
    assert chosen_for_gram(4).signature == narrow.signature


def test_rows_are_no_part_of_a_signature() -> None:
    static, dynamic = (decided(alternative(rows), (10, 9), (0, 0)) for rows in (16, S))
    assert static.signature == dynamic.signature


def test_times_of_one_back_end_say_nothing_of_another() -> None:
    compiled_low_rank(250, tune=True, budget="20s")
    assert compiled_low_rank(250)[1].report.choices[0].measured
    assert not compiled_low_rank(250, backends=("eager",))[1].report.choices[0].measured


def test_a_budget_that_is_used_up_is_said() -> None:
    layer = randomise(LowRank(64, 60, 64).eval())
    compiled = regraft.compile(
        layer, (torch.randn(5, 64),), dynamic_shapes=({0: Dim.AUTO},), tune=True, budget=1e-6
    )
    assert any("sufficed for 0 of" in note for note in compiled.report.notes)


@pytest.mark.parametrize("budget", ["0s", "-1s", "soon", 0, -2, True, float("nan")])
def test_budgets_that_are_none(budget: Any) -> None:
    with pytest.raises(OptionError, match="budget"):
        compiled_low_rank(16, tune=True, budget=budget)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "3s"}, "budget"),
        ({"tune": "yes"}, "tune"),
        ({"memory_limit": -1}, "memory_limit"),
        ({"memory_limit": True}, "memory_limit"),
        ({"memory_limit": 1.5}, "memory_limit"),
        ({"memory_limit": "much"}, r"memory_limit: expected a number of bytes.*got 'much'"),
        ({"memory_limit": "-1MB"}, "memory_limit"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        compiled_low_rank(16, **options)


def test_estimates_are_corrected_by_what_was_measured() -> None:
    op = alternative(S)
    model = choose.RooflineModel(choose.MachineProfile("m"))
    plain = choose.Timetable(model)(op, 64).us

    def known(_: Op) -> list[choose.Measured]:
        at_one = choose.Timetable(model)(op, 1).us
        return [choose.Measured(1, (2 * at_one[0], at_one[1]), 0.0)]

    corrected = choose.Timetable(model, known)(op, 64)
    assert corrected.at == (1,)
    assert corrected.estimated == plain
    assert corrected.us == pytest.approx((2 * plain[0], plain[1]))


STEPS = symbol("steps")


def _scan(length: Any, width: int) -> Op:
    """A running sum over ``length`` steps of ``width`` numbers."""
    outer = Region([TensorType(DType.F32, (width,)), TensorType(DType.F32, (length, width))])
    body = Region([TensorType(DType.F32, (width,))] * 2)
    inner = Builder(OPS, body)
    after = inner.aten.add.Tensor(*body.args)
    inner.create("cf.yield", ([after, after],))
    carried, scanned = outer.args
    return Builder(OPS, outer).create("cf.scan", ((carried,), (scanned,), ()), regions=(body,))


def test_a_scan_costs_a_kernel_for_each_op_of_each_trip() -> None:
    model = choose.RooflineModel(choose.MachineProfile("m"))
    one, many = (model.estimate(_scan(count, 64), "cpu", {}) for count in (1, 500))
    assert one.launches == 1
    assert (many.launches, many.flops, many.bytes) == (500, 500 * one.flops, 500 * one.bytes)
    assert many.us == pytest.approx(500 * one.us)
    at_seven = dict.fromkeys(symbols_in(STEPS), 7)
    assert model.estimate(_scan(STEPS, 64), "cpu", at_seven).launches == 7


@pytest.mark.parametrize(
    ("length", "width", "pays"), [(8, 64, False), (8, 1 << 20, True), (500, 64, True), (STEPS, 64, True)]
)
def test_a_scan_that_takes_long_elsewhere_is_worth_a_cut(length: Any, width: int, pays: bool) -> None:
    model = choose.RooflineModel(choose.MachineProfile("m"))
    assert model.is_worth_a_cut(_scan(length, width), {}) is pays


def test_sizes_are_taken_as_text() -> None:
    given = {"1500": 1500, "200MB": 200_000_000, "1.5 GiB": 3 << 29, "512 MiB": 512 << 20, 7: 7, 0: 0}
    assert {text: choose.parse_size(text, "limit") for text in given} == given
    _, compiled = compiled_low_rank(250, memory_limit="1 kB")
    assert "would pass the memory limit" in compiled.report.choices[0].reason
