"""Feed-forward networks, spelled by somebody who had not seen what recognises them.

Not edited to suit a recogniser. The originals are in ``test_gated_ffn`` and ``test_flash_svd`` one folder up.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check, normal

SIZES = [{"S": 6}, {"S": 1}, {"S": 19}]


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


class GatedEinsum(nn.Module):
    def __init__(self, width: int = 16, hidden: int = 40) -> None:
        super().__init__()
        self.gate, self.up, self.down = zeros(width, hidden), zeros(width, hidden), zeros(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.einsum("btd,df->btf", x, self.gate)
        up = torch.einsum("btd,df->btf", x, self.up)
        return torch.einsum("btf,fd->btd", F.silu(gate) * up, self.down)


class GatedRows(nn.Module):
    """Flat rows, and the gate multiplied in place."""

    def __init__(self, width: int = 16, hidden: int = 40) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = zeros(hidden, width), zeros(width, hidden), zeros(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.size(-1))
        hidden = F.gelu(torch.mm(rows, self.w1.t()))
        hidden *= torch.mm(rows, self.w3.t())
        return torch.mm(hidden, self.w2.t()).reshape(x.shape)


class GatedColumns(nn.Module):
    """GeGLU with weights ``[in, out]``, biases that are buffers, the gate behind."""

    def __init__(self, width: int = 16, hidden: int = 40) -> None:
        super().__init__()
        self.u, self.g, self.d = zeros(width, hidden), zeros(width, hidden), zeros(hidden, width)
        self.register_buffer("bu", torch.zeros(hidden))
        self.register_buffer("bg", torch.zeros(hidden))
        self.register_buffer("bd", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        gate = F.gelu(self.bg + x @ self.g, approximate="tanh")
        return ((x @ self.u + self.bu) * gate) @ self.d + self.bd


@pytest.mark.parametrize("form", [GatedEinsum, GatedRows, GatedColumns])
def test_gated(form: type[nn.Module]) -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    check(form(), *inputs, rewrites={"GatedFFN": 1}, dynamic_shapes=({1: Dim.AUTO},))


class PlainEinsum(nn.Module):
    def __init__(self, width: int = 16, hidden: int = 40) -> None:
        super().__init__()
        self.w1, self.b1 = zeros(hidden, width), zeros(hidden)
        self.w2, self.b2 = zeros(width, hidden), zeros(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(torch.einsum("fd,btd->btf", self.w1, x) + self.b1)
        return torch.einsum("btf,df->btd", hidden, self.w2) + self.b2


class PlainConvolutions(nn.Module):
    """A position-wise network as two convolutions of width 1, as early Transformer code had it."""

    def __init__(self, width: int = 16, hidden: int = 40) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Conv1d(width, hidden, 1), nn.Conv1d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        output = x.transpose(1, 2)
        output = self.w_2(F.relu(self.w_1(output)))
        return output.transpose(1, 2)


class PlainRows(nn.Module):
    """Flat rows and ``addmm``, as GPT-2's ``Conv1D`` has it."""

    def __init__(self, width: int = 16, hidden: int = 40) -> None:
        super().__init__()
        self.w1, self.b1 = zeros(width, hidden), zeros(hidden)
        self.w2, self.b2 = zeros(hidden, width), zeros(width)

    def forward(self, x: Tensor) -> Tensor:
        size = x.size()
        hidden = F.gelu(torch.addmm(self.b1, x.view(-1, size[-1]), self.w1), approximate="tanh")
        return torch.addmm(self.b2, hidden, self.w2).view(size)


@pytest.mark.parametrize("form", [PlainEinsum, PlainConvolutions, PlainRows])
def test_plain(form: type[nn.Module]) -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    check(form(), *inputs, rewrites={"PlainFFN": 1}, dynamic_shapes=({1: Dim.AUTO},))


def low_rank_layers(dim: int = 32, hidden: int = 128, rank: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Linear(dim, rank, bias=False),
        nn.Linear(rank, hidden),
        nn.GELU(approximate="tanh"),
        nn.Linear(hidden, rank, bias=False),
        nn.Linear(rank, dim),
    )


class LowRankEinsum(nn.Module):
    def __init__(self, dim: int = 32, hidden: int = 128, rank: int = 4) -> None:
        super().__init__()
        self.a1, self.b1, self.bias1 = zeros(rank, dim), zeros(hidden, rank), zeros(hidden)
        self.a2, self.b2, self.bias2 = zeros(rank, hidden), zeros(dim, rank), zeros(dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("btr,fr->btf", torch.einsum("btd,rd->btr", x, self.a1), self.b1)
        hidden = F.relu(hidden + self.bias1)
        return torch.einsum("btr,dr->btd", torch.einsum("btf,rf->btr", hidden, self.a2), self.b2) + self.bias2


class LowRankRows(nn.Module):
    """Flat rows, weights ``[in, out]``, everything ``mm`` and ``addmm``."""

    def __init__(self, dim: int = 32, hidden: int = 128, rank: int = 4) -> None:
        super().__init__()
        self.u1, self.v1, self.b1 = zeros(dim, rank), zeros(rank, hidden), zeros(hidden)
        self.u2, self.v2, self.b2 = zeros(hidden, rank), zeros(rank, dim), zeros(dim)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        hidden = torch.addmm(self.b1, rows.mm(self.u1), self.v1)
        hidden = F.silu(hidden)
        return torch.addmm(self.b2, hidden.mm(self.u2), self.v2).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("form", [low_rank_layers, LowRankEinsum, LowRankRows])
def test_low_rank_of_many_rows_is_streamed(form: type[nn.Module]) -> None:
    rows = 2048
    compiled = check(form(), (normal(1, rows, 32),), rewrites={"PlainFFN": 1, "StreamedFFN": 1})
    assert compiled.report.memory["intermediates"] < 0.4 * 2 * 4 * rows * 128
