"""The options of a compile, checked once at the edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from regraft.backends import BUILTIN, Backend, backend
from regraft.compiler.choose import ChooseForms, parse_budget
from regraft.compiler.choosing import choosing_pass
from regraft.compiler.progress import Observer, unobserved
from regraft.errors import BackendError, OptionError, no_such
from regraft.ir import OPS, STAGES, Exactness, OpDef, OpTable, Pass, Rewrite

Fallback = Literal["error", "eager"]
Verify = bool | Literal["each"]

_DEFAULT_BUDGET = "30s"


@dataclass(frozen=True)
class Options:
    """What a user asked for; see ``regraft.compile`` for the fields."""

    backends: tuple[Backend, ...]
    notes: tuple[str, ...]
    fallback: Fallback
    rewrites: tuple[Rewrite, ...]
    passes: tuple[Pass, ...]
    table: OpTable
    exactness: Exactness
    verify: Verify
    dump: Path | None
    threads: int | None
    progress: Observer = unobserved
    budget: float | None = None
    memory_limit: int | None = None

    def choosing(self, notes: list[str]) -> ChooseForms:
        """The pass that chooses forms; what it has to say goes to ``notes``."""
        return choosing_pass(self.backends, self.threads, self.budget, self.memory_limit, notes)

    @staticmethod
    def checked(
        *,
        backends: Sequence[Any],
        fallback: Any,
        rewrites: Sequence[Any],
        passes: Sequence[Any],
        ops: Sequence[Any],
        exactness: Any,
        verify: Any,
        dump: Any,
        threads: Any,
        progress: Any = None,
        tune: Any = False,
        budget: Any = None,
        memory_limit: Any = None,
    ) -> Options:
        """Options from a user's arguments.

        Raises:
            OptionError: one has a value it cannot have; the message names it.
            BackendError: no back end of the list is installed.
        """
        _require(fallback in ("error", "eager"), "fallback", fallback, "'error' or 'eager'")
        _require(isinstance(exactness, Exactness), "exactness", exactness, "an Exactness")
        _require(verify in (True, False, "each"), "verify", verify, "True, False or 'each'")
        _require(
            threads is None or (isinstance(threads, int) and threads > 0),
            "threads",
            threads,
            "a positive int",
        )
        _require(progress is None or callable(progress), "progress", progress, "a function of one Progress")
        _require(tune in (True, False), "tune", tune, "True or False")
        _require(budget is None or tune, "budget", budget, "None, since 'tune' is not set")
        _require(
            memory_limit is None or (isinstance(memory_limit, int) and memory_limit >= 0),
            "memory_limit",
            memory_limit,
            "a number of bytes, or None",
        )
        for op in ops:
            _require(isinstance(op, OpDef), "ops", op, "OpDefs")
        chosen, notes = _backends(backends)
        return Options(
            chosen,
            notes,
            fallback,
            tuple(_rewrite(r) for r in rewrites),
            tuple(_staged(entry) for entry in passes),
            OPS.extended(tuple(ops)) if ops else OPS,
            exactness,
            verify,
            None if dump is None else Path(dump),
            threads,
            progress or unobserved,
            parse_budget(_DEFAULT_BUDGET if budget is None else budget) if tune else None,
            memory_limit,
        )


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        _refuse(name, value, expected)


def _refuse(name: str, value: Any, expected: str) -> NoReturn:
    raise OptionError(f"'{name}' cannot be this", option=name, value=repr(value), expected=expected)


def _backends(wanted: Sequence[Any]) -> tuple[tuple[Backend, ...], tuple[str, ...]]:
    """The back ends that are installed, in order; a note for each that is not."""
    if isinstance(wanted, str) or not wanted:
        _refuse("backends", wanted, f"a list of back ends, of: {', '.join(sorted(BUILTIN))}")
    chosen: list[Backend] = []
    notes: list[str] = []
    for entry in wanted:
        if not isinstance(entry, str):
            _require(
                hasattr(entry, "supports") and hasattr(entry, "lower"), "backends", entry, "names or Backends"
            )
            chosen.append(entry)
            continue
        if entry not in BUILTIN:
            raise OptionError(f"backends: {no_such('back end', entry, BUILTIN)}")
        try:
            chosen.append(backend(entry))
        except BackendError as error:
            notes.append(f"{error.message}; left out")
    if not chosen:
        raise BackendError("none of the back ends asked for is installed: " + "; ".join(notes))
    return tuple(chosen), tuple(notes)


def _rewrite(entry: Any) -> Rewrite:
    if isinstance(entry, type) and issubclass(entry, Rewrite):
        return _rewrite(entry())
    if not isinstance(entry, Rewrite):
        _refuse("rewrites", entry, "Rewrite classes or instances")
    if entry.stage not in STAGES[:-1]:
        _refuse(f"rewrites: {entry.name}.stage", entry.stage, f"one of: {', '.join(STAGES[:-1])}")
    for method in ("pattern", "rewrite"):
        if getattr(type(entry), method, None) in (None, getattr(Rewrite, method, None)):
            _refuse(f"rewrites: {entry.name}", entry, f"a class with a method '{method}'")
    return entry


class _Staged:
    """A user's pass, in the stage the user gave."""

    def __init__(self, stage: str, inner: Pass) -> None:
        self.name = inner.name
        self.stage = stage
        self.after = getattr(inner, "after", ())
        self.before = getattr(inner, "before", ())
        self.run = inner.run


def _staged(entry: Any) -> Pass:
    try:
        stage, inner = entry
    except (TypeError, ValueError):
        _refuse("passes", entry, "pairs (stage, Pass)")
    _require(stage in STAGES, "passes", stage, f"a stage: {', '.join(STAGES)}")
    _require(
        hasattr(inner, "name") and hasattr(inner, "run"), "passes", inner, "a Pass with a name and run()"
    )
    return _Staged(stage, inner)
