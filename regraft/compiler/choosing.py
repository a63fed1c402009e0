"""The pass that chooses forms, set up from a compile's options."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from regraft.backends import Backend, KernelTuning, LowerOptions
from regraft.compiler.choose import (
    ChooseForms,
    Executors,
    RooflineModel,
    Timetable,
    Tuner,
    TuningDatabase,
    load_profile,
    machine_name,
)
from regraft.compiler.materialise import Store
from regraft.errors import OptionError
from regraft.ir import Module, Op

Measuring = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Tuning:
    """What is measured while forms are chosen.

    Fields:
        budget: seconds to measure for; None measures nothing.
        rows: the numbers of rows to measure and to report where sizes vary; none leaves it to the tuner.
        told: hears how many measurements are done, and of how many.
        since: what was measured before is measured again, by ``time.time``.
        measuring: made and entered around all that is measured.
    """

    budget: float | None = None
    rows: tuple[int, ...] = ()
    told: Callable[[int, int], None] = lambda done, total: None
    since: float = 0.0
    measuring: Measuring = nullcontext


def choosing_pass(
    backends: Sequence[Backend],
    threads: int | None,
    tuning: Tuning,
    memory_limit: int | None,
    notes: list[str],
    *,
    for_file: bool = False,
) -> ChooseForms:
    """The pass for one compile. ``notes`` receives what the user should know, also while the pass runs."""
    folder = state_folder()
    databases = _databases(folder, backends, threads, tuning, notes)
    executors = Executors(backends, databases)
    timetable = Timetable(RooflineModel(load_profile(folder, threads)), executors.known)

    def tune(module: Module, ops: Sequence[Op]) -> None:
        if tuning.budget is not None:
            tuner = Tuner(
                executors, Store(module), LowerOptions(threads), tuning.budget, tuning.rows, tuning.told
            )
            with tuning.measuring():
                notes.extend(tuner.run(ops))

    return ChooseForms(timetable, memory_limit, prepare=tune, rows=tuning.rows, for_file=for_file)


def kernel_tuning(
    backends: Sequence[Backend], threads: int | None, tuning: Tuning, spent: float, notes: list[str]
) -> KernelTuning:
    """What back ends choose their own kernels by; ``spent`` seconds of the budget are gone already.

    Where several back ends are compared, that has half of the time.
    """
    databases = _databases(state_folder(), backends, threads, tuning, notes)
    share = 0.5 if len(backends) > 1 else 1.0
    deadline = None if tuning.budget is None else time.perf_counter() + share * (tuning.budget - spent)
    return KernelTuning(databases, deadline, tuning.rows, notes.append, bool(tuning.since), tuning.measuring)


def _databases(
    folder: Path | None, backends: Sequence[Backend], threads: int | None, tuning: Tuning, notes: list[str]
) -> dict[str, TuningDatabase]:
    """The tuning database for the times of each back end; none where none is kept."""
    database = open_database(folder, notes, needed=tuning.budget is not None, since=tuning.since)
    if database is None:
        return {}
    return {each.name: database.of(machine_name(threads, each.name)) for each in backends}


def state_folder() -> Path | None:
    """Where this machine's profile and tuning database are; None where there is no home for them."""
    given = os.environ.get("REGRAFT_CACHE_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "regraft"
    except RuntimeError:  # no home folder
        return None


def tuning_path(folder: Path | None) -> Path:
    """The file of the tuning database.

    Raises:
        OptionError: there is no folder for it.
    """
    if folder is None:
        raise OptionError("there is no folder for the tuning database; set REGRAFT_CACHE_DIR to one")
    return folder / "tuning.db"


def open_database(
    folder: Path | None, notes: list[str], *, needed: bool, since: float = 0.0
) -> TuningDatabase | None:
    """The tuning database; a compile that measures nothing goes on without one that cannot be read."""
    if not needed and (folder is None or not tuning_path(folder).exists()):
        return None
    try:
        database = TuningDatabase(tuning_path(folder), machine_name(), since)
    except OptionError as error:
        if needed:
            raise
        notes += [error.message] if error.message not in notes else []
        return None
    notes += database.notes
    return database
