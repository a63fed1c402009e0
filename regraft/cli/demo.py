"""``regraft demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from regraft.cli.output import Json, Output, Quiet, Verbose


def demo_command(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the ONNX files; a temporary one by default.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=20, help="Interleaved rounds of calls to time.")] = 20,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compile BERT-base, a Llama-style decoder and a module with a custom rewrite; check and time them."""
    output = Output(as_json, quiet, verbose)
    shown: list[dict[str, Any]] = []
    with output.working("demo"):
        from regraft.demo import CASES, demo_folder, run_case

        folder = demo_folder(out)
    for number, case in enumerate(CASES, start=1):
        with output.working(case.title) as watch:
            result = run_case(case, folder / f"demo_{number}.onnx", rounds, watch)
        shown.append(result.to_dict())
        output.text(f"{number}. {case.title}\n{result}\n")
    output.record({"cases": shown})
