"""The graph after each pass, and what the pass changed, as files to read."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.errors import OptionError
from regraft.ir import Module, RewriteStats, print_module

INDEX = "index.json"
_OWN = re.compile(r"\d{2,}-[A-Za-z0-9._-]*\.(ir|diff)")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass
class Dumper:
    """Writes ``NN-pass.ir`` and ``NN-pass.diff`` into a folder; does nothing without one.

    ``index.json`` lists the passes in order: files (none where a pass changed nothing), seconds, and the
    rewrites applied. Nothing is written elsewhere, and nothing of others is overwritten.

    Raises:
        OptionError: the folder cannot be made, or holds something else than an earlier dump.
    """

    folder: Path | None
    _entries: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _hits: dict[str, int] = field(default_factory=dict[str, int])
    _last: str = ""

    def __post_init__(self) -> None:
        if self.folder is not None:
            _prepare(self.folder)

    def write(
        self,
        name: str,
        module: Module,
        seconds: float = 0.0,
        stats: Mapping[str, RewriteStats] | None = None,
    ) -> None:
        """Write the module after the pass ``name``; ``stats`` are those of the compile so far."""
        if self.folder is None:
            return
        text = print_module(module)
        hits = {rewrite: each.hits for rewrite, each in (stats or {}).items()}
        applied = {r: n - self._hits.get(r, 0) for r, n in hits.items() if n > self._hits.get(r, 0)}
        files = self._files(name, text) if text != self._last else {}
        self._entries.append({"pass": name, **files, "seconds": seconds, "rewrites": applied})
        self._hits, self._last = hits, text
        (self.folder / INDEX).write_text(json.dumps({"passes": self._entries}, indent=2), encoding="utf-8")

    def _files(self, name: str, text: str) -> dict[str, str]:
        assert self.folder is not None
        stem = f"{len(self._entries):02d}-{_UNSAFE.sub('_', name)}"
        contents = {"ir": text}
        if self._entries:
            contents["diff"] = unified(self._last, text, self._entries[-1]["pass"], name)
        for suffix, content in contents.items():
            with (self.folder / f"{stem}.{suffix}").open("x", encoding="utf-8") as file:
                file.write(content)
        return {suffix: f"{stem}.{suffix}" for suffix in contents}


def unified(before: str, after: str, old: str, new: str) -> str:
    """The difference of two texts as a unified diff, ending in a line break."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), old, new, lineterm="")
    return "".join(f"{line}\n" for line in lines)


def _prepare(folder: Path) -> None:
    """Make the folder, or empty it of an earlier dump."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(folder.iterdir())
    except OSError as error:
        raise OptionError(f"dump: cannot make the folder {folder}: {error.strerror}") from error
    strange = [file for file in found if file.name != INDEX and not _OWN.fullmatch(file.name)]
    if strange or (found and INDEX not in {file.name for file in found}):
        first = (strange or found)[0].name
        raise OptionError(
            f"dump: the folder {folder} holds '{first}', which no earlier dump wrote; "
            "give a new or an empty folder"
        )
    for file in found:
        # A link goes, not what it points to.
        file.unlink()
