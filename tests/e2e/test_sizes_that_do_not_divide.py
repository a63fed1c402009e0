"""Ranks, blocks and widths that do not divide: an error of the model's own line, or the same values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import regraft
from regraft.errors import CaptureError
from tests.zoo.checking import at_sizes, check
from tests.zoo.test_low_rank import BlockDense, BlockShuffle, LowRank
from tests.zoo.test_supernets import MatFormerBlock

SIZES = [{"S": 6}, {"S": 1}, {"S": 13}]


def test_blocks_that_do_not_divide_the_width() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Parameter(torch.zeros(4, 4, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = x.view(x.shape[0], 4, -1).transpose(0, 1)  # 18 features are not 4 blocks
            return torch.bmm(x, self.blocks).transpose(0, 1).flatten(1)

    with pytest.raises(CaptureError) as caught:
        regraft.compile(Cut().eval(), (torch.ones(5, 18),))
    path, _, line = caught.value.location.rpartition(":")
    assert "18 features are not 4 blocks" in Path(path).read_text().splitlines()[int(line) - 1]


def test_factors_that_do_not_fit_each_other() -> None:
    layers = nn.Sequential(nn.Linear(16, 5, bias=False), nn.Linear(6, 24))
    with pytest.raises(CaptureError, match=r"5.*6|shapes"):
        regraft.compile(layers.eval(), (torch.ones(3, 16),))


@pytest.mark.parametrize("rank", [1, 7, 23])
def test_ranks_and_widths_without_a_common_divisor(rank: int) -> None:
    model = nn.Sequential(LowRank(17, 29, rank), nn.GELU(), LowRank(29, 17, rank))
    inputs = at_sizes([2, "S", 17], SIZES)
    check(model, *inputs, rewrites={"MergedLinear": 2}, dynamic_shapes=({1: Dim.AUTO},))


@pytest.mark.parametrize("layer", [BlockDense(15, 7, rank=9, nblocks=3), BlockShuffle(15, 21, nblocks=3)])
def test_odd_blocks(layer: nn.Module) -> None:
    inputs = at_sizes([2, "S", 15], SIZES)
    check(layer, *inputs, rewrites={"MergedLinear": 1}, dynamic_shapes=({1: Dim.AUTO},))


def test_a_part_of_the_hidden_features_that_is_rounded_down() -> None:
    """A third of 64 features are 21."""
    compiled = check(
        MatFormerBlock(factor=3), *at_sizes([2, "S", 16], SIZES), dynamic_shapes=({1: Dim.AUTO},)
    )
    assert "[21, 16]" in compiled.ir


def test_chunks_of_unequal_width() -> None:
    """``chunk`` of 10 features into 4 gives 3, 3, 3 and 1."""

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(n, 4, bias=False) for n in (3, 3, 3, 1))
            self.mix = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            pieces = [f(part) for f, part in zip(self.parts, x.chunk(4, dim=-1), strict=True)]
            return F.relu(self.mix(torch.cat(pieces, dim=-1)))

    inputs = at_sizes([2, "S", 10], SIZES)
    check(Uneven(), *inputs, rewrites={"MergedLinear": 1}, dynamic_shapes=({1: Dim.AUTO},))
