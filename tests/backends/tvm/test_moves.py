"""Products that read through moves of rows, and store what is permuted: the values are eager's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import regraft
from regraft.testing import assert_close


class Joined(nn.Module):
    """Attention whose queries, keys and values are parts of one product."""

    def __init__(self, width: int, heads: int, order: tuple[int, ...]) -> None:
        super().__init__()
        self.parts, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.order = heads, order

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.parts(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(self.order).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


#: No two have a product in common, which would not be stored as any of them moves it.
MOVES = (
    "x[:, 1:, :] @ y[:, :, 3:27]",  # rows that begin elsewhere, at no vector's beginning
    "x[:, ::2, :] @ y[:, :, :17]",
    "x[:, :, ::2] @ y[:, :9, :]",  # every second element of a row is no move of rows
    "x.transpose(0, 1)[:, :2] @ y[:1]",
    "x @ y.transpose(1, 2).contiguous().transpose(1, 2)",
    "x.transpose(1, 2) @ y[:, :6]",
    "(x @ (y + 1)).transpose(0, 1)",
    "(x @ (y + 2)).transpose(1, 2)",
    "((x @ (y + 3)).relu() + 1).permute(1, 0, 2) * 2",
    "(x @ (y + 4)).permute(1, 0, 2).reshape(-1, 60)",
    "(x @ (y + 5)).permute(1, 0, 2) @ y[0].T",
    "x.view(2, 6, 3, 6).permute(0, 2, 1, 3) @ y.view(2, 3, 6, 30)",
    "x.view(36, 6).view(2, 6, 3, 6).transpose(1, 2).relu() @ y.view(2, 3, 6, 30)",
    "x[:, None, :, :6] @ y.view(2, 3, 6, 30).expand(2, 3, 6, 30)[:, :1].expand(2, 3, 6, 30)",
    "torch.softmax(x[:, :, 2:8], 1).transpose(0, 1) @ y[:1, :6]",
    "x[:, :1] @ y[:, :, :1]",
    "x.transpose(0, 1) @ y[0, :, 5:] + (x[0] @ y[0, :, 5:])[:, None]",
)


class Moves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.functions = [eval(f"lambda x, y: {text}", {"F": F, "torch": torch}) for text in MOVES]

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(x, y) for function in self.functions)


def check(tvm: Any, model: nn.Module, *args: Tensor) -> None:
    compiled = regraft.compile(model, args, backends=(tvm,), cache=False)
    wanted = model.double()(*(arg.double() for arg in args))
    assert_close(compiled(*args), wanted)


@pytest.mark.parametrize("length", [1, 5, 33])
@pytest.mark.parametrize(("width", "heads"), [(32, 2), (24, 3), (4, 4)])
def test_attention_of_parts_of_one_product(tvm: Any, width: int, heads: int, length: int) -> None:
    torch.manual_seed(length)
    check(tvm, Joined(width, heads, (2, 0, 3, 1, 4)).eval(), torch.randn(2, length, width))


def test_attention_of_any_length(tvm: Any) -> None:
    torch.manual_seed(0)
    model = Joined(32, 2, (2, 0, 3, 1, 4)).eval()
    dynamic = {"x": {0: Dim.AUTO, 1: Dim.AUTO}}
    compiled = regraft.compile(
        model, (torch.randn(2, 7, 32),), backends=(tvm,), dynamic_shapes=dynamic, cache=False
    )
    inputs = [torch.randn(batch, length, 32) for batch, length in ((2, 7), (1, 1), (3, 40), (1, 17))]
    found = [compiled(x) for x in inputs]
    model.double()
    for x, made in zip(inputs, found, strict=True):
        assert_close(made, model(x.double()))


def test_moves(tvm: Any) -> None:
    torch.manual_seed(0)
    model, x, y = Moves().eval(), torch.randn(2, 6, 18), torch.randn(2, 18, 30)
    compiled = regraft.compile(model, (x, y), backends=(tvm,), cache=False)
    for found, wanted in zip(compiled(x, y), model(x.double(), y.double()), strict=True):
        assert_close(found, wanted)
