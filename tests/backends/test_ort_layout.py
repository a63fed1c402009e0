"""Convolutions in ONNX Runtime's blocked layout: which of its transformers run, and with what constants."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import regraft
from regraft.testing import assert_close, randomise

#: Run whatever the level; they change nothing in a graph for one device and f32.
ALWAYS = {
    "CastFloat16Transformer",
    "EnsureUniqueDQForNodeUnit",
    "MemcpyTransformer",
    "RemoveDuplicateCastTransformer",
}

PROGRAM = """
import sys
import onnxruntime
from regraft.backends.ort.optimiser import OTHERS
options = onnxruntime.SessionOptions()
options.log_severity_level = 0
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
onnxruntime.InferenceSession(
    sys.argv[1], options, providers=["CPUExecutionProvider"], disabled_optimizers=list(OTHERS)
)
"""


class Block(nn.Module):
    """A residual block, wide enough for its constants to be shared and not inlined."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.after = nn.BatchNorm2d(16)
        self.last = nn.Linear(16, 300)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.first(x)))
        y = torch.relu(self.second(y) + x)
        return self.last(self.after(y.clamp(max=1)).mean((2, 3)))


@pytest.fixture
def block() -> Block:
    return randomise(Block().eval())


def test_only_the_layout_transformer_runs(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "block.onnx"
    regraft.export_onnx(block, (torch.randn(1, 16, 8, 8),), path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    ran = set(re.findall(r"GraphTransformer (\w+)", done.stderr))
    assert "NchwcTransformer" in ran
    assert ran - ALWAYS == {"NchwcTransformer"}


def test_convolutions_are_blocked(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    session, path = onnxruntime.InferenceSession, tmp_path / "optimised.onnx"

    def saving(source: str, options: onnxruntime.SessionOptions, **rest: object) -> object:
        options.optimized_model_filepath = str(path)
        return session(source, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", saving)
    x = torch.randn(2, 16, 8, 8)
    compiled = regraft.compile(block, (x,))
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    blocked = [n.op_type for n in nodes if n.domain == "com.microsoft.nchwc"]
    assert blocked.count("Conv") == 2
    assert not any(n.op_type == "Conv" and not n.domain for n in nodes)
    assert_close([compiled(x)], [block.double()(x.double())])


def test_a_model_without_convolutions_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    levels: list[object] = []
    session = onnxruntime.InferenceSession

    def noting(source: str, options: onnxruntime.SessionOptions, **rest: object) -> object:
        levels.append(options.graph_optimization_level)
        return session(source, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noting)
    regraft.compile(nn.Linear(4, 3).eval(), (torch.randn(2, 4),))
    assert levels == [onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL]


def test_a_saved_model_keeps_its_layout(block: Block, tmp_path: Path) -> None:
    x = torch.randn(2, 16, 8, 8)
    compiled = regraft.compile(block, (x,))
    compiled.save(tmp_path / "block.regraft")
    assert torch.equal(regraft.load(tmp_path / "block.regraft")(x), compiled(x))
