"""A saved artefact runs where the compiler cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

import regraft

#: Loads the artefact argv[1], runs it on argv[2] and writes the result to argv[3].
LOADER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("regraft.ir", "regraft.compiler", "regraft.rewrites", "sympy", "onnx_ir")):
            raise ImportError(f"{name} must not be imported here")

sys.meta_path.insert(0, Blocked())

import torch
import regraft

model = regraft.load(sys.argv[1])
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
regraft.load(sys.argv[1]).save(sys.argv[1] + ".again")

for name in ("regraft.ir", "regraft.compiler", "regraft.rewrites"):
    assert name not in sys.modules, name
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(f"{name} was not blocked, so this shows nothing")
"""

LIBRARIES = {"eager": "torch", "example": "numpy", "ort": "onnxruntime"}


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.silu(self.up(self.norm(x)))).reshape(-1)


@pytest.mark.parametrize("name", sorted(LIBRARIES))
def test_loads_and_runs_without_the_compiler(name: str, tmp_path: Path) -> None:
    if find_spec(LIBRARIES[name]) is None:
        pytest.skip(f"{LIBRARIES[name]} is not installed")
    torch.manual_seed(0)
    model, x = Mlp().eval(), torch.randn(5, 8)
    sizes = {"x": {0: torch.export.Dim("n", min=1, max=64)}}
    compiled = regraft.compile(model, (torch.randn(3, 8),), dynamic_shapes=sizes, backends=(name,))
    compiled.save(tmp_path / "model")
    torch.save(x, tmp_path / "x.pt")
    files = [str(tmp_path / file) for file in ("model", "x.pt", "y.pt")]
    run = subprocess.run([sys.executable, "-c", LOADER, *files], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    y = torch.load(tmp_path / "y.pt")
    assert torch.equal(y, compiled(x))
    torch.testing.assert_close(y, model(x).detach())
    assert (tmp_path / "model.again" / "manifest.json").is_file()


class Counts(nn.Module):
    """Keeps state, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1  # pyright: ignore[reportOperatorIssue]
        return x * self.calls + 0 * torch.rand_like(x)


def test_state_goes_on_without_the_compiler(tmp_path: Path) -> None:
    x = torch.randn(5, 8)
    compiled = regraft.compile(Counts().eval(), (x,))
    compiled(x)
    compiled.save(tmp_path / "model")
    torch.save(x, tmp_path / "x.pt")
    files = [str(tmp_path / file) for file in ("model", "x.pt", "y.pt")]
    run = subprocess.run([sys.executable, "-c", LOADER, *files], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert torch.equal(torch.load(tmp_path / "y.pt"), 2 * x)
    assert torch.equal(compiled(x), 2 * x)
