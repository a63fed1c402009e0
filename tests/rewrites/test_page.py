"""docs/rewrites.md lists exactly the rewrites that are shipped."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from regraft.rewrites import FAMILIES, catalogue

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = "docs/rewrites.md"
TABLE = re.compile(r"(<!-- table: .*? -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> str:
    rows = ["| family | rewrite | what it says | exactness |", "| --- | --- | --- | --- |"]
    for family, name, equation, exactness in catalogue():
        cells = (family, f"`{name}`", equation.replace("|", "\\|"), exactness)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def test_the_table_is_up_to_date(check_golden: Callable[[str, str], None]) -> None:
    text = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    assert TABLE.search(text)
    check_golden(PAGE, TABLE.sub(lambda m: f"{m[1]}{table()}{m[2]}", text))


def test_the_catalogue_is_complete() -> None:
    listed = {name for _, name, _, _ in catalogue()}
    assert listed == {rewrite.name for family in FAMILIES.values() for rewrite in family}


@pytest.mark.parametrize("row", catalogue(), ids=lambda row: row[1])
def test_every_row_says_something(row: tuple[str, str, str, str]) -> None:
    assert "=" in row[2]
