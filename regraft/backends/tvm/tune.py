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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from regraft.backends.tvm.bench import Trial
from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.space import Config
from regraft.backends.tvm.templates import Problem, Template
from regraft.errors import BackendError
from regraft.timing import Measured, interpolated, noise_of

MOST_CANDIDATES = 16
#: Samples of each candidate in the first round; each later round takes twice as many of half of them.
_FIRST_SAMPLES = 3
_FINAL_SAMPLES = 15
#: Candidates this much slower than the fastest leave at once.
_HOPELESS = 1.5
#: A sample of a call faster than this is of many calls.
_SHORTEST_SAMPLE = 200e-6


class Records(Protocol):
    """Where times are kept: the tuning database, which the compiler hands in."""

    def record(self, signature: str, forms: Sequence[str], measured: Measured) -> None: ...

    def lookup(self, signature: str, forms: Sequence[str]) -> Sequence[Measured]: ...


class Bench(Protocol):
    """What builds and runs candidates: ``bench.KernelBench``."""

    def build(self, config: Config) -> Any: ...

    def trial(self, kernel: Any, config: Config, rows: int) -> Trial: ...


@dataclass(frozen=True)
class Choice:
    """Configs in the order in which to build them, the best first.

    Fields:
        is_measured: whether the order is by measured times, or by estimates.
    """

    configs: tuple[Config, ...]
    is_measured: bool


def choose(
    problem: Problem, template: Template, cpu: Cpu, records: Records | None = None, rows: int | None = None
) -> Choice:
    """The configs for ``problem``, whose rows are ``rows`` where that is not known from it.

    Nothing is measured. Times are interpolated between the numbers of rows that they were measured at; a
    problem of any number of rows takes the config that is best over all of these.
    """
    candidates = template.ranked(problem, cpu, MOST_CANDIDATES)
    known = records.lookup(problem.signature, _forms(candidates)) if records is not None else ()
    rows = problem.rows if rows is None else rows
    if rows is not None:
        exact = interpolated(known, rows)
        known = [exact] if exact is not None else []
    if not known:
        return Choice(tuple(candidates), False)
    return Choice(tuple(candidates[i] for i in _order(known)), True)


def built(choice: Choice, build: Callable[[Config], Any], notes: list[str]) -> tuple[Config, Any]:
    """The first config that builds, and its kernel; what did not is added to ``notes``.

    Raises:
        BackendError: none builds.
    """
    for config in choice.configs:
        try:
            return config, build(config)
        except BackendError as error:
            origin = "tuned" if choice.is_measured else "untuned"
            notes.append(
                f"the {origin} kernel {config} does not build, the next one is taken: {error.message}"
            )
    raise BackendError("no config of the kernel builds", backend="tvm")


def _order(known: Sequence[Measured]) -> list[int]:
    """Numbers of the forms, the best one first: the default, unless another is faster beyond the noise."""
    scores = [
        math.prod(m.us[form] / min(m.us) for m in known) ** (1 / len(known))
        for form in range(len(known[0].us))
    ]
    order = sorted(range(len(scores)), key=scores.__getitem__)
    noise = max(m.noise for m in known)
    if scores[0] <= scores[order[0]] * (1 + noise):
        order.remove(0)
        order.insert(0, 0)
    return order


def _forms(candidates: Iterable[Config]) -> list[str]:
    return [str(config) for config in candidates]


@dataclass
class KernelTuner:
    """Measures what ``records`` lack, within a budget of seconds.

    Fields:
        clock: seconds; tests have one of their own.
        notes: what the user should know: candidates that do not build or are wrong, a budget that ended.
    """

    records: Records
    cpu: Cpu
    budget: float = 20.0
    clock: Callable[[], float] = time.perf_counter
    notes: list[str] = field(default_factory=list[str])

    def run(self, problem: Problem, template: Template, bench: Bench, rows: Sequence[int] = ()) -> Choice:
        """Measure ``problem`` at each of ``rows`` (by default its own) that was not; what to build then.

        A candidate that does not build, or gives wrong values, is recorded with an infinite time.
        """
        wanted = (problem.rows,) if problem.rows is not None else tuple(rows)
        candidates = template.ranked(problem, self.cpu, MOST_CANDIDATES)
        forms = _forms(candidates)
        done = {m.rows for m in self.records.lookup(problem.signature, forms)}
        missing = [count for count in wanted if count not in done]
        deadline = self.clock() + self.budget
        kernels: dict[int, Any] = {}
        for count in missing:
            if not kernels:
                kernels = self._built(candidates, bench, deadline)
            if self.clock() >= deadline:
                self.notes.append(f"the budget of {self.budget:g} s ended before {count} rows were measured")
                break
            trials = {i: bench.trial(kernel, candidates[i], count) for i, kernel in kernels.items()}
            measured = self._measure(candidates, trials, count, deadline)
            if measured is not None:
                self.records.record(problem.signature, forms, measured)
        return choose(problem, template, self.cpu, self.records)

    def _built(self, candidates: Sequence[Config], bench: Bench, deadline: float) -> dict[int, Any]:
        """Kernels by number; building takes at most half of what is left of the budget."""
        kernels: dict[int, Any] = {}
        half = (self.clock() + deadline) / 2
        for number, config in enumerate(candidates):
            if number > 1 and self.clock() >= half:
                self.notes.append(f"the budget sufficed to build {number} of {len(candidates)} candidates")
                break
            try:
                kernels[number] = bench.build(config)
            except BackendError as error:
                self.notes.append(f"the candidate {config} does not build: {error.message}")
        return kernels

    def _measure(
        self, candidates: Sequence[Config], trials: Mapping[int, Trial], rows: int, deadline: float
    ) -> Measured | None:
        """Microseconds of every candidate, infinite for those without a right kernel; None if none has."""
        alive = {
            number: trial.run for number, trial in trials.items() if self._is_right(candidates[number], trial)
        }
        if not alive:
            self.notes.append(f"no candidate gives right values at {rows} rows")
            return None
        times = dict.fromkeys(range(len(candidates)), math.inf)
        default, samples = min(alive), _FIRST_SAMPLES
        while len(alive) > 2 and self.clock() < deadline:
            times |= {n: statistics.median(each) for n, each in self._sampled(alive, samples).items()}
            alive = {number: alive[number] for number in _better_half(times, list(alive), default)}
            samples *= 2
        again = -1
        found = self._sampled({**alive, again: alive[default]}, _FINAL_SAMPLES)
        noise = noise_of([a / b for a, b in zip(found.pop(again), found[default], strict=True)])
        times |= {number: statistics.median(each) for number, each in found.items()}
        return Measured(rows, tuple(1e6 * times[number] for number in range(len(candidates))), noise)

    def _is_right(self, config: Config, trial: Trial) -> bool:
        fault = trial.fault()
        if fault is not None:
            self.notes.append(f"the candidate {config} gives wrong values and is never chosen: {fault}")
        return fault is None

    def _sampled(self, calls: Mapping[int, Callable[[], None]], samples: int) -> dict[int, list[float]]:
        """Seconds of each call, so many samples in turns."""
        inner = {number: self._calls_in_a_sample(call) for number, call in calls.items()}
        found: dict[int, list[float]] = {number: [] for number in calls}
        for _ in range(samples):
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
