"""Measuring the forms of an ``rg.alt`` on the executor that will run them.

Forms take turns (A B A B), and the reference runs once more in each round: how far it is from itself is the
noise, and a form that is not faster by more than that does not replace the reference.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regraft.backends import Backend, ConstantStore, LowerOptions
from regraft.compiler.choose.database import Measured, TuningDatabase, interpolated
from regraft.compiler.choose.decide import Times, grid, signature, sizes_at
from regraft.compiler.choose.model import RooflineModel
from regraft.errors import OptionError
from regraft.ir import Function, Op, Symbol, Value, clone_region, evaluate, input_symbols
from regraft.runtime import TORCH_DTYPES

_ROUNDS = 15
#: Measured numbers of rows where sizes vary: every second power of two up to here.
_MOST_TUNED_ROWS = 1024
#: A sample of a call faster than this is of many calls.
_SHORTEST_SAMPLE = 200e-6


@dataclass
class Timetable:
    """Times of forms: measured where the database has them, else estimated.

    An estimate is corrected by what was measured of the same computation at other numbers of rows.
    """

    model: RooflineModel
    database: TuningDatabase | None = None
    _known: dict[str, list[Measured]] = field(default_factory=dict[str, list[Measured]])

    def __call__(self, op: Op, rows: int) -> Times:
        known = self._lookup(op)
        exact = interpolated(known, rows)
        if exact is not None:
            return Times(exact.us, measured=True, noise=exact.noise)
        estimate = self._estimate(op, rows)
        if not known:
            return Times(estimate)
        nearest = min(known, key=lambda m: abs(m.rows - rows))
        at_nearest = self._estimate(op, nearest.rows)
        factors = [m / e for m, e in zip(nearest.us, at_nearest, strict=True)]
        return Times(tuple(e * f for e, f in zip(estimate, factors, strict=True)), noise=nearest.noise)

    def _lookup(self, op: Op) -> list[Measured]:
        key = signature(op)
        if key not in self._known:
            found = self.database.lookup(key, op.attr("forms")) if self.database is not None else []
            self._known[key] = found
        return self._known[key]

    def _estimate(self, op: Op, rows: int) -> tuple[float, ...]:
        sizes = sizes_at(op, rows)
        return tuple(self.model.region(region, sizes).us for region in op.regions)


@dataclass
class Tuner:
    """Measures what the database lacks, within a budget of seconds."""

    backend: Backend
    store: ConstantStore
    options: LowerOptions
    database: TuningDatabase
    budget: float
    progress: Callable[[int, int], None] = lambda done, total: None

    def run(self, ops: Sequence[Op]) -> str | None:
        """Measure each computation once; a note when the budget did not suffice for all of them."""
        unlike = {signature(op): op for op in ops if all(map(self._takes, op.regions[0].ops))}
        jobs = [(key, op, rows) for key, op in unlike.items() for rows in self._missing(key, op)]
        deadline = time.perf_counter() + self.budget
        for done, (key, op, rows) in enumerate(jobs):
            self.progress(done, len(jobs))
            if time.perf_counter() >= deadline:
                return f"the budget of {self.budget:g} s sufficed for {done} of {len(jobs)} measurements"
            self.database.record(key, op.attr("forms"), self._measure(op, rows))
        self.progress(len(jobs), len(jobs))
        return None

    def _takes(self, op: Op) -> bool:
        return self.backend.supports(op) is None

    def _missing(self, key: str, op: Op) -> list[int]:
        rows = op.site.dim_attr("rows")
        wanted = grid(rows)
        if not isinstance(rows, int):
            wanted = [r for r in wanted if r <= _MOST_TUNED_ROWS][::2] or wanted[:1]
        known = {m.rows for m in self.database.lookup(key, op.attr("forms"))}
        return [r for r in wanted if r not in known]

    def _measure(self, op: Op, rows: int) -> Measured:
        sizes = sizes_at(op, rows)
        inputs = [_example(v, sizes) for v in op.operands]
        named = {s.name: size for s, size in sizes.items()}
        calls: list[Callable[[], object]] = []
        for region in op.regions:
            body = clone_region(region)
            function = Function("form", body, input_symbols(body.args))
            executable = self.backend.lower(function, self.store, self.options)
            calls.append(lambda run=executable.run: run(inputs, named))
        times, again = interleaved(calls)
        medians = tuple(1e6 * statistics.median(each) for each in times)
        ratios = [a / b for a, b in zip(again, times[0], strict=True)]
        noise = abs(statistics.median(ratios) - 1) + _spread(ratios)
        return Measured(rows, medians, noise)


def interleaved(calls: Sequence[Callable[[], object]]) -> tuple[list[list[float]], list[float]]:
    """Seconds of each call in turns, and of the first one once more in each round."""
    inner: list[int] = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        inner.append(max(1, round(_SHORTEST_SAMPLE / max(time.perf_counter() - start, 1e-7))))
    times: list[list[float]] = [[] for _ in calls]
    again: list[float] = []
    for _ in range(_ROUNDS):
        for call, count, own in zip((*calls, calls[0]), (*inner, inner[0]), (*times, again), strict=True):
            start = time.perf_counter()
            for _ in range(count):
                call()
            own.append((time.perf_counter() - start) / count)
    return times, again


def _spread(ratios: Sequence[float]) -> float:
    """The standard error of the median of ``ratios``, from the distance between their quartiles."""
    low, _, high = statistics.quantiles(ratios, n=4)
    return (high - low) / 1.35 * 1.25 / len(ratios) ** 0.5


def _example(value: Value, sizes: dict[Symbol, int]) -> Tensor:
    shape = [evaluate(d, sizes) for d in value.tensor.shape]
    return torch.full(shape, 0.5, dtype=TORCH_DTYPES[value.tensor.dtype.value])


_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min)?")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, None: 1.0}


def parse_budget(budget: str | float) -> float:
    """Seconds from ``"30s"``, ``"2m"``, ``"500ms"`` or a number of seconds.

    Raises:
        OptionError: it is none of these, or not positive.
    """
    seconds = 0.0
    if isinstance(budget, str):
        found = _BUDGET.fullmatch(budget.strip())
        seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    elif isinstance(budget, (int, float)) and not isinstance(budget, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        seconds = float(budget)
    if not seconds > 0:  # nan is not
        raise OptionError(
            "'budget' cannot be this",
            option="budget",
            value=repr(budget),
            expected="a positive time, such as '30s' or '2m'",
        )
    return seconds
