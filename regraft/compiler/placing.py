"""Giving parts of a function to back ends by measured cost: what ``tune=True`` measures, and its later use.

Sections are timed alone on each back end; what they cost together suggests a mixed plan; the whole plans are
timed in turns, and the best one is kept. Without ``tune`` what was measured before is looked up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from regraft.backends import Backend, ConstantStore, LowerOptions, backend
from regraft.compiler.choose import Choice, TuningDatabase, machine_name
from regraft.compiler.choose.placement import (
    Kind,
    Layout,
    Picks,
    Prices,
    alternatives,
    choice_of_whole,
    choices_of_kinds,
)
from regraft.compiler.choose.tune import measured
from regraft.compiler.choosing import open_database, state_folder
from regraft.compiler.options import Options
from regraft.compiler.partition import Assignment, Piece, lower_piece, piece_of
from regraft.compiler.trial import same_draws, to_double
from regraft.errors import BackendError, NumericsMismatch
from regraft.ir import OPS, Builder, DType, Function, Region, TensorType, Value
from regraft.numerics import assert_close
from regraft.runtime import Executable, Plan
from regraft.timing import Measured, unmeasured

#: Under this name the database has what a call of each back end costs.
_CALL = "call"
#: Times of whole plans stand under this number of rows: their signature has all sizes.
_WHOLE = 1


@dataclass(frozen=True)
class Placed:
    """What was decided.

    Fields:
        picks: the back end of each kind of section.
        choices: for the report; none where nothing was measured.
        plan: the chosen plan, where it was made to be timed.
    """

    picks: Picks
    choices: tuple[Choice, ...] = ()
    plan: Plan | None = None


@dataclass(frozen=True)
class Budget:
    """What there is to measure for.

    Fields:
        seconds: as the user gave it, for what is said.
        deadline: when nothing more is begun, by ``time.perf_counter``.
    """

    seconds: float
    deadline: float

    @staticmethod
    def after(spent: float, seconds: float) -> Budget:
        """What is left now of ``seconds``, of which ``spent`` are gone."""
        return Budget(seconds, time.perf_counter() + seconds - spent)

    @property
    def is_over(self) -> bool:
        return time.perf_counter() >= self.deadline


@dataclass(frozen=True)
class Bench:
    """What it takes to run a function and parts of it.

    Fields:
        plan_of: the plan of an assignment.
        inputs: the tensors of an example, those of the state after them.
        sizes: the values of all symbols.
        told: hears how many measurements are done, and of how many.
    """

    store: ConstantStore
    options: LowerOptions
    plan_of: Callable[[Assignment], Plan]
    inputs: Sequence[Tensor]
    sizes: Mapping[str, int]
    told: Callable[[int, int], None]


def place(
    layout: Layout,
    database: TuningDatabase | None,
    budget: Budget | None,
    bench: Bench | None,
    notes: list[str],
) -> Placed:
    """What is measured on ``bench`` within ``budget``, or was before, where there is no budget.

    There is no bench where there is no example, and no database where nothing was kept and nothing is to be.
    ``notes`` receives what there is to say.

    Raises:
        BackendError: a plan is to be measured, and that of the list's order cannot be made.
    """
    if database is None or not layout.kinds:
        return Placed(layout.in_order)
    if budget is None:
        return looked_up(layout, database)
    if bench is None:
        notes.append("nothing was measured to choose back ends by, since there are no example arguments")
        return looked_up(layout, database)
    return Placer(layout, database, bench, budget, notes).run()


def comparisons(options: Options, notes: list[str]) -> TuningDatabase | None:
    """The database of times that compare the back ends of a compile; None where there is none."""
    needed = options.budget is not None
    database = open_database(state_folder(), notes, needed=needed, since=options.since)
    return None if database is None else database.of(comparison_name(options))


def comparison_name(options: Options) -> str:
    """What times that compare the back ends of a compile hold for, whatever the order of the list."""
    return machine_name(options.threads, "+".join(sorted(backend.name for backend in options.backends)))


def looked_up(layout: Layout, database: TuningDatabase) -> Placed:
    """What earlier measurements of the same function decide; without any, the order of the list.

    They decide among the plans that they have: one that could not be made, or gave other values, is none of
    them.
    """
    prices = known_prices(layout, database)
    recorded = database.latest(layout.signature).get(_WHOLE, {})
    first, *others = alternatives(layout, prices)
    plans = [first, *(picks for picks in others if layout.form(picks) in recorded)]
    if layout.form(first) not in recorded:
        return Placed(layout.in_order)
    us, noise = zip(*(recorded[layout.form(picks)] for picks in plans), strict=True)
    return _chosen(layout, plans, Measured(_WHOLE, us, max(noise)), prices)


def known_prices(layout: Layout, database: TuningDatabase) -> Prices | None:
    """The prices that were measured; None while it is not known what a call costs."""
    call = database.lookup(_CALL, layout.names)
    if not call:
        return None
    found = {kind.signature: database.lookup(kind.signature, layout.names) for kind in layout.kinds}
    return Prices({key: each[0] for key, each in found.items() if each}, call[0].us)


def _chosen(
    layout: Layout,
    plans: Sequence[Picks],
    times: Measured,
    prices: Prices | None,
    made: Mapping[Picks, Plan] | None = None,
) -> Placed:
    picks, whole = choice_of_whole(layout, plans, times)
    choices = (whole, *choices_of_kinds(layout, picks, prices))
    return Placed(picks, choices, None if made is None else made[picks])


@dataclass
class Placer:
    """Measures what the database lacks, and decides.

    Fields:
        notes: receives what there is to say.
    """

    layout: Layout
    database: TuningDatabase
    bench: Bench
    budget: Budget
    notes: list[str]

    def run(self) -> Placed:
        """The decision, its measurements kept.

        Raises:
            BackendError: the plan that the order of the list asks for cannot be made.
        """
        with torch.no_grad(), same_draws():
            self._measure_sections()
            if self.budget.is_over:
                return self._unmeasured()
            prices = known_prices(self.layout, self.database)
            plans = self._made(alternatives(self.layout, prices))
            calls = [partial(self._run, plan) for plan in plans.values()]
            times = measured(_WHOLE, calls, self.budget.deadline, self.bench.options.threads)
            self.database.record(self.layout.signature, [self.layout.form(p) for p in plans], times)
        return _chosen(self.layout, list(plans), times, prices, plans)

    def _unmeasured(self) -> Placed:
        """The decision without whole plans of this run: as a compile that measures nothing would have it."""
        placed = looked_up(self.layout, self.database)
        stands = "as measured before" if placed.choices else "in the order of the list"
        text = f"the budget of {self.budget.seconds:g} s did not suffice to measure whole plans"
        self.notes.append(f"{text}: back ends are {stands}")
        return placed

    # -- sections --------------------------------------------------------------------------------

    def _measure_sections(self) -> None:
        """Time each kind that the database lacks, the oldest and then those of most estimated time first."""
        known = self.database.recent
        if not known.lookup(_CALL, self.layout.names):
            self._record(_CALL, 1, [_smallest(each) for each in self.layout.backends], [torch.ones(1)])
        missing = [k for k in self.layout.kinds if not known.lookup(k.signature, self.layout.names)]
        missing.sort(key=self._urgency)
        values = self._values_of(missing)
        for done, kind in enumerate(missing):
            self.bench.told(done, len(missing))
            if self.budget.is_over:
                text = (
                    f"the budget of {self.budget.seconds:g} s sufficed for {done} of {len(missing)} sections"
                )
                self.notes.append(f"{text}; {unmeasured(again=bool(self.database.since))}")
                return
            pieces = [self._piece(each, kind) for each in self.layout.backends]
            self._record(kind.signature, kind.rows, pieces, [values[v] for v in pieces[0].inputs])
        self.bench.told(len(missing), len(missing))

    def _urgency(self, kind: Kind) -> tuple[float, float]:
        """Less for what is to be measured first."""
        written = self.database.written(kind.signature)
        return min(written.values(), default=0.0), -kind.estimated * len(kind.sections)

    def _piece(self, backend: Backend, kind: Kind) -> Piece:
        function = self.layout.function
        return piece_of(function, backend, kind.sections[0].ops, set(function.results))

    def _record(self, key: str, rows: int, pieces: Sequence[Piece], inputs: Sequence[Tensor]) -> None:
        try:
            calls = [
                self._call(lower_piece(piece, self.bench.store, self.bench.options), inputs)
                for piece in pieces
            ]
            times = measured(rows, calls, self.budget.deadline, self.bench.options.threads)
            self.database.record(key, self.layout.names, times)
        except BackendError as error:
            self.notes.append(f"not measured, a section of {pieces[0].ops} ops: {error.message}")

    def _call(self, executable: Executable, inputs: Sequence[Tensor]) -> Callable[[], object]:
        return lambda: executable.run(inputs, self.bench.sizes)

    def _values_of(self, kinds: Sequence[Kind]) -> dict[Value, Tensor]:
        """What the first section of each kind reads when the function is called with the example."""
        eager, function = backend("eager"), self.layout.function
        read = {value for kind in kinds for value in self._piece(eager, kind).inputs}
        ops = list(self.layout.preferred.backend)
        piece = piece_of(function, eager, ops, read | set(function.results))
        known = dict(zip(function.args, self.bench.inputs, strict=True))
        executable = lower_piece(piece, self.bench.store, LowerOptions())
        made = executable.run([known[value] for value in piece.inputs], self.bench.sizes)
        return known | dict(zip(piece.results, made, strict=True))

    # -- wholes ----------------------------------------------------------------------------------

    def _made(self, picked: Sequence[Picks]) -> dict[Picks, Plan]:
        """The plans that can be made and agree with the first one, which the list asks for."""
        first, *others = picked
        made = {first: self.bench.plan_of(self.layout.assigned(first))}
        expected = [to_double(result) for result in self._results(made[first])]
        for picks in others:
            try:
                plan = self.bench.plan_of(self.layout.assigned(picks))
                assert_close(self._results(plan), expected)
            except (BackendError, NumericsMismatch) as error:
                self.notes.append(f"left out, the plan '{self.layout.form(picks)}': {error.message}")
            else:
                made[picks] = plan
        return made

    def _results(self, plan: Plan) -> list[Tensor]:
        with same_draws():
            return self._run(plan)

    def _run(self, plan: Plan) -> list[Tensor]:
        return plan.run(self.bench.inputs, self.bench.sizes)


def _smallest(backend: Backend) -> Piece:
    """A piece that does next to nothing."""
    region = Region([TensorType(DType.F32, (1,))])
    builder = Builder(OPS, region)
    result = builder.aten.abs(region.args[0])
    builder.create("cf.yield", ((result,),))
    return Piece(backend, Function("smallest", region), (region.args[0],), (result,), 1)
