"""Quotients of integers near the ends of their types, rounded down as Python does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft


class Quotients(nn.Module):
    def __init__(self, divisors: tuple[int, ...]) -> None:
        super().__init__()
        self.divisors = divisors

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (*(x // d for d in self.divisors), *(x % d for d in self.divisors), x // y, x % y)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
@pytest.mark.parametrize("backends", [("ort",), ("tvm", "ort")])
def test_quotients(dtype: torch.dtype, backends: tuple[str, ...], with_one_tvm: Any) -> None:
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    x = torch.tensor([low, low + 1, low + 2, 0, 1, 5, high - 1, high], dtype=dtype)
    divisors = (2, 3, 100, high) if low == 0 else (2, 3, -3, 100, -100, high, -high)
    y = torch.tensor([3, 100, high, 7, 2, 3, high, 100], dtype=dtype)
    model = Quotients(divisors).eval()
    compiled = regraft.compile(model, (x, y), backends=with_one_tvm(backends), cache=False)
    for found, wanted in zip(compiled(x, y), model(x, y), strict=True):
        assert torch.equal(found, wanted)
