"""``regraft explain`` and ``regraft bisect``: why a rewrite did not apply, and what makes a result wrong."""

from __future__ import annotations

from typing import Annotated

import typer

from regraft.cli import names, options
from regraft.cli.factory import is_reference, load_example, load_object
from regraft.cli.output import Json, Output, Quiet, Verbose


def explain_command(
    factory: options.Factory,
    only: Annotated[
        str | None,
        typer.Argument(
            metavar="[REWRITE]",
            help="The rewrite to explain, by name or as FILE.py:CLASS; all by default.",
            autocompletion=names.complete_rewrite,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Places to give for each rewrite.")] = 3,
    dynamic: options.Dynamic = None,
    rewrite: options.Rewrites = None,
    exactness: options.ExactnessOption = "reassociates",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show why rewrites apply to a model or do not: the nearest misses, with their source lines."""
    output = Output(as_json, quiet, verbose)
    with output.working("explain"):
        import regraft

        example = load_example(factory)
        explanation = regraft.explain(
            example.model,
            example.args,
            example.kwargs,
            dynamic_shapes=options.dynamic_shapes(dynamic) or example.dynamic_shapes,
            rewrite=load_object(only) if only is not None and is_reference(only) else only,
            rewrites=options.rewrite_list(rewrite),
            exactness=options.exactness_of(exactness),
            limit=limit,
        )
    output.show(explanation.to_dict(), explanation)


def bisect_command(
    factory: options.Factory,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:FUNCTION",
            help="A function that gets a compiled model and returns whether it is right; "
            "by default it is compared with eager.",
        ),
    ] = None,
    dynamic: options.Dynamic = None,
    backends: options.Backends = "ort",
    rewrite: options.Rewrites = None,
    exactness: options.ExactnessOption = "reassociates",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the pass, rewrite or back end that makes a compiled model wrong."""
    output = Output(as_json, quiet, verbose)
    with output.working("bisect"):
        import regraft

        example = load_example(factory)
        report = regraft.bisect(
            example.model,
            example.args,
            example.kwargs,
            dynamic_shapes=options.dynamic_shapes(dynamic) or example.dynamic_shapes,
            backends=options.backend_list(backends),
            rewrites=options.rewrite_list(rewrite),
            exactness=options.exactness_of(exactness),
            check=None if check is None else load_object(check),
            progress=lambda trial: output.note(f"bisect: {trial}"),
        )
    output.show(report.to_dict(), report)
