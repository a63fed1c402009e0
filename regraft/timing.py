"""The noise rule: interleaved calls, medians of paired ratios, and the same thing timed against itself.

See docs/architecture.md, section 8. All entrants of a race take turns in one process, in an order drawn anew
for each round. Before each sample its entrant runs once untimed: what another one left behind (its data in
caches, workers of OpenMP that still spin) is then gone. The first entrant runs in two slots: the ratio of
those is the noise floor.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], object]

AGAIN = "the same again"
#: A round in which other processes used more of the machine than this many cores is run again.
_FOREIGN_CORES = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Interval:
    """A median and its bootstrapped 95 % interval."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float], draws: int = 2000) -> Interval:
        data = np.asarray(values)
        picks = np.random.default_rng(0).choice(data, (draws, data.size))
        low, high = np.percentile(np.median(picks, axis=1), [2.5, 97.5])
        return Interval(float(np.median(data)), float(low), float(high))

    def to_dict(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 4) for name in ("median", "low", "high")}


@dataclass(frozen=True)
class Race:
    """The times of a race in milliseconds, by entrant; the first entrant is the one compared."""

    times: Mapping[str, Sequence[float]]
    rounds_repeated: int
    rounds_noisy: int

    @property
    def first(self) -> str:
        return next(iter(self.times))

    def ratio(self, name: str) -> Interval:
        """Time of ``name`` over time of the first entrant, paired by round: above 1, the first is faster."""
        pairs = zip(self.times[name], self.times[self.first], strict=True)
        return Interval.of([theirs / ours for theirs, ours in pairs])

    def verdict(self, name: str) -> str:
        """How the first entrant does against ``name``: ``faster``, ``slower`` or ``within the noise``.

        A race of which half was disturbed decides nothing.
        """
        if self.rounds_noisy > len(self.times[name]) / 2:
            return "undecided: the machine was busy"
        ratio, noise = self.ratio(name), self.ratio(AGAIN)
        if ratio.low > max(1.0, noise.high):
            return "faster"
        if ratio.high < min(1.0, noise.low):
            return "slower"
        return "within the noise"

    def to_dict(self) -> dict[str, Any]:
        rows = {}
        for name, times in self.times.items():
            rows[name] = {"median_ms": round(statistics.median(times), 4), "min_ms": round(min(times), 4)}
            if name != self.first:
                rows[name]["ratio"] = self.ratio(name).to_dict()
            if name not in (self.first, AGAIN):
                rows[name]["verdict"] = self.verdict(name)
        return {
            "rounds": len(self.times[self.first]),
            "rounds_repeated": self.rounds_repeated,
            "rounds_noisy": self.rounds_noisy,
            "entrants": rows,
        }


def unmeasured(*, again: bool) -> str:
    """What becomes of what a budget did not suffice for; ``again`` says that it was known before."""
    if again:
        return "the others stand as they were, and the next run that measures again begins with the oldest"
    return "the next run goes on from there"


@dataclass(frozen=True)
class Measured:
    """Microseconds of each form of one computation at ``rows`` rows, and the relative noise of measuring."""

    rows: int
    us: tuple[float, ...]
    noise: float


def interpolated(known: Sequence[Measured], rows: int) -> Measured | None:
    """Times at ``rows`` from those measured around it, straight over the logarithms; None outside of them."""
    below = [m for m in known if m.rows <= rows]
    above = [m for m in known if m.rows >= rows]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    if low.rows == high.rows:
        return low
    share = math.log(rows / low.rows) / math.log(high.rows / low.rows)
    us = tuple(a ** (1 - share) * b**share for a, b in zip(low.us, high.us, strict=True))
    return Measured(rows, us, max(low.noise, high.noise))


def noise_of(ratios: Sequence[float]) -> float:
    """How far from 1 the ratios of a call's times to its own come: their median and its standard error.

    The error of the median is that of normally distributed ratios, from the distance of their quartiles.
    """
    low, _, high = statistics.quantiles(ratios, n=4)
    return abs(statistics.median(ratios) - 1) + (high - low) / 1.35 * 1.25 / len(ratios) ** 0.5


def race(
    entrants: Mapping[str, Call],
    *,
    rounds: int = 30,
    warm_up: int = 3,
    inner: int = 1,
    patience: float = 120.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Time the entrants in turns.

    Args:
        entrants: calls by name; the first is compared with each other one and with itself.
        rounds: at least 20.
        inner: calls a sample, for calls of microseconds.
        patience: seconds to spend on repeating rounds that other processes disturbed.
        clock: what samples are timed by. By ``time.process_time``, for entrants of one thread, others on the
            machine disturb no round.
    """
    assert rounds >= 20, "the noise rule asks for at least 20 pairs"
    first = next(iter(entrants))
    slots = {first: entrants[first], AGAIN: entrants[first], **entrants}
    for call in slots.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in slots}
    repeated = noisy = 0
    gc.collect()
    order = np.random.default_rng(0)
    deadline = time.perf_counter() + patience
    while len(times[first]) < rounds:
        sample, foreign = _round(slots, order.permutation(list(slots)).tolist(), inner, clock)
        foreign = foreign if clock is time.perf_counter else 0.0
        patient = time.perf_counter() < deadline
        if foreign > _FOREIGN_CORES and patient:
            repeated += 1
            continue
        noisy += foreign > _FOREIGN_CORES
        for name, milliseconds in sample.items():
            times[name].append(milliseconds)
    return Race(times, repeated, noisy)


def _round(
    slots: Mapping[str, Call], order: Sequence[str], inner: int, clock: Callable[[], float]
) -> tuple[dict[str, float], float]:
    """One sample of each slot, and the cores that other processes used meanwhile."""
    gc.collect(1)  # what rounds leave is young: to go through all objects takes a second in a large process
    gc.disable()
    before = _usage()
    sample: dict[str, float] = {}
    try:
        for name in order:
            call = slots[name]
            call()
            start = clock()
            for _ in range(inner):
                call()
            sample[name] = 1e3 * (clock() - start) / inner
    finally:
        gc.enable()
    return sample, _foreign(before, _usage())


def _usage() -> tuple[float, float, float]:
    """CPU seconds of the whole machine, CPU seconds of this process, and the clock."""
    stat = Path("/proc/stat")
    own = os.times()
    if not stat.exists():
        return 0.0, 0.0, time.perf_counter()
    fields = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS, own.user + own.system, time.perf_counter()


def _foreign(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
    busy, own, wall = (b - a for a, b in zip(before, after, strict=True))
    # The counters move in hundredths of a second: over a short round they say nothing.
    return max(0.0, (busy - own) / wall) if wall > 0.1 else 0.0
