"""FlashSVD's feed-forward block: Zishan-Shao/FlashSVD, src/utils/SVDBlocks.py, both layers as SVDs.

``gelu((x U1) V1 + b1) U2 V2 + b2``; the kernel streams over the hidden features and keeps what is rank wide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

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
