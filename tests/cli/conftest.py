"""A file of factories, and ways to run the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from regraft.cli import app
from tests.cli.running import Invoke

FACTORIES = """
import dataclasses
import sys

import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU()).eval(), {"input": torch.randn(3, 8)}


def positional():
    return make()[0], (torch.randn(3, 8),)


def both():
    return make()[0], (torch.randn(3, 8),), {}


def by_name():
    shapes = {"input": {0: torch.export.Dim.AUTO}}
    return {"model": make()[0], "args": [torch.randn(3, 8)], "dynamic_shapes": shapes}


@dataclasses.dataclass
class Example:
    model: nn.Module
    kwargs: dict


def by_field():
    return Example(*make())


def raises():
    raise ValueError("no weights here")  # raised


def exits():
    sys.exit(3)


def wrong():
    return 3


def two_models():
    return make()[0], make()[0]


def misspelt():
    return {"model": make()[0], "kwarg": {}}


def no_model():
    return {"args": ()}


def number_keys():
    return make()[0], {3: torch.randn(3, 8)}


def talks():
    print("loading weights")
    return make()


class Branch(nn.Module):
    def forward(self, x):
        try:
            return x if x.sum() > 0 else -x
        except ValueError:
            return x


def branch():
    return Branch().eval(), (torch.randn(3),)


number = 3
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    """A file with a factory of each kind, right and wrong."""
    path = tmp_path / "factories.py"
    path.write_text(FACTORIES)
    return path


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in this process, in an empty folder and with 100 columns."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERMINAL_WIDTH", "100")

    def run(*arguments: object, given: str | None = None) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments], input=given)

    return run
