"""What the shell is offered, as typer's completion scripts ask for it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from regraft.cli import names


def offered(line: str) -> list[str]:
    """The completions of the last word of ``line`` in bash."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    done = subprocess.run(
        [Path(sys.executable).parent / "regraft"],
        env={
            **os.environ,
            "_REGRAFT_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("regraft comp", ["compile"]),
        ("regraft ir g.ir --stage fu", ["fuse"]),
        ("regraft ir g.ir --rewrite RMSNormW", ["RMSNormWeight"]),
        ("regraft compile m.py:f --backends or", ["ort"]),
        ("regraft compile m.py:f --fallback e", ["error", "eager"]),
    ],
)
def test_names_are_offered_in_a_process_of_its_own(line: str, expected: list[str]) -> None:
    assert offered(line) == expected


def test_all_names_are_offered_and_filtered() -> None:
    assert names.complete_stage("")[0] == "captured"
    assert set(names.complete_pass("fold.")) == {p for p in names.passes() if p.startswith("fold.")}
    assert names.complete_rewrite("Gelu") == ["GeluErf", "GeluTanh"]
    assert names.complete_backends("ort,") == ["ort,eager", "ort,example", "ort,tvm"]
    assert names.complete_exactness("a") == ["approx:"]
