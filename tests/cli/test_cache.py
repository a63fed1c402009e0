"""``regraft cache``: what is listed and removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Invoke


@pytest.fixture
def filled(invoke: Invoke, factories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with an entry of a compile and a file that is none."""
    folder = tmp_path / "cache" / "compiled"
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(folder.parent))
    done = invoke("compile", f"{factories}:make", "--no-verify", "-q")
    assert done.exit_code == 0, done.output
    (folder / "broken.entry").write_bytes(b"not an entry")
    return folder


def listed(invoke: Invoke, *options: object) -> dict[str, Any]:
    result = invoke("cache", "show", "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_show_lists_entries_and_names_what_is_damaged(invoke: Invoke, filled: Path) -> None:
    content = listed(invoke)
    assert content["path"] == str(filled)
    assert content["bytes"] == sum(file.stat().st_size for file in filled.glob("*.entry"))
    found = sorted((entry["model"] or "", entry["damaged"]) for entry in content["entries"])
    assert found == [("", True), ("torch.nn.modules.container.Sequential", False)]
    text = invoke("cache", "show").stdout
    assert "2 entries" in text
    assert "torch.nn.modules.container.Sequential" in text
    assert "damaged: the next compile" in text


def test_the_second_compile_is_a_hit(invoke: Invoke, filled: Path, factories: Path) -> None:
    again = invoke("compile", f"{factories}:make", "--no-verify", "--json", "-q")
    assert json.loads(again.stdout)["cache"]["status"] == "hit"
    without = invoke("compile", f"{factories}:make", "--no-verify", "--json", "-q", "--no-cache")
    assert json.loads(without.stdout)["cache"]["status"] == "off"
    options = "--no-verify --json -q --cache-folder other"
    elsewhere = invoke("compile", f"{factories}:make", *options.split())
    assert json.loads(elsewhere.stdout)["cache"]["status"] == "miss"
    assert len(list(Path("other").glob("*.entry"))) == 1


def test_clear_and_prune_say_what_they_removed(invoke: Invoke, filled: Path) -> None:
    assert json.loads(invoke("cache", "prune", "--keep", "1GiB", "--json").stdout)["removed"] == 0
    pruned = json.loads(invoke("cache", "prune", "--keep", "20", "--json").stdout)
    assert pruned == {"removed": 1, "removed_code": 0, "bytes": len(b"not an entry")}
    assert "1 entry and machine code of 0 builds removed" in " ".join(invoke("cache", "clear").stdout.split())
    assert listed(invoke)["entries"] == []


def test_machine_code_is_counted_and_removed(invoke: Invoke, filled: Path) -> None:
    (filled / "code").mkdir()
    for name in ("a", "b"):
        (filled / "code" / f"{name}.entry").write_bytes(bytes(100))
    assert listed(invoke)["code"] == {"count": 2, "bytes": 200}
    assert "machine code of 2 builds" in invoke("cache", "show").stdout
    room = listed(invoke)["bytes"] + 100
    pruned = json.loads(invoke("cache", "prune", "--keep", str(room), "--json").stdout)
    assert pruned == {"removed": 0, "removed_code": 1, "bytes": room}
    assert json.loads(invoke("cache", "clear", "--json").stdout) == {"removed": 2, "removed_code": 1}
    assert listed(invoke)["code"]["count"] == 0


def test_path_is_that_of_the_environment_or_the_option(invoke: Invoke, filled: Path) -> None:
    assert invoke("cache", "path").stdout == f"{filled}\n"
    assert invoke("cache", "path", "--folder", "here").stdout == "here\n"


def test_a_folder_that_is_not_there_is_an_empty_cache(invoke: Invoke) -> None:
    assert listed(invoke, "--folder", "absent")["entries"] == []
    assert not Path("absent").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["path"], "the cache is off: REGRAFT_CACHE_DIR is empty"),
        (
            ["prune", "--keep", "much", "--folder", "x"],
            "--keep: expected a number of bytes, or a size such as",
        ),
        (["show", "--folder", "{file}"], "a folder"),
    ],
)
def test_mistakes(invoke: Invoke, factories: Path, arguments: list[str], message: str) -> None:
    result = invoke("cache", *(a.replace("{file}", str(factories)) for a in arguments))
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stdout == ""


def test_an_unknown_command_of_the_cache_is_a_mistake_in_usage(invoke: Invoke) -> None:
    result = invoke("cache", "shwo")
    assert result.exit_code == 2
    assert "show" in result.stderr
