"""Large block-diagonal layers as products of their own: through whole compiles, and in files."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.ir import Example, RewritePass
from regraft.rewrites import CANONICAL, LINEAR
from regraft.testing import assert_close, randomise, rewrite_cases
from tests.rewrites.graphs import graph, names, run
from tests.zoo.test_low_rank import MLP, BlockShuffle

(APART,) = [rewrite for rewrite in LINEAR if rewrite.name == "BlocksApart"]
MATRICES = "f32[2, 256, 256]"
LARGE, TALL = "f32[2, 256, 512]", "f32[2, 512, 128]"


def cases(*examples: Example) -> list[Any]:
    """The derived tests of examples that are not part of the rewrite itself."""
    more = type("More", (type(APART),), {"examples": examples, "counterexamples": ()})
    return [case for case in rewrite_cases(more()) if not case.id.endswith("mutants-are-caught")]


def by_blocks(op: Any, x: Any, weight: Any) -> Any:
    count, wide, _ = weight.tensor.shape
    split = op.aten.view(x, (x.tensor.shape[0], count, wide))
    return op.aten.matmul(op.aten.permute(split, (1, 0, 2)), weight)


def dealt(op: Any, made: Any, size: int) -> Any:
    """A piece of each of two blocks to each of two."""
    rows = made.tensor.shape[1]
    apart = op.aten.permute(op.aten.view(made, (2, rows, 2, size)), (1, 2, 0, 3))
    return op.aten.view(apart, (rows, 4 * size))


def scaled_by_piece(op: Any, x: Any, first: Any, scale: Any, second: Any) -> Any:
    """A factor for each piece, which is neither one for all features of a block nor one for each."""
    flat = op.aten.view(dealt(op, by_blocks(op, x, first), 128), (x.tensor.shape[0], 4, 128))
    scaled = op.aten.view(op.aten.mul.Tensor(flat, scale), (x.tensor.shape[0], 512))
    return by_blocks(op, scaled, second)


def scaled_by_block(op: Any, x: Any, first: Any, scale: Any, second: Any) -> Any:
    """A factor for each block that reads, before the axes are joined."""
    rows = x.tensor.shape[0]
    made = op.aten.view(by_blocks(op, x, first), (2, rows, 2, 128))
    apart = op.aten.mul.Tensor(op.aten.permute(made, (1, 2, 0, 3)), scale)
    return by_blocks(op, op.aten.view(apart, (rows, 512)), second)


def wide_pieces(op: Any, x: Any, first: Any, bias: Any, second: Any) -> Any:
    """Pieces so large that each is a product of its own; the blocks of the first layer have a bias each."""
    made = op.aten.add.Tensor(by_blocks(op, x, first), bias)
    return by_blocks(op, op.aten.relu(dealt(op, made, 256)), second)


def read_elsewhere(op: Any, x: Any, first: Any, second: Any) -> tuple[Any, Any]:
    flat = dealt(op, by_blocks(op, x, first), 128)
    return by_blocks(op, flat, second), op.aten.exp(flat)


WAYS = (
    Example(scaled_by_piece, ("f32[7, 512]", MATRICES, "f32[4, 1]", MATRICES), constants=(1, 2, 3), count=2),
    Example(scaled_by_block, ("f32[7, 512]", MATRICES, "f32[2, 1, 1]", MATRICES), (1, 2, 3), count=2),
    Example(
        wide_pieces,
        ("f32[7, 512]", "f32[2, 256, 512]", "f32[2, 1, 512]", "f32[2, 512, 128]"),
        (1, 2, 3),
        "",
        2,
    ),
    Example(read_elsewhere, ("f32[7, 512]", MATRICES, MATRICES), constants=(1, 2), count=2),
)


@pytest.mark.parametrize("case", cases(*WAYS), ids=lambda case: case.id)
def test_ways(case: Any) -> None:
    case.run()


def test_what_others_read_is_made_once() -> None:
    """A layer of which something else needs the whole result is cut, and not multiplied in pieces as well."""

    def build(op: Any, x: Any, first: Any, second: Any) -> tuple[Any, Any]:
        made = by_blocks(op, x, first)
        return by_blocks(op, dealt(op, made, 256), second), op.aten.exp(made)

    module = graph(build, "f32[7, 512]", LARGE, TALL, constants=(1, 2))
    run(RewritePass("apart", "fuse", (APART, *CANONICAL)), module)
    assert Counter(names(module))["aten.linear"] == 4


def ffn() -> nn.Module:
    return randomise(MLP(BlockShuffle, 1024, 2048).eval())


def compare(model: nn.Module, found: Tensor, x: Tensor) -> None:
    """The numerics rule."""
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        assert_close(found, expected, model(x), reassociates=True)


def operators(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(file, load_external_data=False).graph.node)


@pytest.mark.parametrize("symbolic", [False, True])
def test_block_shuffle_ffn(symbolic: bool, tmp_path: Path) -> None:
    """Products have one matrix each, features go from block to block in pieces, biases are in the GELUs."""
    model, x = ffn(), torch.randn(1, 9, 1024)
    shapes = ({1: Dim.AUTO},) if symbolic else None
    compiled = regraft.compile(model, (x,), dynamic_shapes=shapes, memory_limit=0)
    hits = {name: compiled.report.rewrites[name].hits for name in ("ShuffledFeatures", "BlocksApart")}
    assert hits == {"ShuffledFeatures": 3, "BlocksApart": 4}
    assert compiled.ir.count("rg.alt(") == symbolic, "one row is multiplied by matrices as they are"
    regraft.export_onnx(model, (x,), tmp_path / "model.onnx", dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for length in (9, 1, 40) if symbolic else (9,):
        y = torch.randn(1, length, 1024)
        (written,) = session.run(None, {session.get_inputs()[0].name: y.numpy()})
        for found in (compiled(y), torch.from_numpy(written)):
            compare(model, found, y)
    if not symbolic:
        found = operators(tmp_path / "model.onnx")
        assert (found["MatMul"], found["FastGelu"], found["Transpose"], found["Slice"]) == (0, 4, 0, 0)


def test_one_row_is_multiplied_by_matrices_as_they_are() -> None:
    model, x = ffn(), torch.randn(1, 1, 1024)
    compiled = regraft.compile(model, (x,), memory_limit=0)
    assert compiled.report.rewrites["BlocksApart"].hits == 0
    compare(model, compiled(x), x)


def test_weights_change(tmp_path: Path) -> None:
    """Matrices are recipes of the model's own, which a refresh and an artefact follow."""
    model, x = ffn(), torch.randn(2, 9, 1024)
    compiled = regraft.compile(model, (x,), memory_limit=0)
    randomise(model, seed=1)
    compiled.refresh(model)
    compare(model, compiled(x), x)
    compiled.save(tmp_path / "model.regraft")
    assert torch.equal(regraft.load(tmp_path / "model.regraft")(x), compiled(x))
