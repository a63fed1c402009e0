"""``regraft cache``: what the compile cache holds, and room in it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regraft.cli.options import bytes_of
from regraft.cli.output import Json, Output, Quiet
from regraft.errors import OptionError

if TYPE_CHECKING:
    from regraft.compiler import cache as compile_cache

app = typer.Typer(help="Show the compile cache, or make room in it.", no_args_is_help=True)

Folder = Annotated[
    Path | None, typer.Option("--folder", help="The cache's folder; the user's own by default.")
]


@app.command()
def path(folder: Folder = None, as_json: Json = False) -> None:
    """Print the cache's folder."""
    found = str(_cache(folder).path)
    Output(as_json).show({"path": found}, found)


@app.command()
def show(folder: Folder = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """List the entries, the last used first."""
    cache = _cache(folder)
    Output(as_json, quiet).show(contents(cache), _table(cache))


@app.command()
def clear(
    folder: Folder = None,
    tuning: Annotated[
        bool, typer.Option("--tuning", help="Forget what was measured too: tuning.db, of all machines.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove every entry, and the machine code that was built."""
    if tuning and folder is not None:
        raise typer.BadParameter("--tuning forgets the user's own times, which are in no other --folder")
    cache = _cache(folder)
    removed = cache.clear()
    code = cache.code.clear()
    result = {"removed": removed, "removed_code": code}
    text = f"{_entries(removed)} and {_builds(code)} removed from {cache.path}"
    if tuning:
        result["removed_times"] = _forgotten()
        text += f"; {_times(result['removed_times'])} forgotten"
    Output(as_json, quiet).show(result, text)


@app.command()
def prune(
    keep: Annotated[str, typer.Option(metavar="SIZE", help="How much may stay, such as 200MB or 1GiB.")],
    folder: Folder = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove the entries, then the machine code, used longest ago until the rest takes at most SIZE."""
    cache = _cache(folder)
    room = bytes_of(keep, "--keep")
    removed = cache.prune(room)
    code = cache.code.prune(max(0, room - cache.size()))
    left = cache.size() + cache.code.size()
    text = f"{_entries(removed)} and {_builds(code)} removed from {cache.path}, {left / 1e6:.1f} MB left"
    Output(as_json, quiet).show({"removed": removed, "removed_code": code, "bytes": left}, text)


def contents(cache: compile_cache.CacheFolder) -> dict[str, Any]:
    """The cache as JSON values."""
    entries = [
        {"path": str(e.path), "bytes": e.bytes, "used": e.used, **(_told(e.head()))} for e in cache.entries()
    ]
    code = cache.code.entries()
    built = {"count": len(code), "bytes": sum(each.bytes for each in code)}
    return {
        "path": str(cache.path),
        "bytes": cache.size(),
        "limit": cache.limit,
        "entries": entries,
        "code": built,
    }


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"


def _builds(count: int) -> str:
    return f"machine code of {count} {'build' if count == 1 else 'builds'}"


def _times(count: int) -> str:
    return f"{count} measured {'time' if count == 1 else 'times'}"


def _forgotten() -> int:
    """Forget all measured times; how many there were.

    Raises:
        OptionError: the tuning database cannot be opened.
    """
    from regraft.compiler import choose, state_folder, tuning_path

    folder = state_folder()
    if folder is None or not tuning_path(folder).exists():
        return 0
    return choose.TuningDatabase(tuning_path(folder), choose.machine_name()).clear()


def _told(head: dict[str, Any] | None) -> dict[str, Any]:
    if head is None:
        return {"model": None, "damaged": True}
    return {"model": head["model"], "damaged": False}


def _table(cache: compile_cache.CacheFolder) -> Any:
    from rich.console import Group
    from rich.table import Column, Table

    content = contents(cache)
    columns = (Column("model", overflow="fold"), "kB", "last used")
    table = Table(*columns, box=None, pad_edge=False)
    for entry in content["entries"]:
        used = f"{datetime.fromtimestamp(entry['used'], UTC).astimezone():%Y-%m-%d %H:%M}"
        name = "damaged: the next compile replaces it" if entry["damaged"] else entry["model"]
        table.add_row(name, f"{entry['bytes'] / 1e3:.1f}", used)
    count = len(content["entries"])
    total = f"{content['bytes'] / 1e6:.1f} of {content['limit'] / 1e6:.0f} MB"
    code = content["code"]
    built = f"{_builds(code['count'])}, {code['bytes'] / 1e6:.1f} MB"
    parts = [f"{content['path']}: {_entries(count)}, {total}", *([table] if count else [])]
    return Group(*parts, *([built] if code["count"] else []))


def _cache(folder: Path | None) -> compile_cache.CacheFolder:
    from regraft.compiler import cache as compile_cache

    place = folder or compile_cache.default_folder()
    if place is None:
        raise OptionError(
            "the cache is off: REGRAFT_CACHE_DIR is empty, or there is no home; name a folder with --folder"
        )
    return compile_cache.CacheFolder(place)
