"""The newcomer's map in CONTRIBUTING.md names only what exists."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
HEADING = "## Where things go"


def paths_in_map() -> list[str]:
    """The paths in backquotes under the map's heading; `<placeholder>` and what follows is cut off."""
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.split(f"{HEADING}\n")[1].split("\n## ")[0]
    quoted = re.findall(r"`([^`\s]+)`", section)
    return sorted({path.split("<")[0] for path in quoted if "/" in path})


def test_map_is_not_empty() -> None:
    assert len(paths_in_map()) >= 8


@pytest.mark.parametrize("path", paths_in_map())
def test_path_exists(path: str) -> None:
    assert (REPOSITORY / path).exists()
