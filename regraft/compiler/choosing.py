"""The pass that chooses forms, set up from a compile's options."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from regraft.backends import Backend, LowerOptions
from regraft.compiler.choose import (
    ChooseForms,
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


def choosing_pass(
    backends: Sequence[Backend],
    threads: int | None,
    budget: float | None,
    memory_limit: int | None,
    notes: list[str],
) -> ChooseForms:
    """The pass for one compile; ``budget`` is in seconds, None to measure nothing.

    ``notes`` receives what the user should know, also while the pass runs.
    """
    folder = state_folder()
    machine = machine_name(threads, backends[0].name)
    database = _database(folder, machine, notes, needed=budget is not None)
    timetable = Timetable(RooflineModel(load_profile(folder, threads)), database)

    def tune(module: Module, ops: Sequence[Op]) -> None:
        if budget is None or database is None:
            return
        tuner = Tuner(backends[0], Store(module), LowerOptions(threads), database, budget)
        note = tuner.run(ops)
        notes.extend([note] if note else [])

    return ChooseForms(timetable, memory_limit, prepare=tune)


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


def _database(folder: Path | None, machine: str, notes: list[str], *, needed: bool) -> TuningDatabase | None:
    """The tuning database; a compile that measures nothing goes on without one that cannot be read."""
    if folder is None:
        if needed:
            raise OptionError("there is no folder for the tuning database; set REGRAFT_CACHE_DIR to one")
        return None
    path = folder / "tuning.db"
    if not needed and not path.exists():
        return None
    try:
        database = TuningDatabase(path, machine)
    except OptionError as error:
        if needed:
            raise
        notes.append(error.message)
        return None
    notes += database.notes
    return database
