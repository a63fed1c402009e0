"""Measuring the forms of an ``rg.alt`` on the executor that will run them.

Forms take turns (A B A B), and the reference runs once more in each round: how far it is from itself is the
noise, and a form that is not faster by more than that does not replace the reference.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from regraft.backends import Backend, ConstantStore, LowerOptions
from regraft.compiler.choose.database import TuningDatabase
from regraft.compiler.choose.decide import Times, grid, signature, sizes_at, within
from regraft.compiler.choose.model import RooflineModel
from regraft.compiler.owners import told
from regraft.compiler.partition import refusal
from regraft.ir import Function, Op, Symbol, Trait, Value, clone_region, evaluate, input_symbols
from regraft.runtime import TORCH_DTYPES, Executable
from regraft.timing import Measured, interpolated, noise_of, unmeasured

_ROUNDS = 15
#: A measurement noisier than this is taken again, a few times; the least noisy one counts.
_QUIET = 0.02
_ATTEMPTS = 4
#: Measured numbers of rows where sizes vary: every second power of two up to here.
_MOST_TUNED_ROWS = 1024
#: A sample of a call faster than this is of many calls.
_SHORTEST_SAMPLE = 200e-6
_ALL_KNOWN = (
    'no form was measured, since the times of all are known; tune="again" (tune --again) measures them anew'
)


@dataclass(frozen=True)
class Executors:
    """The back ends of a compile in order of preference, and the times that were measured on each.

    ``databases`` has a database for each back end by name; it is empty where none is kept.
    """

    backends: Sequence[Backend]
    databases: Mapping[str, TuningDatabase] = field(default_factory=dict[str, TuningDatabase])

    def of(self, op: Op) -> Backend | None:
        """The first back end that takes all of every form of ``op``: its forms are timed there."""
        ops = [inner for region in op.regions for inner in region.walk() if not _is_free(inner)]
        takes = (b for b in self.backends if all(refusal(b, inner) is None for inner in ops))
        return next(takes, None)

    def known(self, op: Op) -> list[Measured]:
        """What was measured of ``op`` where it is timed, by increasing rows."""
        backend = self.of(op) if self.databases else None
        if backend is None:
            return []
        return self.databases[backend.name].lookup(signature(op), op.attr("forms"))


def _is_free(op: Op) -> bool:
    return op.has(Trait.TERMINATOR) or op.has(Trait.CONSTANT_LIKE)


@dataclass
class Timetable:
    """Times of forms: measured where ``known`` has them, else estimated.

    An estimate is corrected by what was measured of the same computation at other numbers of rows.
    """

    model: RooflineModel
    known: Callable[[Op], Sequence[Measured]] = lambda op: ()
    _found: dict[str, Sequence[Measured]] = field(default_factory=dict[str, Sequence[Measured]])

    def __call__(self, op: Op, rows: int) -> Times:
        estimate = self._estimate(op, rows)
        known = self._lookup(op)
        exact = interpolated(known, rows)
        if exact is not None:
            return Times(exact.us, _around(known, rows), exact.noise, estimate)
        if not known:
            return Times(estimate, estimated=estimate)
        nearest = min(known, key=lambda m: abs(m.rows - rows))
        at_nearest = self._estimate(op, nearest.rows)
        factors = [m / e for m, e in zip(nearest.us, at_nearest, strict=True)]
        us = tuple(e * f for e, f in zip(estimate, factors, strict=True))
        return Times(us, (nearest.rows,), nearest.noise, estimate)

    def _lookup(self, op: Op) -> Sequence[Measured]:
        key = signature(op)
        if key not in self._found:
            self._found[key] = self.known(op)
        return self._found[key]

    def _estimate(self, op: Op, rows: int) -> tuple[float, ...]:
        sizes = sizes_at(op, rows)
        return tuple(self.model.region(region, sizes).us for region in op.regions)


def _around(known: Sequence[Measured], rows: int) -> tuple[int, ...]:
    """The measured numbers of rows next to ``rows`` on both sides, or just that one."""
    below, above = max(m.rows for m in known if m.rows <= rows), min(m.rows for m in known if m.rows >= rows)
    return tuple(dict.fromkeys((below, above)))


@dataclass
class _Again:
    """How measurements that were taken again agree with the earlier ones on how forms compare.

    ``factors`` has for each by what factor they do not, 1 within their noise.
    """

    factors: list[float] = field(default_factory=list[float])

    def add(self, old: Measured | None, new: Measured) -> None:
        """Note ``new``, which takes the place of ``old``."""
        if old is None:
            return
        ratios = [(b / new.us[0]) / (a / old.us[0]) for a, b in zip(old.us, new.us, strict=True)]
        most = max(max(ratio, 1 / ratio) for ratio in ratios)
        self.factors.append(most if most > 1 + old.noise + new.noise else 1.0)

    def notes(self) -> list[str]:
        """What there is to say of them."""
        if not self.factors:
            return []
        off = [factor for factor in self.factors if factor > 1]
        told = f"{len(self.factors)} of the measurements were taken again"
        if not off:
            return [f"{told} and agree with the earlier ones"]
        return [f"{told}; by {len(off)} of them forms compare otherwise, by a factor of up to {max(off):.2f}"]


@dataclass
class Tuner:
    """Measures what the databases lack, or has to be measured again, within a budget of seconds.

    Fields:
        rows: the numbers of rows to measure at where sizes vary; some powers of two when there are none.
        told: hears how many measurements are done, and of how many.
    """

    executors: Executors
    store: ConstantStore
    options: LowerOptions
    budget: float
    rows: Sequence[int] = ()
    told: Callable[[int, int], None] = lambda done, total: None

    def run(self, ops: Sequence[Op]) -> list[str]:
        """Measure each computation once, and keep each time at once; what there is to say of it."""
        unlike = {signature(op): op for op in ops}
        taken = {key: (op, b) for key, op in unlike.items() if (b := self.executors.of(op)) is not None}
        notes = [
            f"not measured, since no back end takes all its forms: {told(op.loc)}"
            for key, op in unlike.items()
            if key not in taken
        ]
        missing = self._oldest_first(taken)
        total, done, again = sum(map(len, missing.values())), 0, _Again()
        deadline = time.perf_counter() + self.budget
        self.told(done, total)
        if taken and not total:
            notes.append(_ALL_KNOWN)
        for key, counts in missing.items():
            op, backend = taken[key]
            database, forms = self.executors.databases[backend.name], op.attr("forms")
            before = {each.rows: each for each in database.lookup(key, forms)}
            lowered: list[Executable] | None = None
            for rows in counts:
                if time.perf_counter() >= deadline:
                    return [*notes, *again.notes(), self._over(done, total, database)]
                lowered = lowered or self._lowered(op, backend)
                found = self._measure(op, lowered, rows)
                database.record(key, forms, found)
                again.add(before.get(rows), found)
                done += 1
                self.told(done, total)
        return [*notes, *again.notes()]

    def _over(self, done: int, total: int, database: TuningDatabase) -> str:
        spent = f"the budget of {self.budget:g} s sufficed for {done} of {total} measurements"
        return f"{spent}; {unmeasured(again=bool(database.since))}"

    def _oldest_first(self, taken: Mapping[str, tuple[Op, Backend]]) -> dict[str, list[int]]:
        """The numbers of rows to measure of each computation: those never measured first, then the oldest.

        So a few small budgets measure everything again.
        """
        found: dict[str, list[tuple[float, int]]] = {}
        for key, (op, backend) in taken.items():
            written = self.executors.databases[backend.name].written(key)
            found[key] = sorted((written.get(rows, 0.0), rows) for rows in self._missing(op, backend))
        order = sorted(found, key=lambda key: [age for age, _ in found[key][:1]])
        return {key: [rows for _, rows in found[key]] for key in order}

    def _missing(self, op: Op, backend: Backend) -> list[int]:
        rows = op.site.dim_attr("rows")
        wanted = within(rows, self.rows) if self.rows else grid(rows)
        if isinstance(rows, int):
            wanted = [rows]
        elif not self.rows:
            wanted = [r for r in wanted if r <= _MOST_TUNED_ROWS][::2] or wanted[:1]
        known = self.executors.databases[backend.name].recent.lookup(signature(op), op.attr("forms"))
        return [r for r in wanted if r not in {m.rows for m in known}]

    def _lowered(self, op: Op, backend: Backend) -> list[Executable]:
        bodies = [clone_region(region) for region in op.regions]
        functions = [Function("form", body, input_symbols(body.args)) for body in bodies]
        return [backend.lower(function, self.store, self.options) for function in functions]

    def _measure(self, op: Op, forms: Sequence[Executable], rows: int) -> Measured:
        sizes = sizes_at(op, rows)
        inputs = [_example(v, sizes) for v in op.operands]
        named = {s.name: size for s, size in sizes.items()}
        calls = [partial(form.run, inputs, named) for form in forms]
        return measured(rows, calls, threads=self.options.threads)


def measured(
    rows: int,
    calls: Sequence[Callable[[], object]],
    deadline: float = float("inf"),
    threads: int | None = None,
) -> Measured:
    """The times of ``calls`` in turns, taken again while they are noisy and the clock is not at ``deadline``.

    The least noisy of a few measurements counts. Calls of one thread are timed by what they take of a core,
    which nobody else on the machine disturbs.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    taken: list[Measured] = []
    while not taken or (
        taken[-1].noise > _QUIET and len(taken) < _ATTEMPTS and time.perf_counter() < deadline
    ):
        times, again = interleaved(calls, clock)
        medians = tuple(1e6 * statistics.median(each) for each in times)
        noise = noise_of([a / b for a, b in zip(again, times[0], strict=True)])
        taken.append(Measured(rows, medians, noise))
    return min(taken, key=lambda each: each.noise)


def interleaved(
    calls: Sequence[Callable[[], object]], clock: Callable[[], float]
) -> tuple[list[list[float]], list[float]]:
    """Seconds of each call by ``clock``, in turns, and of the first one once more in each round.

    Each runs once untimed before its sample: what another one left in caches is then gone.
    """
    inner: list[int] = []
    for call in calls:
        call()
        start = clock()
        call()
        inner.append(max(1, round(_SHORTEST_SAMPLE / max(clock() - start, 1e-7))))
    times: list[list[float]] = [[] for _ in calls]
    again: list[float] = []
    for _ in range(_ROUNDS):
        for call, count, own in zip((*calls, calls[0]), (*inner, inner[0]), (*times, again), strict=True):
            call()
            start = clock()
            for _ in range(count):
                call()
            own.append((clock() - start) / count)
    return times, again


def _example(value: Value, sizes: dict[Symbol, int]) -> Tensor:
    shape = [evaluate(d, sizes) for d in value.tensor.shape]
    return torch.full(shape, 0.5, dtype=TORCH_DTYPES[value.tensor.dtype.value])
