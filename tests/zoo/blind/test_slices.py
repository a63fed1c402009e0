"""Slices of weights, concatenations and tables, spelled by somebody who had not seen what recognises them.

Not edited to suit a recogniser. The originals are in ``tests/zoo/test_supernets``.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check, normal

SIZES = [{"S": 6}, {"S": 1}, {"S": 17}]


class NestedFFN(nn.Module):
    """The first quarter of an FFN's hidden features, taken in one of many ways."""

    def __init__(self, form: str, dim: int = 16, hidden: int = 64, part: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.register_buffer("kept", torch.arange(part))
        self.form, self.part = form, part

    def sliced(self, tensor: Tensor, dim: int) -> Tensor:
        if self.form == "narrow":
            return tensor.narrow(dim, 0, self.part)
        if self.form == "split":
            return tensor.split([self.part, tensor.shape[dim] - self.part], dim=dim)[0]
        return tensor.index_select(dim, self.kept)

    def forward(self, x: Tensor) -> Tensor:
        up = F.linear(x, self.sliced(self.up.weight, 0), self.sliced(self.up.bias, 0))
        return x + F.linear(torch.relu_(up), self.sliced(self.down.weight, 1), self.down.bias)


@pytest.mark.parametrize("form", ["narrow", "split", "index"])
def test_nested(form: str) -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    compiled = check(NestedFFN(form), *inputs, rewrites={"PlainFFN": 1}, dynamic_shapes=({1: Dim.AUTO},))
    graph = compiled.ir[compiled.ir.index("func @forward") :]
    assert not any(op in graph for op in ("aten.slice", "aten.index", "aten.split", "aten.narrow"))


class NestedResults(nn.Module):
    """The whole first product is formed and then cut, which is the product with a slice of the weight."""

    def __init__(self, dim: int = 16, hidden: int = 64, part: int = 16) -> None:
        super().__init__()
        self.up, self.down, self.part = nn.Linear(dim, hidden), nn.Linear(hidden, dim), part

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.up(x)[..., : self.part])
        return F.linear(hidden, self.down.weight[:, : self.part], self.down.bias)


def test_a_slice_of_a_result() -> None:
    compiled = check(NestedResults(), *at_sizes([2, "S", 16], SIZES), dynamic_shapes=({1: Dim.AUTO},))
    assert compiled.report.flops["after"] < 0.5 * compiled.report.flops["before"]


class PathHead(nn.Module):
    """A layer over one hidden state, the same for all paths, beside each path's own embedding."""

    def __init__(self, form: str, vocab: int = 40, dim: int = 16) -> None:
        super().__init__()
        self.embed, self.weight = nn.Embedding(vocab, dim), nn.Parameter(torch.zeros(dim, 2 * dim))
        self.bias, self.form = nn.Parameter(torch.zeros(dim)), form

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        embedded, paths = self.embed(ids), ids.shape[1]
        if self.form == "columns":
            both = torch.cat((hidden.expand(-1, paths, -1), embedded), -1)
            return F.silu(both @ self.weight.T + self.bias)
        if self.form == "repeat":
            both = torch.concat([embedded, hidden.repeat(1, paths, 1)], dim=2)
            return F.silu(F.linear(both, self.weight, self.bias))
        both = torch.cat([hidden.broadcast_to(embedded.shape), embedded], dim=-1)
        return F.silu(torch.einsum("bpd,od->bpo", both, self.weight).add_(self.bias))


@pytest.mark.parametrize("form", ["columns", "repeat", "einsum"])
def test_a_part_that_all_rows_share(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    arguments = [
        (normal(1, 1, 16, seed=p), torch.randint(0, 40, (1, p), generator=generator)) for p in (8, 2, 20)
    ]
    shapes = {"hidden": None, "ids": {1: Dim.AUTO}}
    check(PathHead(form), *arguments, rewrites={"SplitConcatenation": 1}, dynamic_shapes=shapes)


class ProjectedTable(nn.Module):
    def __init__(self, form: str, vocab: int = 40, narrow: int = 8, dim: int = 32) -> None:
        super().__init__()
        self.table, self.weight = (
            nn.Parameter(torch.zeros(vocab, narrow)),
            nn.Parameter(torch.zeros(dim, narrow)),
        )
        self.bias, self.form = nn.Parameter(torch.zeros(dim)), form

    def forward(self, ids: Tensor) -> Tensor:
        if self.form == "columns":
            return torch.tanh(F.embedding(ids, self.table) @ self.weight.t() + self.bias)
        if self.form == "index":
            return torch.tanh(F.linear(self.table[ids], self.weight, self.bias))
        rows = self.table.index_select(0, ids.flatten())
        return torch.addmm(self.bias, rows, self.weight.t()).tanh_().view(*ids.shape, -1)


@pytest.mark.parametrize("form", ["columns", "index", "rows"])
def test_a_table_of_results(form: str) -> None:
    ids = torch.randint(0, 40, (2, 30), generator=torch.Generator().manual_seed(0))
    arguments = (ids,), (ids[:1],)
    check(ProjectedTable(form), *arguments, rewrites={"MergedTable": 1}, dynamic_shapes=({0: Dim.AUTO},))
