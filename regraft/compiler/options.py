"""The options of a compile, checked once at the edge."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from regraft.backends import BUILTIN, Backend, KernelTuning, backend
from regraft.compiler.adapters import Adapters
from regraft.compiler.choose import ChooseForms, parse_budget, parse_size
from regraft.compiler.choosing import Measuring, Tuning, choosing_pass, kernel_tuning
from regraft.compiler.extensions import Extensions, checked_backend, refuse
from regraft.compiler.per_sample import PER_SAMPLE
from regraft.compiler.progress import Observer, unobserved
from regraft.errors import BackendError, OptionError, no_such
from regraft.ir import Exactness, OpTable, Pass, Rewrite
from regraft.plugins import Plugin

Fallback = Literal["error", "eager"]
Verify = bool | Literal["each"]
Tune = bool | Literal["again"]

AGAIN = "again"
"""The value of ``tune`` that measures what is known as well."""

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
    cache: bool | Path = False
    adapters: Adapters = field(default_factory=Adapters)
    max_trips: int | None = None
    batch: str | None = None
    rows: tuple[int, ...] = ()
    """Numbers of rows at which forms are measured and reported, besides those of a decision."""
    since: float = 0.0
    """What was measured before is measured again, by ``time.time``."""
    left_out: frozenset[str] = frozenset()
    """Names of rewrites that are not applied."""
    for_file: bool = False
    """Whether the result is a file, and not a model beside the original."""

    @property
    def approximates(self) -> bool:
        """Whether rewrites may change values beyond the order of operations."""
        return self.exactness.rank > Exactness.REASSOCIATES.rank

    def choosing(
        self,
        notes: list[str],
        told: Callable[[int, int], None] = lambda done, total: None,
        measuring: Measuring = nullcontext,
    ) -> ChooseForms:
        """The pass that chooses forms; what it has to say goes to ``notes``, how far it is to ``told``.

        What it measures is measured within ``measuring()``.
        """
        tuning = Tuning(self.budget, self.rows, told, self.since, measuring)
        return choosing_pass(
            self.backends, self.threads, tuning, self.memory_limit, notes, for_file=self.for_file
        )

    def kernel_tuning(
        self, spent: float, notes: list[str], measuring: Measuring = nullcontext
    ) -> KernelTuning:
        """What back ends choose their own kernels by, where ``spent`` seconds were measured before."""
        tuning = Tuning(self.budget, self.rows, since=self.since, measuring=measuring)
        return kernel_tuning(self.backends, self.threads, tuning, spent, notes)

    @staticmethod
    def checked(
        *,
        backends: Sequence[Any],
        fallback: Any,
        rewrites: Sequence[Any],
        passes: Sequence[Any],
        ops: Sequence[Any],
        plugins: Sequence[str | Plugin] = (),
        exactness: Any,
        verify: Any,
        dump: Any,
        threads: Any,
        progress: Any = None,
        tune: Any = False,
        budget: Any = None,
        memory_limit: Any = None,
        cache: Any = False,
        adapters: Any = None,
        max_trips: Any = None,
        batch: Any = None,
        rows: Sequence[int] = (),
        switched: bool = True,
    ) -> Options:
        """Options from a user's arguments; ``switched`` says that a call tells which of ``adapters`` applies.

        Raises:
            OptionError: one has a value it cannot have; the message names it.
            PluginError: a plug-in cannot be found or used.
            BackendError: no back end of the list is installed.
        """
        _require(fallback in ("error", "eager"), "fallback", fallback, "'error' or 'eager'")
        _require(isinstance(exactness, Exactness), "exactness", exactness, "an Exactness")
        _require(_is_one(verify, True, False, "each"), "verify", verify, "True, False or 'each'")
        _require(threads is None or (_is_int(threads) and threads > 0), "threads", threads, "a positive int")
        _require(progress is None or callable(progress), "progress", progress, "a function of one Progress")
        _require(_is_one(tune, True, False, AGAIN), "tune", tune, f"True, False or {AGAIN!r}")
        _require(dump is None or isinstance(dump, (str, Path)), "dump", dump, "a folder")
        _require(budget is None or tune, "budget", budget, "None, since 'tune' is not set")
        check_max_trips(max_trips)
        added = Extensions.of(plugins, rewrites, passes, ops)
        chosen, notes = _backends(backends, added.backends)
        return Options(
            chosen,
            (*notes, *_unread_lowerings(added.table, chosen)),
            fallback,
            added.rewrites,
            added.passes,
            added.table,
            exactness,
            verify,
            None if dump is None else Path(dump),
            threads,
            progress or unobserved,
            parse_budget(_DEFAULT_BUDGET if budget is None else budget) if tune else None,
            None if memory_limit is None else parse_size(memory_limit, "memory_limit"),
            _cache(cache),
            Adapters.checked(adapters),
            max_trips,
            _batch(batch, verify, adapters if switched else None),
            tuple(rows),
            time.time() if tune == AGAIN else 0.0,
        )


def check_max_trips(value: Any) -> None:
    """Refuse what is no bound for loops."""
    _require(value is None or (_is_int(value) and value > 0), "max_trips", value, "a positive int, or None")


def _is_int(value: Any) -> bool:
    """Whether ``value`` is a number: a bool is an int only to Python."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_one(value: Any, *known: Any) -> bool:
    """Whether ``value`` is one of ``known``: numbers and texts alone are compared, tensors cannot be."""
    return isinstance(value, (int, str)) and value in known


def _batch(value: Any, verify: Any, switched: Any) -> str | None:
    _require(value in (None, PER_SAMPLE), "batch", value, f"None or {PER_SAMPLE!r}")
    _require(value is None or verify != "each", "verify", verify, "True or False, since 'batch' is set")
    names = ", ".join(switched or ())
    _require(value is None or not switched, "adapters", names, "None, since 'batch' is set")
    return value


def _cache(value: Any) -> bool | Path:
    if isinstance(value, bool):
        return value
    _require(isinstance(value, (str, Path)) and str(value) != "", "cache", value, "True, False or a folder")
    path = Path(value)
    _require(path.is_dir() or not path.exists(), "cache", value, "a folder")
    return path


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        refuse(name, value, expected)


def _backends(
    wanted: Sequence[Any], added: Mapping[str, Backend]
) -> tuple[tuple[Backend, ...], tuple[str, ...]]:
    """The back ends that are installed, in order; a note for each that is not. ``added`` are of plug-ins."""
    names = ", ".join(sorted({*BUILTIN, *added}))
    if isinstance(wanted, str) or not isinstance(wanted, Collection) or not len(wanted):  # pyright: ignore[reportUnnecessaryIsInstance]
        refuse("backends", wanted, f"a list of back ends, of: {names}")
    chosen: list[Backend] = []
    notes: list[str] = []
    for entry in wanted:
        if not isinstance(entry, str):
            chosen.append(checked_backend(entry))
            continue
        if entry in added:
            chosen.append(added[entry])
            continue
        if entry not in BUILTIN:
            raise OptionError(f"backends: {no_such('back end', entry, (*BUILTIN, *added))}")
        try:
            chosen.append(backend(entry))
        except BackendError as error:
            notes.append(f"{error.message}; left out")
    if not chosen:
        raise BackendError("none of the back ends asked for is installed: " + "; ".join(notes))
    repeated = [b.name for i, b in enumerate(chosen) if b.name in {each.name for each in chosen[:i]}]
    _require(not repeated, "backends", wanted, f"each name once; '{''.join(repeated[:1])}' is there twice")
    return tuple(chosen), tuple(notes)


def _unread_lowerings(table: OpTable, chosen: Sequence[Backend]) -> list[str]:
    """A note for each lowering of a user's op whose back end nobody here is: its name may be misspelt."""
    known = {*BUILTIN, *(backend.name for backend in chosen)}
    return [
        f"{op.name} has a lowering for '{name}', which is no back end here"
        for op in table.values()
        for name in op.lowerings
        if name not in known
    ]
