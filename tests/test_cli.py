"""The command line, called in-process; exit codes and messages through a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from regraft.cli import app

FACTORY = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU()).eval(), {"input": torch.randn(3, 8)}

def raises():
    raise ValueError("no weights here")

def wrong():
    return 3

class Branch(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x

def branch():
    return Branch().eval(), (torch.randn(3),)
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "cli_model.py"
    path.write_text(FACTORY)
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "regraft.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_compile_prints_a_json_report_and_saves(model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "saved"
    result = CliRunner().invoke(app, ["compile", f"{model_file}:make", "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["executors"] == {"ort": 2}
    assert report["error"] < 1e-5
    assert (out / "manifest.json").is_file()


def test_compile_prints_a_table(model_file: Path) -> None:
    result = CliRunner().invoke(app, ["compile", f"{model_file}:make", "--dynamic", "input:0"])
    assert result.exit_code == 0, result.output
    assert "executors" in result.stdout


def test_export_writes_one_file(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    result = CliRunner().invoke(app, ["export", f"{model_file}:make", str(path)])
    assert result.exit_code == 0, result.output
    assert path.stat().st_size > 0
    assert "opset" in result.stdout


def test_ir_prints_what_it_can_read_again(model_file: Path, tmp_path: Path) -> None:
    captured = CliRunner().invoke(app, ["ir", f"{model_file}:make"])
    assert captured.exit_code == 0, captured.output
    text = tmp_path / "captured.ir"
    text.write_text(captured.stdout)
    again = CliRunner().invoke(app, ["ir", str(text)])
    assert again.stdout == captured.stdout
    piped = CliRunner().invoke(app, ["ir", "-", "--stage", "fuse"], input=captured.stdout)
    assert "aten.gelu" in piped.stdout


def test_doctor_names_the_back_ends() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "back end ort" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compile", "missing.py:make"], "not FILE.py:FACTORY"),
        (["compile", "{file}:absent"], "has no function 'absent'; it has: "),
        (["compile", "{file}:raises"], "raises() raised ValueError: no weights here"),
        (["compile", "{file}:wrong"], "must return (model, example arguments), not int"),
        (["compile", "{file}:make", "--dynamic", "input"], "expected ARG:AXIS"),
        (["compile", "{file}:make", "--backends", "nothing"], "backends"),
        (["compile", "{file}:branch"], "branches on the value of a tensor"),
        (["export", "{file}:make", "model.txt"], "path must end in .onnx"),
        (["ir", "absent.ir"], "cannot read 'absent.ir'"),
        (["ir", "{file}"], "at line 6, column 72"),
        (["ir", "{file}:make", "--stage", "nowhere"], "there is no stage 'nowhere'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_1(
    model_file: Path, arguments: list[str], message: str
) -> None:
    result = run(*(a.replace("{file}", str(model_file)) for a in arguments))
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_mistake_in_usage_exits_with_2() -> None:
    assert run("compile").returncode == 2
    assert run("nothing").returncode == 2
