"""Processes killed in the middle leave nothing that is half there, and no lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regraft
from regraft.compiler import cache
from tests.compiler.cache.killed import X, compiled


def kill(mode: str, folder: Path, kills: int, seed: int) -> None:
    script = Path(__file__).with_name("killed.py")
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, str(script), mode, str(folder), str(kills), str(seed)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr


def check(mode: str, folder: Path) -> None:
    (folder / "cache").mkdir(exist_ok=True)  # a process may have been killed before it stored anything
    found = cache.CacheFolder(folder / "cache")
    for entry in found.entries():
        if mode == "write":
            content = entry.path.read_bytes()
            assert content == content[:1] * (1 << 20)
        else:
            assert entry.head() is not None
    for path in folder.glob("model-*"):
        assert torch.isfinite(regraft.load(path)(X)).all()
    left = [name for name in os.listdir(folder / "cache") if not name.endswith(".entry")]
    assert all(name.startswith(".tmp-") for name in left)
    assert not [name for name in os.listdir(folder) if "lock" in name]
    if mode != "write":
        for _ in range(2):
            result = compiled(folder / "cache")
        assert result.report.cache.status == "hit"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("mode", ["compile", "save", "write"])
def test_killed_at_random_moments(mode: str, tmp_path: Path) -> None:
    kill(mode, tmp_path, kills=3, seed=os.getpid())
    check(mode, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("mode", ["compile", "save", "write"])
def test_killed_fifty_times(mode: str, tmp_path: Path) -> None:
    kill(mode, tmp_path, kills=50, seed=0)
    check(mode, tmp_path)


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    script = "from tests.compiler.cache.killed import *; [compiled(Path({!r}), n / 2) for n in range(3)]"
    command = [sys.executable, "-c", script.format(str(tmp_path))]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        _, err = run.communicate(timeout=300)
        assert run.returncode == 0, err
    entries = cache.CacheFolder(tmp_path).entries()
    assert len(entries) == 3
    assert all(entry.head() for entry in entries)
