"""What only a process of its own shows: exit codes, streams, pipes, and what is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import GRAPH, run_process

COMMAND = [sys.executable, "-m", "regraft"]

#: Becomes the command of its arguments, which can write no file of more than 512 bytes.
SMALL_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_help_and_completion_load_nothing_heavy() -> None:
    code = (
        "import sys, os\n"
        "from regraft.cli import names, main\n"
        "assert names.backends() and names.stages() and names.passes() and names.rewrites()\n"
        "sys.argv = ['regraft', '--help']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'sympy', 'onnxruntime', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_a_mistake_of_the_user_exits_with_1_and_prints_nothing_on_stdout() -> None:
    done = run_process("compile", "missing.py:make")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "FactoryError: cannot read 'missing.py': No such file or directory\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compile"], "Missing argument"),
        (["compil"], "compile"),
        (["ir", "-", "--stag", "fold"], "--stage"),
        (["bench", "m.py:f", "--rounds", "3"], "20"),
    ],
)
def test_a_mistake_in_usage_exits_with_2(arguments: list[str], message: str) -> None:
    done = run_process(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_pipe_that_is_closed_early_is_no_error(tmp_path: Path) -> None:
    graph = tmp_path / "graph.ir"
    graph.write_text(GRAPH)
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [*COMMAND, "ir", str(graph)], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, "")


def test_a_full_disk_is_one_error(tmp_path: Path) -> None:
    graph = tmp_path / "graph.ir"
    graph.write_text(GRAPH)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "ir", str(graph)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr == "OSError: [Errno 28] No space left on device\n"


def test_nothing_is_half_written_where_there_is_no_room(factories: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved"
    compiles = ["compile", f"{factories}:make", "-q", "--backends=eager", "--no-verify", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, "-ISc", SMALL_FILES, *COMMAND, *compiles],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ArtefactError: cannot write the artefact")
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == [factories.name]


def test_without_a_home_or_a_terminal(factories: Path, tmp_path: Path) -> None:
    away = {"HOME": "/dev/null/home", "TERM": "dumb", "REGRAFT_CACHE_DIR": None, "XDG_CACHE_HOME": None}
    done = run_process("compile", f"{factories}:talks", "--json", cwd=tmp_path, **away)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # what the factory printed went elsewhere
    assert report["executors"] == {"ort": 2}
    assert "loading weights" in done.stderr
    own = [line for line in done.stderr.splitlines() if line.startswith("compile: ")]
    assert {line.split()[1] for line in own} >= {"export", "rewrites", "lower", "verify"}
    assert "\x1b" not in done.stdout + "".join(own)
