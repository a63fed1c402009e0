"""Measuring the forms of a model's computations and telling what was chosen: ``regraft tune``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.backends import Backend
from regraft.compiler.api import prepared
from regraft.compiler.arguments import checks_names
from regraft.compiler.choose import Choice, TuningDatabase, machine_name
from regraft.compiler.choosing import state_folder, tuning_path
from regraft.compiler.extensions import refuse
from regraft.compiler.options import AGAIN, Options
from regraft.compiler.placing import comparison_name
from regraft.compiler.progress import Observer, Phases
from regraft.ir import Exactness, Leaf, Rewrite
from regraft.runtime import choice_view


@dataclass(frozen=True)
class TuneReport:
    """What was measured and chosen.

    Fields:
        choices: one for each computation that has several forms, in the order of the graph.
        kernels: of each kernel that its back end has several of, which one it takes, and its times.
        constants: bytes of the model's own constants.
        notes: what the user should know, such as a budget that did not suffice.
        machine: what the times hold for: back end, CPU, threads and versions.
        database: the file that keeps them.
        tokens: the numbers of rows that were asked for; none when that was left open.
    """

    choices: tuple[Choice, ...]
    kernels: tuple[dict[str, Any], ...]
    constants: int
    notes: tuple[str, ...]
    machine: str
    database: str
    tokens: tuple[int, ...] = ()

    def rows_of(self, choice: Choice) -> list[int]:
        """The numbers of rows to show: those asked for, else those measured, else all that were looked at."""
        asked = [count for count in choice.times if count in self.tokens]
        return asked or list(choice.measured_at) or list(choice.times)

    def unlike(self) -> list[list[Choice]]:
        """The choices, those that were made alike together."""
        found: dict[tuple[Any, ...], list[Choice]] = {}
        for choice in self.choices:
            key = (choice.signature, choice.rows, choice.cuts, choice.order, choice.reason)
            found.setdefault(key, []).append(choice)
        return list(found.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "choices": [{**choice.to_dict(), "text": str(choice)} for choice in self.choices],
            "kernels": list(self.kernels),
            "constants": self.constants,
            "extra_bytes": sum(choice.extra_bytes for choice in self.choices),
            "notes": list(self.notes),
            "machine": self.machine,
            "database": self.database,
        }

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*self._parts())

    def _parts(self) -> Iterator[Any]:
        if not self.choices and not self.kernels:
            yield "nothing to choose: no computation of this model has several forms or kernels"
        for same in self.unlike():
            yield from map(choice_view.hanging, choice_view.headline([each.to_dict() for each in same]))
            yield _table(same[0], self.rows_of(same[0]))
            yield ""
        if self.choices:
            extra = sum(choice.extra_bytes for choice in self.choices)
            yield f"memory   {extra / 1e6:.1f} MB beside the model's own {self.constants / 1e6:.1f} MB"
        yield from (f"kernel   {kernel['text']}" for kernel in self.kernels)
        if self.choices or self.kernels:
            yield f"kept in  {self.database}"
        yield from (f"note: {note}" for note in self.notes)


def _table(choice: Choice, shown: Sequence[int]) -> Any:
    """Times by rows, the estimate beside what was measured, where they come from, what runs and why."""
    from rich.padding import Padding
    from rich.table import Table

    content = choice.to_dict()
    forms = (f"{form}, us" for form in choice.forms)
    table = Table("rows", *forms, "times", "runs", "why", box=None, pad_edge=False)
    for rows in shown:
        cells = [f"{us:.1f}" for us in choice.times[rows]]
        if choice.based_on.get(rows):
            estimates = choice.estimated.get(rows) or [None] * len(cells)
            cells = [_beside(cell, us) for cell, us in zip(cells, estimates, strict=True)]
        origin, runs = choice_view.source(content, str(rows)), choice.forms[choice.form_at(rows)]
        table.add_row(str(rows) if choice.rows else "all", *cells, origin, runs, choice.why.get(rows, ""))
    return Padding(table, (0, 0, 0, 2), expand=False)


def _beside(measured: str, estimate: float | None) -> str:
    return measured if estimate is None else f"{measured} (estimated {estimate:.1f})"


@checks_names
def tune(
    model: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    backends: Sequence[str | Backend] = ("ort",),
    rewrites: Sequence[Rewrite | type[Rewrite]] = (),
    exactness: Exactness = Exactness.REASSOCIATES,
    threads: int | None = None,
    budget: str | float = "30s",
    memory_limit: int | str | None = None,
    tokens: Sequence[int] = (),
    again: bool = False,
    progress: Observer | None = None,
) -> TuneReport:
    """Measure the forms of a model's computations that have several, and keep the times for later compiles.

    Each time is kept as soon as it is measured: a run that is ended goes on later from where it was.

    Args:
        tokens: the numbers of rows to measure at and to report, where sizes vary; by default powers of two.
        again: measure what is known as well; the new times take the place of the earlier ones.
        The others are those of ``regraft.compile``.

    Raises:
        The errors of ``regraft.compile`` up to its back ends.
    """
    for count in tokens:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            refuse("tokens", count, "numbers of rows from 1 on")
    options = Options.checked(
        backends=backends,
        fallback="eager",
        rewrites=rewrites,
        passes=(),
        ops=(),
        exactness=exactness,
        verify=False,
        dump=None,
        threads=threads,
        progress=progress,
        tune=AGAIN if again else True,
        budget=budget,
        memory_limit=memory_limit,
        rows=tokens,
    )
    phases = Phases(options.progress)
    _, compilation, store = prepared(model, args, kwargs, dynamic_shapes, options, phases)
    constants = [c for c in compilation.module.constants() if isinstance(c, Leaf)]
    report, machine = compilation.report, machine_name(threads, options.backends[0].name)
    if len(options.backends) > 1 or any(getattr(each, "tunes_kernels", False) for each in options.backends):
        compilation.lower(store)
    path = tuning_path(state_folder())
    return TuneReport(
        tuple(report.choices),
        tuple(report.kernels),
        sum(leaf.storage.nbytes for leaf in constants),
        (*report.notes, *_remarks(report.choices, tokens, path, options)),
        machine,
        str(path),
        tuple(tokens),
    )


def _remarks(choices: Sequence[Choice], tokens: Sequence[int], path: Path, options: Options) -> Iterator[str]:
    fixed = [choice for choice in choices if choice.rows.isdigit()]
    if tokens and fixed:
        rows = ", ".join(dict.fromkeys(choice.rows for choice in fixed))
        yield f"rows {rows} are fixed by the example: dynamic sizes would have times at other numbers"
    absent = [count for count in tokens if not any(count in choice.times for choice in choices)]
    if absent and len(fixed) < len(choices):
        yield f"no computation can have {', '.join(map(str, absent))} rows: its sizes have another range"
    own = [machine_name(options.threads, each.name) for each in options.backends]
    others = TuningDatabase(path, own[0]).others([*own, comparison_name(options)])
    if others:
        yield (
            f"the database has {others} times of other machines, versions, threads or back ends, "
            "which do not count here"
        )
