"""Convolutions in ONNX Runtime's blocked layout: which of its transformers run, and with what constants."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

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


def test_only_the_transformers_for_convolutions_run(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "block.onnx"
    regraft.export_onnx(block, (torch.randn(1, 16, 8, 8),), path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    ran = set(re.findall(r"GraphTransformer (\w+)", done.stderr))
    assert ran - ALWAYS == {"NchwcTransformer", "ConvActivationFusion", "Level1_RuleBasedTransformer"}


@pytest.fixture
def optimised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The nodes of the last session as ONNX Runtime has optimised it, named ``domain.op``."""
    import onnxruntime

    session, path = onnxruntime.InferenceSession, tmp_path / "optimised.onnx"

    def saving(source: str, options: onnxruntime.SessionOptions, **rest: object) -> object:
        options.optimized_model_filepath = str(path)
        return session(source, options, **rest)

    def nodes() -> list[str]:
        found = onnx.load(str(path), load_external_data=False).graph.node
        return [f"{node.domain}.{node.op_type}".removeprefix("com.microsoft.") for node in found]

    monkeypatch.setattr(onnxruntime, "InferenceSession", saving)
    return nodes


def test_convolutions_are_blocked(block: Block, optimised: Callable[[], list[str]]) -> None:
    x = torch.randn(2, 16, 8, 8)
    compiled = regraft.compile(block, (x,))
    assert optimised().count("nchwc.Conv") == 2
    assert ".Conv" not in optimised()
    assert_close([compiled(x)], [block.double()(x.double())])


def test_a_norm_of_16_bits_goes_into_the_convolution(
    block: Block, optimised: Callable[[], list[str]]
) -> None:
    """Its factors are multiplied in f32 and rounded nowhere, as our own rewrite could not."""
    half, x = copy.deepcopy(block).bfloat16(), torch.randn(2, 16, 8, 8).bfloat16()
    compiled = regraft.compile(half, (x,))
    found = optimised()
    assert found.count("nchwc.Conv") == 2
    assert sum("BatchNormalization" in name for name in found) == 1  # that behind a clamp
    assert_close([compiled(x)], [copy.deepcopy(half).double()(x.double())], [half(x)])


class Activated(nn.Module):
    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.second = nn.Conv2d(16, 16, 3, groups=16)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.second(self.activation(self.first(x))))


ACTIVATIONS = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "hardsigmoid": functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "from below": lambda x: x.clamp(min=0.1),
    "from above": lambda x: x.clamp(max=0.1),
    "bounds that cross": lambda x: x.clamp(2, 1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_in_a_convolution_keeps_nan(name: str) -> None:
    model = randomise(Activated(ACTIVATIONS[name]).eval())
    x = torch.randn(1, 3, 9, 9)
    compiled = regraft.compile(model, (x,))
    x[0, 1, 4, 4] = float("nan")
    assert_close([compiled(x)], [model.double()(x.double())])


@pytest.mark.parametrize("name", ["relu", "relu6"])
def test_an_activation_goes_into_the_convolution(name: str, optimised: Callable[[], list[str]]) -> None:
    regraft.compile(randomise(Activated(ACTIVATIONS[name]).eval()), (torch.randn(1, 3, 9, 9),))
    assert set(optimised()) <= {"nchwc.Conv", "nchwc.ReorderInput", "nchwc.ReorderOutput"}


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(functional.interpolate(self.first(x), scale_factor=2, mode="nearest"))


def test_repeated_pixels_stay_in_blocks(optimised: Callable[[], list[str]]) -> None:
    model, x = randomise(Upsampled().eval()), torch.randn(2, 3, 8, 6)
    shapes = {"x": {2: torch.export.Dim("height", min=4), 3: torch.export.Dim("width", min=4)}}
    compiled = regraft.compile(model, (x,), dynamic_shapes=shapes)
    assert "nchwc.Upsample" in optimised()
    results = [(x, compiled(x)) for x in (torch.randn(2, 3, 8, 6), torch.randn(2, 3, 5, 11))]
    reference = model.double()
    for x, result in results:
        assert_close([result], [reference(x.double())])


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
