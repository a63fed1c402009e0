"""``regraft bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from regraft.cli import options
from regraft.cli.doctor import machine
from regraft.cli.factory import load_example
from regraft.cli.output import Json, Output, Quiet, Verbose


def bench_command(
    factory: options.Factory,
    rounds: Annotated[int, typer.Option(min=20, help="Interleaved rounds.")] = 30,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds for repeating rounds that other processes disturbed.")
    ] = 60.0,
    peers: Annotated[bool, typer.Option(help="Race torch.onnx on ONNX Runtime too.")] = True,
    dynamic: options.Dynamic = None,
    backends: options.Backends = "ort",
    fallback: options.FallbackOption = options.Fallback.error,
    rewrite: options.Rewrites = None,
    exactness: options.ExactnessOption = "reassociates",
    threads: options.Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time the compiled model against eager and torch.onnx, and against itself for the noise."""
    output = Output(as_json, quiet, verbose)
    with output.working("bench") as watch:
        import torch

        import regraft
        from regraft.compiler import bench

        if threads is not None:
            torch.set_num_threads(threads)
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
            threads=threads,
            progress=watch,
        )
        result = bench(
            example.model,
            compiled,
            example.args,
            example.kwargs,
            rounds=rounds,
            threads=threads,
            peers=peers,
            patience=patience,
        )
    output.show({**result.to_dict(), "machine": machine()}, result)
