"""``regraft ir``: read, check, rewrite and print the IR. Tests of passes are written with it."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regraft.cli import names, options
from regraft.cli.factory import is_reference, load_example
from regraft.cli.output import Json, Output, Quiet, Verbose
from regraft.errors import OptionError

if TYPE_CHECKING:
    from regraft.ir import Module, PassContext


def ir_command(
    source: Annotated[
        str, typer.Argument(help="A file of IR text, '-' for standard input, or a FACTORY as for compile.")
    ],
    stage: Annotated[
        str,
        typer.Option(
            help="Run the passes up to this stage; 'captured' runs none.", autocompletion=names.complete_stage
        ),
    ] = "captured",
    pass_: Annotated[
        list[str] | None,
        typer.Option(
            "--pass", help="Run this pass alone. Repeatable, in order.", autocompletion=names.complete_pass
        ),
    ] = None,
    rewrite: Annotated[
        list[str] | None,
        typer.Option(
            help="Run this rewrite alone, to a fixpoint. Repeatable; they run together.",
            autocompletion=names.complete_rewrite,
        ),
    ] = None,
    dynamic: options.Dynamic = None,
    locations: Annotated[bool, typer.Option(help="Print where each op comes from.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Print the IR of a model or a file: parsed, verified and, if asked, rewritten."""
    if sum((stage != "captured", bool(pass_), bool(rewrite))) > 1:
        raise OptionError("--stage, --pass and --rewrite exclude one another")
    output = Output(as_json, quiet, verbose)
    with output.working("ir"):
        module = _module(source, dynamic)
        context = _run(module, stage, pass_ or [], rewrite or [])
    _show(output, module, context, locations)


def _module(source: str, dynamic: list[str] | None) -> Module:
    from regraft.ir import parse_module

    if not is_reference(source):
        return parse_module(_read_text(source))
    from regraft.compiler import capture

    example = load_example(source)
    shapes = options.dynamic_shapes(dynamic) or example.dynamic_shapes
    return capture(example.model, example.args, example.kwargs, dynamic_shapes=shapes)


def _read_text(source: str) -> str:
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read '{source}': {error}") from error


def _run(module: Module, stage: str, passes: list[str], rewrites: list[str]) -> PassContext:
    from regraft.ir import OPS, PassContext, verify

    context = PassContext(OPS)
    if stage == "captured" and not passes and not rewrites:
        verify(module, "captured")
        return context
    from regraft.compiler import run_named_passes, run_named_rewrites, run_passes

    if passes:
        run_named_passes(module, passes, context)
    elif rewrites:
        run_named_rewrites(module, rewrites, context)
    else:
        run_passes(module, context=context, last_stage=stage)
    return context


def _show(output: Output, module: Module, context: PassContext, locations: bool) -> None:
    from regraft.ir import print_module

    text = print_module(module, locations=locations)
    if output.as_json:
        output.show(_record(module, context, text), text)
    elif not output.quiet:
        sys.stdout.write(text)


def _record(module: Module, context: PassContext, text: str) -> dict[str, Any]:
    return {
        "text": text,
        "ops": dict(Counter(op.name for op in module.main.walk())),
        "rewrites": {
            name: {"hits": stats.hits, "declined": dict(stats.declined)}
            for name, stats in context.stats.items()
        },
    }
