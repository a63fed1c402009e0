"""The options that commands share, and what their texts mean."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regraft.cli import names
from regraft.cli.factory import load_object
from regraft.errors import OptionError, no_such

if TYPE_CHECKING:
    from regraft.ir import Exactness, Rewrite

Factory = Annotated[
    str,
    typer.Argument(
        metavar="FACTORY",
        help="FILE.py:NAME or package.module:NAME of a function that returns (model, args), (model, kwargs), "
        "(model, args, kwargs), or a dict or dataclass with these names and dynamic_shapes.",
    ),
]
Dynamic = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="ARG:AXIS[=LO..HI]",
        help="A size that may vary, such as input_ids:1 or input_ids:1=2..512. Repeatable; "
        "takes the place of the factory's dynamic_shapes.",
    ),
]
Backends = Annotated[
    str,
    typer.Option(
        metavar="NAME,...", help="Back ends in order of preference.", autocompletion=names.complete_backends
    ),
]
Rewrites = Annotated[
    list[str] | None,
    typer.Option(
        "--rewrite", metavar="FILE.py:CLASS", help="A rewrite of your own besides regraft's. Repeatable."
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Worker threads of the back ends; each library's choice by default.")
]
Dump = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder for the graph after each pass.")]

Cache = Annotated[
    bool, typer.Option(help="Look for the rewritten graph in the compile cache, and keep it there.")
]
CacheFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The cache's folder; the user's own by default.")
]


class Fallback(StrEnum):
    """What to do with an op that no back end takes."""

    error = "error"
    eager = "eager"


FallbackOption = Annotated[
    Fallback,
    typer.Option("--fallback", help="For an op that no back end takes: an error, or eager torch."),
]
ExactnessOption = Annotated[
    str,
    typer.Option(
        "--exactness",
        metavar="LEVEL",
        help="The least exact kind of rewrite that may be applied: exact, reassociates or approx:TOLERANCE.",
        autocompletion=names.complete_exactness,
    ),
]


def exactness_of(text: str) -> Exactness:
    """The level that ``--exactness`` names.

    Raises:
        OptionError: it names none.
    """
    from regraft.ir import Exactness

    name, colon, tolerance = text.partition(":")
    if name == "approx" and colon:
        return Exactness.APPROX(_number(tolerance, f"--exactness {text}"))
    known = {"exact": Exactness.EXACT, "reassociates": Exactness.REASSOCIATES}
    if text not in known:
        raise OptionError(f"--exactness: {no_such('level', text, (*known, 'approx:TOLERANCE'))}")
    return known[text]


def _number(text: str, given: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(f"{given}: '{text}' is not a number") from error


def backend_list(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def rewrite_list(references: list[str] | None) -> list[Rewrite | type[Rewrite]]:
    """The classes or instances that ``--rewrite`` names."""
    return [load_object(reference) for reference in references or ()]


_DYNAMIC = re.compile(r"(?P<name>[^:]+):(?P<axis>\d+)(?:=(?P<low>\d*)\.\.(?P<high>\d*))?")


def dynamic_shapes(entries: list[str] | None) -> dict[str, dict[int, Any]] | None:
    """``dynamic_shapes`` of ``regraft.compile`` from ``ARG:AXIS[=LO..HI]``; None without entries.

    Raises:
        OptionError: an entry has another form.
    """
    from torch.export import Dim

    shapes: dict[str, dict[int, Any]] = {}
    for entry in entries or ():
        found = _DYNAMIC.fullmatch(entry)
        if found is None:
            raise OptionError(
                f"--dynamic {entry}: expected ARG:AXIS or ARG:AXIS=LO..HI, such as input_ids:1=2..512"
            )
        bounds = {key: int(found[end]) for key, end in (("min", "low"), ("max", "high")) if found[end]}
        if len(bounds) == 2 and bounds["min"] > bounds["max"]:
            raise OptionError(f"--dynamic {entry}: the range is empty")
        shapes.setdefault(found["name"], {})[int(found["axis"])] = Dim.AUTO(**bounds) if bounds else Dim.AUTO
    return shapes or None


def bytes_of(text: str, option: str) -> int:
    """A number of bytes from ``1500``, ``200MB``, ``1.5 GiB``.

    Raises:
        OptionError: it is none of these.
    """
    from regraft.compiler import choose

    return choose.parse_size(text, option)


def must_be_free(path: Path | None, option: str) -> None:
    """Say so before the work begins when ``path`` cannot be written anew.

    Raises:
        OptionError: there is something at ``path``, or no folder to put it into.
    """
    if path is None:
        return
    if path.exists() or path.is_symlink():
        raise OptionError(f"{option} {path}: there is something at this path already")
    if not path.absolute().parent.is_dir():
        raise OptionError(f"{option} {path}: the folder '{path.parent}' does not exist")
