"""Features in the order in which least is moved: through whole compiles, and what has to stay as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.ir import Example, Module, RewritePass
from regraft.rewrites import CANONICAL, LINEAR
from regraft.testing import assert_close, randomise, rewrite_cases
from tests.rewrites.graphs import graph, run
from tests.zoo.test_low_rank import MLP, BlockShuffle

(SHUFFLED,) = [rewrite for rewrite in LINEAR if rewrite.name == "ShuffledFeatures"]


def cases(*examples: Example) -> list[Any]:
    """The derived tests of examples that are not part of the rewrite itself."""
    more = type("More", (type(SHUFFLED),), {"examples": examples, "counterexamples": ()})
    return [case for case in rewrite_cases(more()) if not case.id.endswith("mutants-are-caught")]


def in_turn(op: Any, made: Any) -> Any:
    """Blocks ``[2, N, 32]`` as rows of 64 features, one of each block in turn."""
    return op.aten.view(op.aten.permute(made, (1, 2, 0)), (made.tensor.shape[1], 64))


def raised(op: Any, x: Any, first: Any) -> Any:
    return in_turn(op, op.aten.matmul(x, first))


def chain(op: Any, x: Any, first: Any, scale: Any, shift: Any, second: Any) -> Any:
    """Elementwise ops of one and of two operands, the constant on either side."""
    mixed = op.aten.tanh(op.aten.mul.Tensor(raised(op, x, first), scale))
    return op.aten.linear(op.aten.sub.Tensor(shift, op.aten.mul.Scalar(mixed, 0.5)), second)


def before_the_view(op: Any, x: Any, first: Any, scale: Any, second: Any) -> Any:
    """A constant where features still stand on two axes."""
    apart = op.aten.permute(op.aten.matmul(x, first), (1, 2, 0))
    flat = op.aten.view(op.aten.mul.Tensor(apart, scale), (x.tensor.shape[1], 64))
    return op.aten.linear(flat, second)


def chosen(op: Any, x: Any, first: Any, seen: Any, other: Any, second: Any) -> Any:
    """Three operands, two of them constant."""
    return op.aten.linear(op.aten.where.self(seen, raised(op, x, first), other), second)


def two_in_a_row(op: Any, x: Any, first: Any, second: Any, third: Any) -> Any:
    """Two shuffles one after the other, each between products."""
    flat = op.aten.view(op.aten.relu(raised(op, x, first)), (x.tensor.shape[1], 2, 32))
    again = op.aten.matmul(op.aten.permute(flat, (1, 0, 2)), second)
    return op.aten.linear(in_turn(op, again), third)


BLOCKS = ("f32[2, N, 16]", "f32[2, 16, 32]")
THREE_ROWS = ("f32[2, 3, 16]", "f32[2, 16, 32]")
WAYS = (
    Example(chain, (*BLOCKS, "f32[64]", "f32[1, 64]", "f32[5, 64]"), constants=(1, 2, 3, 4)),
    Example(chain, (*BLOCKS, "f32[1]", "f32[1, 1]", "f32[5, 64]"), constants=(1, 2, 3, 4)),
    Example(chain, (*THREE_ROWS, "f32[3, 64]", "f32[3, 1]", "f32[5, 64]"), constants=(1, 2, 3, 4)),
    Example(before_the_view, (*BLOCKS, "f32[32, 1]", "f32[5, 64]"), constants=(1, 2, 3)),
    Example(before_the_view, (*BLOCKS, "f32[2]", "f32[5, 64]"), constants=(1, 2, 3)),
    Example(chosen, (*BLOCKS, "bool[64]", "f32[]", "f32[5, 64]"), constants=(1, 2, 3, 4)),
    Example(two_in_a_row, (*BLOCKS, "f32[2, 32, 32]", "f32[5, 64]"), constants=(1, 2, 3), count=2),
)


@pytest.mark.parametrize("case", cases(*WAYS), ids=lambda case: case.id)
def test_ways(case: Any) -> None:
    case.run()


def swapped(op: Any, x: Any, first: Any, second: Any) -> Any:
    """The channels of two groups in turn, between two layers."""
    apart = op.aten.view(op.aten.linear(x, first), (x.tensor.shape[0], 2, 32))
    return op.aten.linear(op.aten.view(op.aten.permute(apart, (0, 2, 1)), (x.tensor.shape[0], 64)), second)


def moved(module: Module) -> list[tuple[int, ...]]:
    """The permutations of what is not constant."""
    known = {v for op in module.main.body.ops if op.name == "rg.const" for v in op.results}
    found: list[tuple[int, ...]] = []
    for op in module.main.body.ops:
        if op.operands and all(v in known for v in op.operands):
            known |= set(op.results)
        elif op.name == "aten.permute":
            found.append(tuple(op.attr("dims")))
    return found


def settled(module: Module) -> Module:
    run(RewritePass("shuffle", "fuse", (SHUFFLED, *CANONICAL)), module)
    return module


def test_nothing_moves_between_two_layers() -> None:
    assert moved(settled(graph(swapped, "f32[N, 8]", "f32[64, 8]", "f32[5, 64]", constants=(1, 2)))) == []


def test_a_weight_that_others_read_stays() -> None:
    """Its copy in another order would take its memory again."""

    def build(op: Any, x: Any, y: Any, first: Any, second: Any) -> tuple[Any, Any]:
        return op.aten.linear(raised(op, x, first), second), op.aten.linear(y, second)

    module = graph(build, BLOCKS[0], "f32[N, 64]", BLOCKS[1], "f32[5, 64]", constants=(2, 3))
    assert moved(settled(module)) == [(1, 2, 0)]


class Shuffled(nn.Module):
    """A block-shuffle FFN with a residual, and a norm behind it."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.ffn = MLP(BlockShuffle, 256, 512)
        self.norm = nn.LayerNorm(256) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.ffn(x) + x)


def compare(model: nn.Module, found: Tensor, x: Tensor) -> None:
    """The numerics rule."""
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        assert_close(found, expected, model(x), reassociates=True)


@pytest.mark.parametrize(("norm", "symbolic"), [(False, True), (True, False)])
def test_block_shuffle_ffn(norm: bool, symbolic: bool, tmp_path: Path) -> None:
    """Pieces move between the products of a layer and between layers; the last shuffle is of the result."""
    model = randomise(Shuffled(norm).eval())
    x = torch.randn(2, 9, 256)
    shapes = ({0: Dim.AUTO, 1: Dim.AUTO},) if symbolic else None
    compiled = regraft.compile(model, (x,), dynamic_shapes=shapes, memory_limit=0, verify="each")
    assert compiled.report.rewrites["ShuffledFeatures"].hits == 3
    regraft.export_onnx(model, (x,), tmp_path / "model.onnx", dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for rows in ((2, 9), (1, 1), (3, 7)) if symbolic else ((2, 9),):
        y = torch.randn(*rows, 256)
        (written,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
        for found in (compiled(y), torch.from_numpy(written)):
            compare(model, found, y)


def test_in_double_precision() -> None:
    model = randomise(Shuffled().eval()).double()
    x = torch.randn(2, 9, 256, dtype=torch.float64)
    compiled = regraft.compile(model, (x,), memory_limit=0)
    assert compiled.report.rewrites["ShuffledFeatures"].hits == 3
    compare(model, compiled(x), x)


def test_weights_change(tmp_path: Path) -> None:
    """The orders are recipes, which a refresh and an artefact follow."""
    model, x = randomise(Shuffled().eval()), torch.randn(2, 9, 256)
    compiled = regraft.compile(model, (x,), memory_limit=0)
    randomise(model, seed=1)
    compiled.refresh(model)
    compare(model, compiled(x), x)
    compiled.save(tmp_path / "model.regraft")
    assert torch.equal(regraft.load(tmp_path / "model.regraft")(x), compiled(x))
