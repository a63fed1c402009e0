"""`dump=`: the graph after each pass, what the pass changed, and an index; nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import regraft
from regraft.errors import OptionError
from tests.compiler.wrong import DropsAbs, model, rows


def dumped(folder: Path, **options: Any) -> dict[str, Any]:
    regraft.compile(model(), (rows(),), dump=folder, **options)
    return json.loads((folder / "index.json").read_text())


def test_index_and_diffs(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dump"
    index = dumped(folder)
    passes = {entry["pass"]: entry for entry in index["passes"]}
    assert next(iter(passes)) == "captured"
    recover = passes["recover.rewrite"]
    assert recover["rewrites"] == {"SiLU": 1}
    assert recover["seconds"] > 0
    assert passes["fold.indices"].keys() == {"pass", "seconds", "rewrites"}
    named = {entry[kind] for entry in index["passes"] for kind in ("ir", "diff") if kind in entry}
    assert {file.name for file in folder.iterdir()} == {*named, "index.json"}
    diff = (folder / recover["diff"]).read_text()
    assert any(line.startswith("-") and "aten.sigmoid" in line for line in diff.splitlines())
    added = next(line for line in diff.splitlines() if line.startswith("+") and "aten.silu" in line)
    assert "wrong.py" in added
    assert "by SiLU" in added
    assert "aten.silu" in (folder / recover["ir"]).read_text()


def test_an_earlier_dump_is_replaced_whole(tmp_path: Path) -> None:
    dumped(tmp_path / "d", passes=[("recover", _renamed("zz/../../up"))])
    first = {file.name for file in (tmp_path / "d").iterdir()}
    assert any("zz_.._.._up" in name for name in first)
    dumped(tmp_path / "d")
    assert not any("up" in file.name for file in (tmp_path / "d").iterdir())
    assert [file.name for file in tmp_path.iterdir()] == ["d"]


def _renamed(name: str) -> Any:
    found = DropsAbs(heard=True)
    found.name = name
    return found


@pytest.mark.parametrize("names", [["notes.txt"], ["index.json", "mine.py"], ["00-captured.ir"]])
def test_files_of_others_are_not_touched(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(OptionError, match="which no earlier dump wrote; give a new or an empty folder"):
        dumped(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(names, "mine")


def test_links_are_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = tmp_path / "d"
    dumped(folder)
    (folder / "00-captured.ir").unlink()
    (folder / "00-captured.ir").symlink_to(precious)
    (folder / "index.json").unlink()
    (folder / "index.json").symlink_to(precious)
    dumped(folder)
    assert precious.read_text() == "mine"
    assert not (folder / "index.json").is_symlink()
