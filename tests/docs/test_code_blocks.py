"""Every ```python block of the READMEs and the docs runs, in order, one namespace a file.

A block fenced as ```python no-run is shown only.
"""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = (REPOSITORY / "docs", REPOSITORY / "regraft")
PAGES = [REPOSITORY / "README.md", *(page for folder in FOLDERS for page in sorted(folder.glob("**/*.md")))]
BLOCK = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """The code to run, each with the number of its first line."""
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in python_blocks(page.read_text(encoding="utf-8")):
        # Empty lines before the code make a traceback show the page's own line numbers. It is in a file,
        # because regraft reads the source of functions in which tensors decide.
        file = tmp_path / f"{page.stem}_{line}.py"
        file.write_text("\n" * (line - 1) + code, encoding="utf-8")
        exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), namespace)


def test_blocks_are_found_with_their_lines() -> None:
    text = "a\n```python\nx = 1\n```\n```python no-run\ny\n```\n```bash\nz\n```\n```python\nw = 2\n```\n"
    assert python_blocks(text) == [(3, "x = 1\n"), (12, "w = 2\n")]
