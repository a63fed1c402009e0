"""The command line."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from regraft.errors import OptionError, RegraftError

app = typer.Typer(
    name="regraft",
    help="Compile PyTorch models by rewriting their graphs.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

Factory = Annotated[
    str,
    typer.Argument(
        metavar="FILE.py:FACTORY",
        help="A function that returns (model, example arguments); the arguments are a tuple or a dict.",
    ),
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic", metavar="ARG:AXIS", help="A size that may vary, such as input_ids:1. Repeatable."
    ),
]


def main() -> None:
    """The entry point: runs a command; errors of ours become one message and exit code 1."""
    try:
        app()
    except RegraftError as error:
        console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        console.print(f"{type(error).__name__}:", style="bold red", end=" ")
        console.print(str(error))
        sys.exit(1)


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the ONNX files; a temporary one by default.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Interleaved pairs of calls to time.")] = 10,
) -> None:
    """Compile BERT-base, a Llama-style decoder and a module with a custom rewrite; check and time them."""
    from regraft.demo import run_demo

    run_demo(Console(), out, pairs)


@app.command("compile")
def compile_command(
    factory: Factory,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the compiled model as this folder.")
    ] = None,
    dynamic: Dynamic = None,
    backends: Annotated[str, typer.Option(help="Back ends in order of preference, comma-separated.")] = "ort",
    fallback: Annotated[
        Literal["error", "eager"], typer.Option(help="What to do with an op that no back end takes.")
    ] = "error",
    verify: Annotated[bool, typer.Option(help="Compare with eager in fp64.")] = True,
    dump: Annotated[Path | None, typer.Option(help="Folder for the graph after each pass.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compile a model and print the report."""
    import regraft

    model, args, kwargs = _load_factory(factory)
    compiled = regraft.compile(
        model,
        args,
        kwargs,
        dynamic_shapes=_dynamic_shapes(dynamic),
        backends=[name.strip() for name in backends.split(",")],
        fallback=fallback,
        verify=verify,
        dump=dump,
    )
    if out is not None:
        compiled.save(out)
    if as_json:
        print(json.dumps(compiled.report.to_dict(), indent=1))
    else:
        Console().print(compiled.report)


@app.command()
def export(
    factory: Factory,
    path: Annotated[Path, typer.Argument(help="The .onnx file to write.")],
    dynamic: Dynamic = None,
    opset: Annotated[int | None, typer.Option(help="Opset of the standard operators.")] = None,
    contrib: Annotated[bool, typer.Option(help="Allow onnxruntime's own operators.")] = True,
) -> None:
    """Write an optimised ONNX file."""
    import regraft

    model, args, kwargs = _load_factory(factory)
    shapes = _dynamic_shapes(dynamic)
    report = regraft.export_onnx(
        model, args, path, kwargs=kwargs, dynamic_shapes=shapes, opset=opset, contrib=contrib
    )
    Console(highlight=False).print(str(report))


@app.command()
def ir(
    source: Annotated[
        str, typer.Argument(help="A file of IR text, '-' for standard input, or FILE.py:FACTORY.")
    ],
    stage: Annotated[
        str, typer.Option(help="Run the passes up to this stage; 'captured' runs none.")
    ] = "captured",
    dynamic: Dynamic = None,
    locations: Annotated[bool, typer.Option(help="Print where each op comes from.")] = False,
) -> None:
    """Print the IR of a model or a file: parsed, verified and, if asked, rewritten."""
    from regraft.compiler import capture, run_passes
    from regraft.ir import parse_module, print_module, verify

    if ".py:" in source:
        model, args, kwargs = _load_factory(source)
        module = capture(model, args, kwargs, dynamic_shapes=_dynamic_shapes(dynamic))
    else:
        module = parse_module(_read_text(source))
    verify(module, "captured")
    if stage != "captured":
        run_passes(module, last_stage=stage)
    print(print_module(module, locations=locations), end="")


@app.command()
def doctor() -> None:
    """Show versions, back ends and what this machine can do."""
    import os
    import platform

    from regraft.backends import BUILTIN

    table = Table("what", "found", box=None, pad_edge=False)
    table.add_row("python", f"{platform.python_version()} on {platform.machine()}")
    table.add_row(
        "cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    )
    for package in ("regraft", "torch", "onnxruntime", "onnx", "onnx-ir", "transformers", "apache-tvm"):
        table.add_row(package, _version(package))
    for name, (_, _, library) in sorted(BUILTIN.items()):
        missing = importlib.util.find_spec(library) is None
        table.add_row(f"back end {name}", f"needs {library}, which is not installed" if missing else "ready")
    Console().print(table)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _read_text(source: str) -> str:
    if source == "-":
        return sys.stdin.read()
    try:
        return Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read '{source}': {error}") from error


def _load_factory(reference: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Model, args and kwargs from ``FILE.py:FACTORY``.

    Raises:
        OptionError: the file or the function is missing, raises, or returns something else.
    """
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not path.is_file():
        raise OptionError(f"'{reference}' is not FILE.py:FACTORY with an existing file")
    factory = _function(path, name)
    try:
        made = factory()
    except Exception as error:
        raise OptionError(f"{name}() raised {type(error).__name__}: {error}") from error
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[1], (tuple, list, Mapping)):
        kinds = ", ".join(type(each).__name__ for each in made) if isinstance(made, tuple) else ""
        found = f"({kinds})" if kinds else type(made).__name__
        raise OptionError(
            f"{name}() must return (model, example arguments), not {found}; "
            "the arguments are a tuple or a dict"
        )
    model, example = made
    return (model, (), dict(example)) if isinstance(example, Mapping) else (model, tuple(example), {})


def _function(path: Path, name: str) -> Callable[[], Any]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickles in the file look themselves up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise OptionError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        found = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise OptionError(f"{path} has no function '{name}'; it has: {', '.join(found) or 'none'}")
    return function


def _dynamic_shapes(entries: list[str] | None) -> dict[str, dict[int, Any]] | None:
    from torch.export import Dim

    shapes: dict[str, dict[int, Any]] = {}
    for entry in entries or ():
        name, _, axis = entry.rpartition(":")
        if not name or not axis.isdigit():
            raise OptionError(f"--dynamic {entry}: expected ARG:AXIS, such as input_ids:1")
        shapes.setdefault(name, {})[int(axis)] = Dim.AUTO
    return shapes or None


if __name__ == "__main__":
    main()
