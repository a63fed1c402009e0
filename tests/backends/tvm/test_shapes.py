"""Elementwise kernels over axes of size 1, and bools that several ops read: the values are eager's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.testing import assert_close


class Elementwise(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        total = x.sum(-1, keepdim=True)
        return torch.relu(x), x + 1, x > 0, torch.sigmoid(total) * x, total + 1, x.reshape(-1, 1) * 2


class OfAll(nn.Module):
    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(found for x in tensors for found in Elementwise()(x))


def test_axes_of_one(tvm: Any) -> None:
    shapes = ((5, 1), (2, 3, 1), (5, 1, 1), (1, 5, 1), (3, 1, 4, 1), (1, 1), (40, 1), (1,))
    tensors = [torch.linspace(-2, 2, torch.Size(shape).numel()).reshape(shape) for shape in shapes]
    compiled = regraft.compile(OfAll().eval(), tuple(tensors), backends=(tvm,), cache=False)
    wanted = OfAll()(*(x.double() for x in tensors))
    for found, expected in zip(compiled(*tensors), wanted, strict=True):
        assert_close(found, expected)


def test_axes_of_one_beside_open_ones(tvm: Any) -> None:
    model, dynamic = Elementwise().eval(), {"x": {0: Dim.AUTO}}
    compiled = regraft.compile(
        model, (torch.randn(5, 1),), backends=(tvm,), dynamic_shapes=dynamic, cache=False
    )
    for rows in (1, 5, 33):
        x = torch.randn(rows, 1)
        for found, wanted in zip(compiled(x), model(x.double()), strict=True):
            assert_close(found, wanted)


class Bools(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        m, n = a > 0, b > 0.5
        return (
            torch.where(m, a, b) + torch.where(m, b, 2 * a),
            ~(a < b),
            m.sum(-1),
            a * m,
            torch.hypot(a, b),
            m < n,
            m >= n,
            torch.maximum(m, n),
            torch.minimum(m, n),
            torch.sum(m, dtype=torch.bool),
            torch.sum(m & ~m, dtype=torch.bool),
        )


@pytest.mark.parametrize("columns", [3, 17, 48])
def test_bools_that_several_ops_read(tvm: Any, columns: int) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, columns), torch.randn(5, columns)
    compiled = regraft.compile(Bools().eval(), (a, b), backends=(tvm,), cache=False)
    for found, wanted in zip(compiled(a, b), Bools()(a.double(), b.double()), strict=True):
        assert_close(found, wanted)
