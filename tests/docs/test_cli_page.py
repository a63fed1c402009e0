"""docs/cli.md shows what the commands really print: each console block is run and compared, numbers aside."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regraft.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
BLOCK = re.compile(r"^```console\n\$ regraft (.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODEL = re.compile(r"^```python\n# (model\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def masked(text: str) -> list[str]:
    """The words, with numbers masked: they, and so where lines break, depend on the process and its past."""
    return re.sub(r"\d[\d.]*(e[+-]?\d+)?", "#", text.replace("unknown", "0 MB")).split()


def test_console_blocks_show_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("REGRAFT_CACHE_DIR", str(tmp_path / "cache"))
    # What is chosen on the page must not depend on how busy a machine is.
    seconds = [13.5e-6] * 3, [9.1e-6] * 3
    monkeypatch.setattr(
        "regraft.compiler.choose.tune.interleaved", lambda calls, clock: (seconds, seconds[0])
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    page = PAGE.read_text(encoding="utf-8")
    name, code = MODEL.findall(page)[0]
    (tmp_path / name).write_text(code)

    def run(match: re.Match[str]) -> str:
        result = CliRunner().invoke(app, shlex.split(match[1]), prog_name="regraft")
        assert result.exit_code == 0, result.output
        shown = result.stdout.replace(f"{tmp_path}/", "")
        if not request.config.option.update:
            assert masked(shown) == masked(match[2]), "run pytest --update"
        printed = "\n".join(line.rstrip() for line in shown.strip("\n").splitlines())
        return f"```console\n$ regraft {match[1]}\n{printed}\n```"

    updated, count = BLOCK.subn(run, page)
    assert count == 3
    if request.config.option.update:
        PAGE.write_text(updated, encoding="utf-8")
