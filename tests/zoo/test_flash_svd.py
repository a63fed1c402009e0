"""FlashSVD's feed-forward block: Zishan-Shao/FlashSVD, src/utils/SVDBlocks.py, both layers as SVDs.

``gelu((x U1) V1 + b1) U2 V2 + b2``; the kernel streams over the hidden features and keeps what is rank wide.
SwiGLU with all three layers as factors: kernels/mlp/decode/dual_split_triton.py (``gate = silu(Pg Gu)``,
``up = Pu Uu``, ``(gate * up) DownV``).
"""

from __future__ import annotations

import copy
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import regraft
from regraft.testing import assert_close, randomise
from tests.zoo.checking import at_sizes, check, normal


class SVDFeedForward(nn.Module):
    def __init__(self, dim: int = 32, hidden: int = 128, rank: int = 4) -> None:
        super().__init__()
        self.U1, self.V1 = nn.Parameter(torch.zeros(dim, rank)), nn.Parameter(torch.zeros(rank, hidden))
        self.U2, self.V2 = nn.Parameter(torch.zeros(hidden, rank)), nn.Parameter(torch.zeros(rank, dim))
        self.b1, self.b2 = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        mid = x @ self.U1
        hidden = F.gelu(mid @ self.V1 + self.b1)
        return (hidden @ self.U2) @ self.V2 + self.b2


class SVDSwiGLU(nn.Module):
    """Llama's MLP, each layer as two factors."""

    def __init__(self, dim: int = 64, hidden: int = 1024, rank: int = 8, packed: bool = False) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(dim, rank, bias=False) for _ in range(2))
        self.gate, self.up = nn.Linear(rank, hidden, bias=False), nn.Linear(rank, hidden)
        self.down_v, self.down_u = nn.Linear(hidden, rank, bias=False), nn.Linear(rank, dim, bias=False)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            both = F.linear(x, torch.cat([layer.weight for layer in self.first]))
            pg, pu = both.chunk(2, dim=-1)
        else:
            pg, pu = (layer(x) for layer in self.first)
        return self.down_u(self.down_v(F.silu(self.gate(pg)) * self.up(pu)))


SWIGLU = {"LowRankGatedFFN": 1, "StreamedFFN": 1}


@pytest.mark.parametrize("packed", [False, True])
def test_gated_network_of_factors(packed: bool) -> None:
    rows = 2048
    compiled = check(SVDSwiGLU(packed=packed), (normal(1, rows, 64),), rewrites=SWIGLU)
    assert compiled.report.memory["intermediates"] < 0.4 * 2 * 4 * rows * 1024


@pytest.mark.parametrize("rows", [2, 3])
def test_any_number_of_rows(rows: int) -> None:
    """Few rows go at once, many by a loop whose last part may be short of some."""
    inputs = at_sizes([rows, "S", 64], [{"S": s} for s in (1024, 1, 170, 171, 255, 256, 257, 611)])
    compiled = check(SVDSwiGLU(), *inputs, rewrites=SWIGLU, dynamic_shapes=({1: Dim.AUTO},))
    assert compiled.report.memory["intermediates"] < 0.4 * 2 * 4 * rows * 1024 * 1024


def test_any_number_of_rows_without_a_gate() -> None:
    model = SVDFeedForward(dim=64, hidden=1024, rank=8)
    inputs = at_sizes(["B", 100, 64], [{"B": b} for b in (20, 1, 5, 6, 13)])
    fired = {"PlainFFN": 1, "StreamedFFN": 1}
    compiled = check(model, *inputs, rewrites=fired, dynamic_shapes=({0: Dim.AUTO},))
    assert compiled.report.memory["intermediates"] < 0.4 * 2 * 4 * 2000 * 1024


def test_any_number_of_rows_in_a_file(tmp_path: Path) -> None:
    model, path = randomise(SVDSwiGLU().eval()), tmp_path / "swiglu.onnx"
    example = (normal(1, 700, 64),)
    report = regraft.export_onnx(model, example, path, dynamic_shapes=({1: Dim.AUTO},), contrib=False)
    assert report.compile.rewrites["StreamedFFN"].hits == 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (700, 1, 511, 512, 1025):
        x = normal(1, rows, 64, seed=rows)
        (result,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            expected = copy.deepcopy(model).double()(x.double())
            assert_close(torch.from_numpy(result), expected, model(x), reassociates=True)


class GivenWeights(nn.Module):
    """A feed-forward block whose weights are arguments."""

    def forward(self, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(x, up)), down)


def test_any_number_of_rows_and_results() -> None:
    def given(rows: int, results: int) -> tuple[Tensor, ...]:
        return normal(rows, 2), normal(64, 2, seed=1), normal(results, 64, seed=2)

    sizes = {"x": {0: Dim("n", min=1, max=5000)}, "up": None, "down": {0: Dim("k", min=2, max=8)}}
    inputs = (given(7, 3), given(700, 8), given(513, 2))
    check(GivenWeights(), *inputs, rewrites={"StreamedFFN": 1}, dynamic_shapes=sizes)


def test_a_wide_gated_network_is_one_op_of_one_input() -> None:
    model = SVDSwiGLU(dim=64, hidden=128, rank=32)
    check(model, (normal(1, 600, 64),), rewrites={"LowRankGatedFFN": 0, "StreamedFFN": 0})


def test_svd_feed_forward() -> None:
    inputs = at_sizes([2, "S", 32], [{"S": 6}, {"S": 1}, {"S": 33}])
    check(SVDFeedForward(), *inputs, dynamic_shapes=({1: Dim.AUTO},))


def test_many_rows_are_streamed() -> None:
    """What is alive at once falls by more than 60 %, and every row is as it was."""
    rows = 2048
    compiled = check(SVDFeedForward(), (normal(1, rows, 32),), rewrites={"PlainFFN": 1, "StreamedFFN": 1})
    hidden = 4 * rows * 128
    assert compiled.report.memory["intermediates"] < 0.4 * 2 * hidden
    assert "rows_at_once = 256" in compiled.ir


def test_rows_that_do_not_divide() -> None:
    check(SVDFeedForward(), (normal(3, 211, 32),), rewrites={"StreamedFFN": 1})


def test_wide_ranks_are_not_streamed() -> None:
    check(SVDFeedForward(rank=24), (normal(1, 700, 32),), rewrites={"PlainFFN": 1, "StreamedFFN": 0})
