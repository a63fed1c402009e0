"""Feature maps in ONNX Runtime's blocked layout across the arms of conditions."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.testing import assert_close, randomise

#: A whole block, one and a half, and fewer than one: the last block of the latter has lanes to spare.
CHANNELS = (32, 24, 5)


class Skipped(nn.Module):
    """A residual block that a gate may skip."""

    def __init__(self, channels: int, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = activation

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        if gate > 0:
            return self.activation(x + self.second(self.activation(self.first(x))))
        return x


class Chain(nn.Module):
    """Such blocks in a row, as in SkipNet and BlockDrop."""

    def __init__(self, channels: int = 32, depth: int = 4, **rest: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(Skipped(channels, **rest) for _ in range(depth))

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for index, block in enumerate(self.blocks):
            x = block(x, gates[index])
        return x.mean((2, 3))


def check(model: nn.Module, inputs: list[tuple[Any, ...]], **options: Any) -> regraft.CompiledModel:
    """``model`` compiled gives eager's values for each of ``inputs``."""
    model = randomise(model).eval()
    compiled = regraft.compile(model, inputs[0], cache=False, backends=("ort",), **options)
    for given in inputs:
        expected = model.double()(*(t.double() for t in given))
        eager = model.float()(*given)
        assert_close(_flat(compiled(*given)), _flat(expected), _flat(eager))
    return compiled


def _flat(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """The ops of the last session's model as it was opened, those of all its graphs."""
    found: list[Counter[str]] = []
    session = onnxruntime.InferenceSession

    def opening(path: str, *args: Any, **kwargs: Any) -> onnxruntime.InferenceSession:
        nodes = ir.load(path).graph.all_nodes()
        found.append(Counter(node.op_type for node in nodes))
        return session(path, *args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)
    return lambda: found[-1]


needs_blocks = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"), reason="other CPUs have no such layout"
)

GATES = [torch.tensor(g) for g in ([1.0, 1, 1, 1], [-1.0, -1, -1, -1], [1.0, -1, 1, -1], [-1.0, 1, 1, -1])]


@needs_blocks
def test_a_chain_of_skipped_blocks_stays_in_blocks(left: Callable[[], Counter[str]]) -> None:
    """Each block is two convolutions: its sum and its activation are parts of the second."""
    x = torch.randn(1, 3, 9, 9)
    check(Chain(), [(x, gate) for gate in GATES])
    found = left()
    assert found["Conv"] == 9
    assert found["If"] == 4
    assert found["ReorderInput"] == 0
    assert found["ReorderOutput"] <= 2  # for the mean, which each arm of the last condition may take
    assert (found["Add"], found["Relu"]) == (0, 0)


class Both(nn.Module):
    """An arm returns the result of a convolution as it is, and in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inside = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        if gate > 0:
            y = self.inside(x)
            return y, x + y
        return x, x + 1


@needs_blocks
def test_a_convolution_that_is_returned_is_computed_once(left: Callable[[], Counter[str]]) -> None:
    x = torch.randn(1, 3, 9, 9)
    check(Both(), [(x, torch.tensor(1.0)), (x, torch.tensor(-1.0))])
    assert left()["Conv"] == 2


@pytest.mark.parametrize(
    ("channels", "activation"),
    [(32, torch.tanh), (24, torch.sigmoid), (5, torch.relu), (24, nn.functional.hardswish)],
)
def test_any_number_of_channels(channels: int, activation: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 3, 7, 6)
    check(Chain(channels, 3, activation=activation), [(x, gate) for gate in GATES])


class Mixed(nn.Module):
    """A sum of a convolution and of what a condition gives: a convolution, or none."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem, self.fine = (nn.Conv2d(n, channels, 3, padding=1) for n in (3, channels))
        self.side, self.last = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        wide = nn.functional.gelu(x)
        if x.mean() > 0:
            y = self.fine(wide)
        else:
            y = nn.functional.softplus(wide)
        return self.last(torch.relu(self.side(wide) + y))


@pytest.mark.parametrize("channels", [6, 8, 21])
def test_a_plain_arm_of_any_number_of_channels(channels: int) -> None:
    check(Mixed(channels), [(torch.rand(1, 3, 8, 8) + offset,) for offset in (-9.0, 9.0)])


def test_open_sizes() -> None:
    shapes = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=4)}, "gates": None}
    sizes = [(2, 8), (1, 5), (3, 13)]
    inputs = [(torch.randn(b, 3, h, 6), gate) for (b, h), gate in zip(sizes, GATES, strict=False)]
    check(Chain(24, 3), inputs, dynamic_shapes=shapes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    model = randomise(Chain(24, 3)).eval().to(dtype)
    inputs = [(torch.randn(1, 3, 9, 9, dtype=dtype), gate.to(dtype)) for gate in GATES]
    compiled = regraft.compile(model, inputs[0], cache=False, backends=("ort",))
    eager = [model(*given) for given in inputs]
    exact = model.double()
    for given, value in zip(inputs, eager, strict=True):
        assert_close([compiled(*given)], [exact(*(t.double() for t in given))], [value])


def test_saved_and_loaded(tmp_path: Path) -> None:
    inputs = [(torch.randn(1, 3, 9, 9), gate) for gate in GATES]
    compiled = check(Chain(), inputs)
    compiled.save(tmp_path / "chain")
    loaded = regraft.load(tmp_path / "chain")
    for given in inputs:
        assert torch.equal(loaded(*given), compiled(*given))


def test_new_weights() -> None:
    model, given = Chain().eval(), (torch.randn(1, 3, 9, 9), GATES[0])
    compiled = check(model, [given])
    randomise(model, seed=1)
    compiled.refresh(model)
    assert_close([compiled(*given)], [model.double()(*(t.double() for t in given))])


# -- networks by chance ------------------------------------------------------------------------------


class Piece(nn.Module):
    """What a network by chance is made of: ``kind`` and what it holds."""

    def __init__(self, generator: random.Random, channels: int, depth: int) -> None:
        super().__init__()
        kinds = ["conv", "conv", "depthwise", "relu", "sigmoid", "double", "residual", "gated", "pool"]
        self.kind = generator.choice(kinds + ["cond", "cond", "exit", "squeeze"] * (depth > 0))
        self.at = generator.uniform(-0.3, 0.3)
        groups = channels if self.kind == "depthwise" else 1
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
        self.inner = nn.ModuleList()
        if self.kind in ("cond", "exit", "squeeze"):
            self.inner.extend(Row(generator, channels, depth - 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "conv" | "depthwise":
                return self.conv(x)
            case "relu":
                return torch.relu(x)
            case "sigmoid":
                return torch.sigmoid(x)
            case "double":
                return x + x
            case "residual":
                return torch.relu(self.conv(x) + x)
            case "gated":
                return x * torch.sigmoid(self.conv(x))
            case "pool":
                return nn.functional.max_pool2d(x, 3, 1, 1)
            case _:
                return self.branched(x)

    def branched(self, x: Tensor) -> Tensor:
        first, second = self.inner
        if self.kind == "cond":
            return first(x) if x.mean() > self.at else second(x)
        y = self.conv(x)
        if self.kind == "exit":
            return first(torch.relu(y)) + x if y.mean() > self.at else y
        z = y.mean((2, 3), keepdim=True)
        if x.mean() > self.at:
            y, z = first(y), z * 2
        return second(y) * torch.tanh(z)


class Row(nn.Module):
    def __init__(self, generator: random.Random, channels: int, depth: int) -> None:
        super().__init__()
        count = generator.randint(0 if depth < 2 else 4, 5)
        self.pieces = nn.ModuleList(Piece(generator, channels, depth) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for piece in self.pieces:
            x = piece(x)
        return x


class Network(nn.Module):
    """Ends in the feature map too: it leaves in the plain order."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = random.Random(seed)
        channels = generator.choice(CHANNELS)
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.row = Row(generator, channels, 2)
        self.end = nn.Conv2d(channels, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.row(torch.relu(self.stem(x)))
        return x, self.end(x)


@pytest.mark.parametrize("seed", range(6))
def test_networks_by_chance(seed: int) -> None:
    check(Network(seed), [(torch.randn(1, 3, 6, 7) + shift,) for shift in (-1.0, -0.2, 0.0, 0.3, 2.0)])


@pytest.mark.conformance
@pytest.mark.parametrize("seed", range(6, 120))
def test_more_networks_by_chance(seed: int) -> None:
    test_networks_by_chance(seed)
