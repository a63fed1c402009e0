"""The tuner on candidates that take as long as a clock of the test's own says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from regraft.backends.tvm import bench, cpu, space, templates, tune
from regraft.errors import BackendError
from regraft.timing import Measured

ZEN4 = cpu.Cpu("avx512", 16, 32, l2=1 << 20, threads=2, peak=237e9, bandwidth=40e9)
GEMM = next(t for t in templates.TEMPLATES if t.name == "gemm")
PROBLEM = templates.Gemm(None, 768, 768)
KEY = tune.record_key(PROBLEM)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeBench:
    """Candidates by rank; each takes ``seconds(rank, rows)`` and moves the clock by as much."""

    clock: Clock
    seconds: Mapping[int, float] = field(default_factory=dict)
    wrong: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    build_seconds: float = 0.1
    slower_by_row: Mapping[int, float] = field(default_factory=dict)
    built: list[int] = field(default_factory=list)
    runs: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ranks = {c: i for i, c in enumerate(GEMM.ranked(PROBLEM, ZEN4, tune.MOST_CANDIDATES))}

    def build(self, config: space.Config) -> int:
        rank = self.ranks[config]
        self.built.append(rank)
        self.clock.now += self.build_seconds
        if rank in self.broken:
            raise BackendError("no such instruction")
        return rank

    def trial(self, kernel: int, config: space.Config, rows: int) -> bench.Trial:
        seconds = self.seconds.get(kernel, 2e-3) + rows * self.slower_by_row.get(kernel, 0.0)

        def run() -> None:
            self.runs[kernel] = self.runs.get(kernel, 0) + 1
            self.clock.now += seconds

        return bench.Trial(run, lambda: "error 0.5" if kernel in self.wrong else None)


class MemoryRecords:
    def __init__(self) -> None:
        self.kept: dict[str, dict[int, dict[str, tuple[float, float]]]] = {}

    def record(self, signature: str, forms: Sequence[str], measured: Measured) -> None:
        found = {form: (us, measured.noise) for form, us in zip(forms, measured.us, strict=True)}
        self.kept.setdefault(signature, {}).setdefault(measured.rows, {}).update(found)

    def times(self, signature: str) -> tune.Times:
        return self.kept.get(signature, {})


def ranked() -> list[space.Config]:
    return GEMM.ranked(PROBLEM, ZEN4, tune.MOST_CANDIDATES)


def run(
    fake: FakeBench, rows: Sequence[int] = (16,), **options: float
) -> tuple[tune.KernelTuner, tune.Choice]:
    tuner = tune.KernelTuner(MemoryRecords(), ZEN4, clock=fake.clock, **options)
    return tuner, tuner.run(PROBLEM, GEMM, fake, rows)


def test_the_fastest_candidate_is_chosen() -> None:
    _, choice = run(FakeBench(Clock(), {11: 1e-3}))
    assert choice.is_measured
    assert choice.configs[0] == ranked()[11]


def test_what_is_slow_is_measured_less() -> None:
    fake = FakeBench(Clock(), {i: 1e-3 * (1 + i / 50) for i in range(16)})
    run(fake)
    assert fake.runs[15] < fake.runs[4] < fake.runs[0]


def test_what_is_hopeless_leaves_at_once() -> None:
    fake = FakeBench(Clock(), {0: 1e-3} | dict.fromkeys(range(1, 16), 0.01))
    run(fake)
    assert max(fake.runs[i] for i in range(1, 16)) == fake.runs[1]
    assert fake.runs[1] <= 2 + 3


def test_the_default_stays_unless_another_is_faster_beyond_the_noise() -> None:
    records = MemoryRecords()
    forms = [str(config) for config in ranked()]
    records.record(KEY, forms, Measured(16, (1.01, 1.0, *[2.0] * 14), noise=0.02))
    assert tune.choose(PROBLEM, GEMM, ZEN4, records).configs[0] == ranked()[0]
    records.record(KEY, forms, Measured(16, (1.05, 1.0, *[2.0] * 14), noise=0.02))
    assert tune.choose(PROBLEM, GEMM, ZEN4, records).configs[:2] == (ranked()[1], ranked()[0])


def test_wrong_values_are_recorded_told_and_never_chosen() -> None:
    fake = FakeBench(Clock(), {3: 1e-4, 5: 1e-3}, wrong=frozenset({3}))
    tuner, choice = run(fake)
    assert choice.configs[0] == ranked()[5]
    assert ranked()[3] not in choice.configs
    assert tuner.records.times(KEY)[16][str(ranked()[3])][0] == float("inf")
    assert [note for note in tuner.notes if "wrong values" in note] == [
        f"the candidate {ranked()[3]} gives wrong values and is never chosen: error 0.5"
    ]


def test_a_wrong_default_gives_way() -> None:
    _, choice = run(FakeBench(Clock(), wrong=frozenset({0})))
    assert ranked()[0] not in choice.configs
    assert choice.is_measured


def test_a_candidate_that_does_not_build_is_told() -> None:
    tuner, choice = run(FakeBench(Clock(), {2: 1e-3}, broken=frozenset({1})))
    assert choice.configs[0] == ranked()[2]
    assert tuner.notes == [f"the candidate {ranked()[1]} does not build: no such instruction"]


def test_when_none_is_right_the_estimates_stand() -> None:
    tuner, choice = run(FakeBench(Clock(), wrong=frozenset(range(16))))
    assert not choice.is_measured
    assert choice.configs == tuple(ranked())
    assert tuner.notes[-1] == "no candidate gives right values at 16 rows"


def test_at_most_sixteen_are_built_and_once_each() -> None:
    fake = FakeBench(Clock())
    run(fake, rows=(1, 16, 128))
    assert fake.built == list(range(16))


def test_the_budget_holds() -> None:
    fake = FakeBench(Clock(), build_seconds=1.0)
    tuner, choice = run(fake, rows=(1, 16, 128), budget=4.0)
    assert fake.clock.now < 6.0
    assert choice.is_measured
    assert "the budget sufficed to build 2 of 16 candidates" in tuner.notes[0]


def test_what_the_budget_left_out_is_tried_by_the_next_run() -> None:
    clock = Clock()
    fake = FakeBench(clock, {11: 1e-3}, build_seconds=1.0)
    tuner, first = run(fake, budget=8.0)
    done = len(fake.built)
    assert done < 11
    assert len(tuner.records.times(KEY)[16]) == done
    assert ranked()[15] in first.configs, "nobody knows that it is wrong"
    assert tune.missing(PROBLEM, GEMM, ZEN4, tuner.records, (16,)) == [16]
    again = replace(fake, built=[])
    second = tune.KernelTuner(tuner.records, ZEN4, clock=clock, budget=60.0).run(PROBLEM, GEMM, again, (16,))
    assert again.built == [0, *range(done, 16)], "the default, and what was not tried"
    assert second.configs[0] == ranked()[11]
    assert tune.missing(PROBLEM, GEMM, ZEN4, tuner.records, (16,)) == []


def test_each_run_tries_one_more_at_least() -> None:
    clock, records = Clock(), MemoryRecords()
    fake = FakeBench(clock, broken=frozenset({1, 2}), build_seconds=1.0)
    for tried in (2, 3, 4):
        tune.KernelTuner(records, ZEN4, clock=clock, budget=2.5).run(PROBLEM, GEMM, fake, (16,))
        assert len(records.times(KEY)[16]) == tried
    assert records.times(KEY)[16][str(ranked()[2])][0] == float("inf")


def test_what_is_wrong_at_one_number_of_rows_is_not_chosen_where_it_was_not_tried() -> None:
    records = MemoryRecords()
    forms = [str(config) for config in ranked()]
    records.record(KEY, forms, Measured(1, (1.0, float("inf"), *[2.0] * 14), noise=0.01))
    records.record(KEY, forms[:1], Measured(16, (1.0,), noise=0.01))
    assert ranked()[1] not in tune.choose(PROBLEM, GEMM, ZEN4, records).configs


def test_a_second_run_measures_nothing() -> None:
    clock = Clock()
    fake = FakeBench(clock, {4: 1e-3})
    tuner, first = run(fake)
    again = FakeBench(clock)
    second = tune.KernelTuner(tuner.records, ZEN4, clock=clock).run(PROBLEM, GEMM, again, (16,))
    assert again.built == []
    assert second == first


def test_times_are_interpolated_between_numbers_of_rows() -> None:
    """Of kernels of a fixed number of rows; nothing is said beyond those that were measured."""
    problems = {rows: replace(PROBLEM, rows=rows) for rows in (16, 24, 64, 128, 500)}
    few = GEMM.ranked(problems[16], ZEN4, 16)[3]
    many = next(c for c in GEMM.ranked(problems[128], ZEN4, 16)[3:] if c != few)
    records = MemoryRecords()
    for rows, best in ((16, few), (128, many)):
        us = {str(c): 2.0 for r in (16, 128) for c in GEMM.ranked(problems[r], ZEN4, 16)} | {str(best): 1.0}
        records.record(tune.record_key(problems[rows]), list(us), Measured(rows, tuple(us.values()), 0.01))
    chosen = {rows: tune.choose(problem, GEMM, ZEN4, records) for rows, problem in problems.items()}
    assert chosen[16].configs[0] == chosen[24].configs[0] == few
    assert chosen[64].configs[0] == chosen[128].configs[0] == many
    assert chosen[64].us[64][few] == pytest.approx(2.0 ** (2 / 3))
    assert not chosen[500].is_measured
    assert not tune.choose(PROBLEM, GEMM, ZEN4, records).is_measured, "kernels of any rows are other ones"


def test_a_kernel_of_any_rows_is_the_best_over_all_that_was_measured() -> None:
    fake = FakeBench(Clock(), {3: 1e-4, 4: 1e-3}, slower_by_row={3: 1e-3, 4: 1e-6})
    tuner, choice = run(fake, rows=(1, 128))
    assert choice.configs[0] == ranked()[4]
    assert set(choice.us) == {1, 128}
    assert tune.missing(PROBLEM, GEMM, ZEN4, tuner.records, (1, 16, 128)) == [16]


def test_what_a_record_says_of_another_template_counts_for_nothing() -> None:
    records = MemoryRecords()
    forms = [str(config) for config in ranked()]
    alien = ["lanes=16,rows=99,width=64,depth=768,splits=1", "not a config"]
    records.record(KEY, [*alien, *forms], Measured(16, (0.1, 0.1, *[2.0] * 16), noise=0.01))
    choice = tune.choose(PROBLEM, GEMM, ZEN4, records)
    assert choice.configs == tuple(ranked())


def test_a_record_that_no_longer_builds_is_told_and_the_next_one_taken() -> None:
    notes: list[str] = []

    def build(config: space.Config) -> str:
        if config == ranked()[0]:
            raise BackendError("no such instruction")
        return "kernel"

    assert tune.built(ranked()[:3], build, notes) == (ranked()[1], "kernel")
    assert notes == [
        f"the tuned kernel {ranked()[0]} does not build, the next one is taken: no such instruction"
    ]


def test_when_nothing_builds_it_is_an_error() -> None:
    def build(config: space.Config) -> str:
        raise BackendError("no")

    with pytest.raises(BackendError, match="no config of the kernel builds"):
        tune.built(ranked()[:2], build, [])


def test_without_records_the_order_is_that_of_the_estimates() -> None:
    choice = tune.choose(PROBLEM, GEMM, ZEN4)
    assert choice == tune.Choice(tuple(ranked()), ranked()[0])
    assert not choice.is_measured
