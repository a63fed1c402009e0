"""Built kernels are taken from the cache by another process, which does not start TVM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.backends import backend
from regraft.backends.tvm import built, cpu
from regraft.errors import BackendError

PROCESS = """
import sys
from pathlib import Path
import torch
from torch import nn
import regraft

folder, *executables = sys.argv[1:]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8)).eval()
x = torch.ones(3, 16)
for executable in executables:
    if executable == "damage":
        (file,) = Path(folder, "code").iterdir()
        file.write_bytes(file.read_bytes()[:-1])
        continue
    sys.executable = executable  # what the worker would run in
    try:
        compiled = regraft.compile(model, (x,), backends=("tvm",), cache=folder)
    except regraft.errors.BackendError as error:
        print("asked for TVM" if executable in str(error) else error)
    else:
        torch.testing.assert_close(compiled(x), model(x).detach())
        print(compiled.report.cache.status)
"""
NONE = "no such program"


def run(folder: Path, *workers: str) -> list[str]:
    """What came of compiles in one new process, each with its worker in another program of ``workers``.

    In the place of ``damage`` the kernels that are kept lose their last byte.
    """
    command = [sys.executable, "-c", PROCESS, str(folder), *workers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1] or [done.stderr]


def test_a_second_process_does_not_start_tvm(tmp_path: Path) -> None:
    assert run(tmp_path, sys.executable) == ["miss"]
    assert run(tmp_path, NONE, "damage", NONE, sys.executable, NONE) == ["hit", "asked for TVM", "hit", "hit"]


def test_it_is_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another shape, on other threads, without a cache: built anew."""
    model = nn.Linear(8, 4).eval()
    regraft.compile(model, (torch.randn(2, 8),), backends=(backend("tvm"),), cache=tmp_path)
    other: Any = backend("tvm")

    def refused(*given: Any) -> Any:
        raise BackendError("asked to build", "tvm")

    monkeypatch.setattr(other._builder, "build", refused)
    other_weights = nn.Linear(8, 4).eval()
    x = torch.randn(2, 8)
    compiled = regraft.compile(other_weights, (x,), backends=(other,), cache=tmp_path)
    torch.testing.assert_close(compiled(x), other_weights(x).detach())
    for rows, options in ((3, {}), (2, {"threads": 1}), (2, {"cache": False})):
        fresh: Any = backend("tvm")
        monkeypatch.setattr(fresh._builder, "build", refused)
        given = {"cache": tmp_path, **options}
        with pytest.raises(BackendError, match="asked to build"):
            regraft.compile(model, (torch.randn(rows, 8),), backends=(fresh,), **given)


def test_its_key_has_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs of one set of features may have unlike names for LLVM."""
    keys = set[str]()
    for model in ("one", "another"):
        monkeypatch.setattr(built, "cpu_model", lambda model=model: model)
        keys.add(built.content_key("text", cpu.host_cpu(1), {}))
    assert len(keys) == 2
