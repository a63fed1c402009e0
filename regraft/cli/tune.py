"""``regraft tune``: measured times of forms, kept, shown, drawn and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli import options
from regraft.cli.factory import load_example
from regraft.cli.output import Json, Output, Quiet, Verbose
from regraft.errors import OptionError

Reference = Annotated[
    str | None,
    typer.Argument(metavar="FACTORY", help="The model, as for compile; left out to merge alone."),
]
Budget = Annotated[
    str, typer.Option(metavar="TIME", help="The most time to measure, such as 500ms, 30s or 2min.")
]
Tokens = Annotated[
    str | None,
    typer.Option(
        metavar="N,...", help="Numbers of rows to measure at where sizes vary; powers of two by default."
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw time against tokens; .svg and .pdf are taken too."),
]
Merge = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Add the times of another tuning database first. Repeatable."),
]
Again = Annotated[
    bool,
    typer.Option("--again", help="Measure what is known as well, as after a run on a busy machine."),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Bytes that chosen forms may need beside the model's own constants, as 200MB."
    ),
]


def tune_command(
    factory: Reference = None,
    budget: Budget = "30s",
    tokens: Tokens = None,
    plot: Plot = None,
    merge: Merge = None,
    again: Again = False,
    memory_limit: MemoryLimit = None,
    dynamic: options.Dynamic = None,
    backends: options.Backends = "ort",
    rewrite: options.Rewrites = None,
    exactness: options.ExactnessOption = "reassociates",
    threads: options.Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure computations that have several forms, and keep the times for later compiles."""
    output = Output(as_json, quiet, verbose)
    _check_use(factory, plot, merge, again)
    counts = _counts(tokens)
    limit = None if memory_limit is None else options.bytes_of(memory_limit, "--memory-limit")
    merged = {str(other): _merged(other) for other in merge or ()}
    for other, rows in merged.items():
        output.note(f"merged: {rows} times of {other}")
    if factory is None:
        output.record({"merged": merged})
        return
    with output.working("tune") as watch:
        from regraft.compiler import tune

        example = load_example(factory)
        report = tune(
            example.model,
            example.args,
            example.kwargs,
            dynamic_shapes=options.dynamic_shapes(dynamic) or example.dynamic_shapes,
            backends=options.backend_list(backends),
            rewrites=options.rewrite_list(rewrite),
            exactness=options.exactness_of(exactness),
            threads=threads,
            budget=budget,
            memory_limit=limit,
            tokens=counts,
            again=again,
            progress=watch,
        )
    output.show({**report.to_dict(), "merged": merged}, report)
    if plot is not None:
        from regraft.cli.plot import draw

        draw(report, plot)
        output.note(f"drawn in {plot}")


def _check_use(factory: str | None, plot: Path | None, merge: list[Path] | None, again: bool) -> None:
    """Say before the work begins what cannot be done."""
    if factory is None and not merge:
        raise typer.BadParameter("name a FACTORY to tune, or databases to --merge")
    if factory is None and again:
        raise typer.BadParameter("--again measures the computations of a FACTORY")
    if plot is None:
        return
    if factory is None:
        raise typer.BadParameter("--plot draws what is measured of a FACTORY")
    from regraft.cli.plot import must_be_drawable

    options.must_be_free(plot, "--plot")
    must_be_drawable(plot)


def _counts(text: str | None) -> list[int]:
    """Numbers of rows from ``1,2,4``.

    Raises:
        OptionError: one is no number, or below 1.
    """
    counts = [each.strip() for each in text.split(",")] if text is not None else []
    if not all(each.isdecimal() and int(each) > 0 for each in counts):
        raise OptionError(f"--tokens {text}: expected numbers from 1 on, such as 1,16,256")
    return [int(each) for each in counts]


def _merged(other: Path) -> int:
    """Add the times of ``other`` to the user's database; how many it has."""
    from regraft.compiler import choose, state_folder, tuning_path

    database = choose.TuningDatabase(tuning_path(state_folder()), choose.machine_name())
    return database.merge(other)
