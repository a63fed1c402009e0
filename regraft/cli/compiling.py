"""``regraft compile`` and ``regraft export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli import options
from regraft.cli.factory import load_example
from regraft.cli.output import Json, Output, Quiet, Verbose
from regraft.errors import OptionError

Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Compare with eager in fp64 and time calls.")
]
VerifyEach = Annotated[
    bool, typer.Option("--verify-each", help="Also check the graph and every rewrite on the way.")
]


def compile_command(
    factory: options.Factory,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the compiled model as this new folder.")
    ] = None,
    dynamic: options.Dynamic = None,
    backends: options.Backends = "ort",
    fallback: options.FallbackOption = options.Fallback.error,
    rewrite: options.Rewrites = None,
    exactness: options.ExactnessOption = "reassociates",
    verify: Verify = True,
    verify_each: VerifyEach = False,
    dump: options.Dump = None,
    cache: options.Cache = True,
    cache_folder: options.CacheFolder = None,
    threads: options.Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compile a model and print the report."""
    output = Output(as_json, quiet, verbose)
    options.must_be_free(out, "--out")
    with output.working("compile") as watch:
        import regraft

        example = load_example(factory)
        compiled = regraft.compile(
            example.model,
            example.args,
            example.kwargs,
            dynamic_shapes=options.dynamic_shapes(dynamic) or example.dynamic_shapes,
            backends=options.backend_list(backends),
            fallback=fallback.value,
            rewrites=options.rewrite_list(rewrite),
            exactness=options.exactness_of(exactness),
            verify="each" if verify_each else verify,
            dump=dump,
            threads=threads,
            cache=cache_folder if cache and cache_folder is not None else cache,
            progress=watch,
        )
        if out is not None:
            compiled.save(out)
    report = compiled.report
    output.show(report.to_dict(), report.full() if verbose else str(report))


def export_command(
    factory: options.Factory,
    path: Annotated[Path, typer.Argument(help="The .onnx file to write.")],
    dynamic: options.Dynamic = None,
    opset: Annotated[int | None, typer.Option(help="Opset of the standard operators.")] = None,
    contrib: Annotated[bool, typer.Option(help="Allow onnxruntime's own operators.")] = True,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the file if it exists.")] = False,
    rewrite: options.Rewrites = None,
    exactness: options.ExactnessOption = "reassociates",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write an optimised ONNX file."""
    output = Output(as_json, quiet, verbose)
    if path.is_dir():
        raise OptionError(f"'{path}' is a folder, not a file to write")
    if not force:
        options.must_be_free(path, "PATH")
    with output.working("export") as watch:
        import regraft

        example = load_example(factory)
        report = regraft.export_onnx(
            example.model,
            example.args,
            path,
            kwargs=example.kwargs,
            dynamic_shapes=options.dynamic_shapes(dynamic) or example.dynamic_shapes,
            opset=opset,
            contrib=contrib,
            rewrites=options.rewrite_list(rewrite),
            exactness=options.exactness_of(exactness),
            progress=watch,
        )
    text = f"{report}\n\n{report.compile.full()}" if verbose else str(report)
    output.show(report.to_dict(), text)
