"""Computations of two forms, for tests of how one is chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import regraft
from regraft.ir import OPS, Builder, DType, Leaf, Op, Region, TensorType, symbol
from regraft.testing import randomise

S = symbol("s", 1)
FORMS = ("as written", "merged")


class LowRank(nn.Module):
    def __init__(self, width: int, rank: int, out: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.up(self.down(x)))


def compiled_low_rank(rank: int, rows: int = 4, **options: Any) -> tuple[nn.Module, Any]:
    layer = randomise(LowRank(256, rank, 256).eval())
    return layer, regraft.compile(layer, (torch.randn(rows, 256),), verify=True, **options)


def alternative(rows: Any, merged: str = "linear") -> Op:
    """An ``rg.alt`` of two forms: two linear layers, and one layer or another op, ``merged``."""
    body = Region([TensorType(DType.F32, (rows, 4))])
    forms = Region(body.arg_types), Region(body.arg_types)
    weight = Leaf("w", TensorType(DType.F32, (4, 4)), torch.ones(4, 4))
    for region, names in zip(forms, (("linear", "linear"), (merged,)), strict=True):
        b = Builder(OPS, region)
        value = region.args[0]
        for name in names:
            value = b.aten.linear(value, b.constant(weight)) if name == "linear" else b.aten.relu(value)
        b.create("cf.yield", ((value,),))
    attrs = {"rows": rows, "forms": ("as written", "merged")}
    return Builder(OPS, body).create("rg.alt", (body.args,), attrs, regions=forms)


class Takes:
    """A back end that takes the ops of these names."""

    def __init__(self, name: str, *ops: str) -> None:
        self.name = name
        self.ops = ops

    def supports(self, op: Op) -> str | None:
        return None if op.name in self.ops else "not this one"

    def lower(self, function: Any, store: Any, options: Any) -> Any:
        raise AssertionError("nothing is lowered here")
