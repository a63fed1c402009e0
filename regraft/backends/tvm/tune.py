"""Which config of a template to build: by what was measured, else by estimate; and the measuring.

At most 16 configs of the best estimates are built. At each number of rows they take turns, the slower half
leaves, and the rest are measured twice as often, until one is left beside the default or nothing near the
fastest one is (successive halving: Karnin, Koren, Somekh 2013). The default gives way only to what is faster
beyond the noise. Times go to the tuning database, so that a later process measures nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from regraft.backends.tvm.bench import Trial
from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.space import Config, Space
from regraft.backends.tvm.templates import Problem, Template
from regraft.errors import BackendError
from regraft.timing import Measured, interpolated, noise_of, unmeasured

MOST_CANDIDATES = 16
#: Samples of each candidate in the first round; each later round takes twice as many of half of them.
_FIRST_SAMPLES = 3
_FINAL_SAMPLES = 15
#: Candidates this much slower than the fastest leave at once.
_HOPELESS = 1.5
#: A sample of a call faster than this is of many calls.
_SHORTEST_SAMPLE = 200e-6


Times = Mapping[int, Mapping[str, tuple[float, float]]]
"""Number of rows -> config -> microseconds of a kernel, and the relative noise of measuring."""


class Records(Protocol):
    """Where times are kept: the tuning database, which the compiler hands in."""

    def record(self, signature: str, forms: Sequence[str], measured: Measured) -> None: ...

    def times(self, signature: str) -> Times: ...


class Bench(Protocol):
    """What builds and runs candidates: ``bench.KernelBench``."""

    def build(self, config: Config) -> Any: ...

    def trial(self, kernel: Any, config: Config, rows: int) -> Trial: ...


@dataclass(frozen=True)
class Choice:
    """Configs in the order in which to build them, the best first.

    Fields:
        default: the one to use where nothing was measured.
        us: number of rows -> config -> measured microseconds, interpolated where they are not of just so
            many rows; empty where the order is by estimates.
        measured_at: the numbers of rows that ``us`` comes from.
    """

    configs: tuple[Config, ...]
    default: Config
    us: Mapping[int, Mapping[Config, float]] = field(default_factory=dict[int, Mapping[Config, float]])
    measured_at: tuple[int, ...] = ()

    @property
    def is_measured(self) -> bool:
        return bool(self.us)


def record_key(problem: Problem) -> str:
    """What the times of ``problem`` are kept under: kernels of any number of rows are other ones."""
    return f"{problem.signature}, {'any' if problem.rows is None else 'fixed'} rows"


def choose(problem: Problem, template: Template, cpu: Cpu, records: Records | None = None) -> Choice:
    """The configs for ``problem``; nothing is measured.

    Of a known number of rows, times are interpolated between those that were measured; a kernel of any
    number of rows has the config that is best over all of these.
    """
    candidates = template.ranked(problem, cpu, MOST_CANDIDATES)
    default = candidates[0]
    times = records.times(record_key(problem)) if records is not None else {}
    near = _near(times, problem.rows)
    known = _of_all(near) if problem.rows is None else _of_rows(near, problem.rows)
    if not known:
        return Choice(tuple(candidates), default)
    space = template.space(problem, cpu)
    configs = {form: config for form in known[0].forms if (config := _config(form, space)) is not None}
    measured = [configs[form] for form in _order(known, str(default)) if form in configs]
    wrong = {form for each in near.values() for form, (us, _) in each.items() if not math.isfinite(us)}
    order = dict.fromkeys((*measured, *(config for config in candidates if str(config) not in wrong)))
    us = {each.rows: {c: each.us[f] for f, c in configs.items() if f in each.us} for each in known}
    if not measured:
        return Choice(tuple(order or candidates), default)
    return Choice(tuple(order), default, us, tuple(sorted(near)))


@dataclass(frozen=True)
class _Known:
    """Times of configs at one number of rows; ``us`` has those with right values alone."""

    rows: int
    forms: tuple[str, ...]
    us: Mapping[str, float]
    noise: float


def _near(times: Times, rows: int | None) -> Times:
    """The times that tell of ``rows`` rows: measured there, or around it; all for any number of rows."""
    if rows is None:
        return times
    below = max((r for r in times if r <= rows), default=None)
    above = min((r for r in times if r >= rows), default=None)
    if below is None or above is None:  # nothing is said beyond what was measured
        return {}
    return {r: times[r] for r in dict.fromkeys((below, above))}


def _of_rows(near: Times, rows: int) -> list[_Known]:
    """What is known of ``rows`` rows, by the times ``near`` them."""
    forms = _everywhere(near)
    found = interpolated([_measured(r, each, forms) for r, each in near.items()], rows) if forms else None
    return [] if found is None else [_known(found, forms)]


def _of_all(times: Times) -> list[_Known]:
    """What was measured at all numbers of rows."""
    forms = _everywhere(times)
    return [_known(_measured(r, times[r], forms), forms) for r in sorted(times)] if forms else []


def _everywhere(times: Times) -> list[str]:
    """The configs that were tried at each number of rows."""
    first = next(iter(times.values()), {})
    return [form for form in first if all(form in each for each in times.values())]


def _measured(rows: int, found: Mapping[str, tuple[float, float]], forms: Sequence[str]) -> Measured:
    return Measured(rows, tuple(found[f][0] for f in forms), max((found[f][1] for f in forms), default=0.0))


def _known(measured: Measured, forms: Sequence[str]) -> _Known:
    us = {form: us for form, us in zip(forms, measured.us, strict=True) if math.isfinite(us)}
    return _Known(measured.rows, tuple(forms), us, measured.noise)


def _order(known: Sequence[_Known], default: str) -> list[str]:
    """What is right everywhere, the best first: the default, unless another is faster beyond the noise.

    A default that was not measured gives way to what was.
    """
    right = [form for form in known[0].forms if all(form in each.us for each in known)]
    if not right:
        return []
    scores = {
        form: math.prod(each.us[form] / min(each.us.values()) for each in known) ** (1 / len(known))
        for form in right
    }
    order = sorted(right, key=scores.__getitem__)
    noise = max(each.noise for each in known)
    if default in scores and scores[default] <= scores[order[0]] * (1 + noise):
        order.remove(default)
        order.insert(0, default)
    return order


def _config(form: str, space: Space) -> Config | None:
    """The config that a record names; None where the template has none such here any more."""
    try:
        config = Config.parse(form)
    except ValueError:  # the record of another version
        return None
    return config if space.refusal(config) is None else None


def built(
    choice: Sequence[Config], build: Callable[[Config], Any], notes: list[str], origin: str = "tuned"
) -> tuple[Config, Any]:
    """The first config that builds, and its kernel; what did not is added to ``notes``.

    Raises:
        BackendError: none builds.
    """
    for config in choice:
        try:
            return config, build(config)
        except BackendError as error:
            notes.append(
                f"the {origin} kernel {config} does not build, the next one is taken: {error.message}"
            )
    raise BackendError("no config of the kernel builds", backend="tvm")


def missing(
    problem: Problem, template: Template, cpu: Cpu, records: Records, rows: Sequence[int] = ()
) -> list[int]:
    """Those of ``rows``, or the problem's own, at which its best candidates were not measured."""
    wanted = (problem.rows,) if problem.rows is not None else tuple(rows)
    forms = {str(config) for config in template.ranked(problem, cpu, MOST_CANDIDATES)}
    times = records.times(record_key(problem))
    return [count for count in wanted if count and not forms <= times.get(count, {}).keys()]


def begin_with(
    problem: Problem, template: Template, cpu: Cpu, records: Records, rows: Sequence[int]
) -> list[str]:
    """Where all is measured again, the configs to begin with: the best one known, and those never tried.

    What is measured takes the place of all that was known: without the best one among it that would be lost.
    """
    known = records.times(record_key(problem))
    ranked = map(str, template.ranked(problem, cpu, MOST_CANDIDATES))
    untried = [form for form in ranked if not all(form in known.get(count, {}) for count in rows)]
    return [str(choose(problem, template, cpu, records).configs[0]), *untried]


@dataclass(frozen=True)
class _Built:
    """Candidates, by number: kernels of those that build, and those that do not.

    ``rest`` tells of those that were not tried, where there are any.
    """

    kernels: dict[int, Any]
    refused: list[int]
    rest: str = ""


@dataclass
class KernelTuner:
    """Measures what ``records`` lack, within a budget of seconds.

    Fields:
        clock: seconds; tests have one of their own.
        notes: what the user should know: candidates that do not build or are wrong, a budget that ended.
        first: configs to begin with, after the default.
    """

    records: Records
    cpu: Cpu
    budget: float = 20.0
    clock: Callable[[], float] = time.perf_counter
    notes: list[str] = field(default_factory=list[str])
    first: Sequence[str] = ()

    def run(self, problem: Problem, template: Template, bench: Bench, rows: Sequence[int] = ()) -> Choice:
        """Measure ``problem`` at each of ``rows`` (by default its own) that was not; what to build then.

        A candidate that does not build, or gives wrong values, is recorded with an infinite time. One that
        the budget did not suffice to build is not recorded, and the next run begins with it.
        """
        candidates = template.ranked(problem, self.cpu, MOST_CANDIDATES)
        key = record_key(problem)
        deadline = self.clock() + self.budget
        counts = missing(problem, template, self.cpu, self.records, rows)
        built: _Built | None = None
        for count in counts:
            built = built or self._built(candidates, self._order(candidates, key, counts), bench, deadline)
            if self.clock() >= deadline:
                self.notes.append(f"the budget of {self.budget:g} s ended before {count} rows were measured")
                break
            trials = {i: bench.trial(kernel, candidates[i], count) for i, kernel in built.kernels.items()}
            us, noise = self._measure(candidates, trials, count, deadline)
            if us:
                us |= dict.fromkeys(built.refused, math.inf)
                forms = [str(candidates[number]) for number in us]
                self.records.record(key, forms, Measured(count, tuple(us.values()), noise))
                if built.rest and built.rest not in self.notes:
                    self.notes.append(built.rest)
        return choose(problem, template, self.cpu, self.records)

    def _order(self, candidates: Sequence[Config], key: str, counts: Sequence[int]) -> list[int]:
        """The candidates to build: the default, which all are compared with, and what was not tried."""
        times = self.records.times(key)
        tried = [times.get(count, {}) for count in counts]
        untried = (
            number
            for number, config in enumerate(candidates)
            if not all(str(config) in each for each in tried)
        )
        numbers = {str(config): number for number, config in enumerate(candidates)}
        first = [numbers[form] for form in self.first if form in numbers]
        return list(dict.fromkeys((0, *first, *untried)))

    def _built(
        self, candidates: Sequence[Config], order: Sequence[int], bench: Bench, deadline: float
    ) -> _Built:
        """Builds in ``order``, at most for half of what is left of the budget, but two in any case."""
        kernels: dict[int, Any] = {}
        refused: list[int] = []
        half = (self.clock() + deadline) / 2
        for done, number in enumerate(order):
            if done > 1 and self.clock() >= half:
                rest = f"{done} of {len(order)} candidates; {unmeasured(again=False)}"
                return _Built(kernels, refused, f"the budget sufficed to build {rest}")
            try:
                kernels[number] = bench.build(candidates[number])
            except BackendError as error:
                refused.append(number)
                self.notes.append(f"the candidate {candidates[number]} does not build: {error.message}")
        return _Built(kernels, refused)

    def _measure(
        self, candidates: Sequence[Config], trials: Mapping[int, Trial], rows: int, deadline: float
    ) -> tuple[dict[int, float], float]:
        """Microseconds of what was tried, infinite where values are wrong, and the noise; none if all are."""
        alive = {
            number: trial.run for number, trial in trials.items() if self._is_right(candidates[number], trial)
        }
        if not alive:
            self.notes.append(f"no candidate gives right values at {rows} rows")
            return {}, 0.0
        times = dict.fromkeys(trials, math.inf)
        default, samples = min(alive), _FIRST_SAMPLES
        while len(alive) > 2 and self.clock() < deadline:
            sampled = self._sampled(alive, samples, deadline)
            times |= {number: statistics.median(each) for number, each in sampled.items()}
            alive = {number: alive[number] for number in _better_half(times, list(alive), default)}
            samples *= 2
        again = -1
        found = self._sampled({**alive, again: alive[default]}, _FINAL_SAMPLES, deadline)
        noise = noise_of([a / b for a, b in zip(found.pop(again), found[default], strict=True)])
        times |= {number: statistics.median(each) for number, each in found.items()}
        return {number: 1e6 * seconds for number, seconds in times.items()}, noise

    def _is_right(self, config: Config, trial: Trial) -> bool:
        fault = trial.fault()
        if fault is not None:
            self.notes.append(f"the candidate {config} gives wrong values and is never chosen: {fault}")
        return fault is None

    def _sampled(
        self, calls: Mapping[int, Callable[[], None]], samples: int, deadline: float
    ) -> dict[int, list[float]]:
        """Seconds of each call, so many samples in turns; few of them once the time is up."""
        inner = {number: self._calls_in_a_sample(call) for number, call in calls.items()}
        found: dict[int, list[float]] = {number: [] for number in calls}
        for turn in range(samples):
            if turn >= _FIRST_SAMPLES and self.clock() >= deadline:
                break
            for number, call in calls.items():
                start = self.clock()
                for _ in range(inner[number]):
                    call()
                found[number].append((self.clock() - start) / inner[number])
        return found

    def _calls_in_a_sample(self, call: Callable[[], None]) -> int:
        call()
        start = self.clock()
        call()
        return max(1, round(_SHORTEST_SAMPLE / max(self.clock() - start, 1e-7)))


def _better_half(times: Mapping[int, float], alive: Sequence[int], default: int) -> list[int]:
    """The faster half of ``alive`` without what is hopeless, and the default; the default comes first."""
    others = sorted((number for number in alive if number != default), key=times.__getitem__)
    fastest = min(times[number] for number in alive)
    half = others[: max(1, len(alive) // 2 - 1)]
    return [default, *(number for number in half if times[number] <= _HOPELESS * fastest)]
