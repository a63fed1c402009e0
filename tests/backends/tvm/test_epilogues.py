"""What follows a product in its kernel, where TVM's own passes have been in the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.testing import assert_close

functional = nn.functional

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mish": functional.mish,
    "a bool as a factor": lambda x: x * (x > 0),
    "a bool as an integer": lambda x: x * (x > 0).long(),
    "exclusive": lambda x: torch.where((x > 0) ^ (x > 0.5), x, 2 * x),
    "equal": lambda x: torch.where((x > 0) == (x > 0.5), x, 2 * x),
    "unequal": lambda x: torch.where((x > 0) != (x > 0.5), x, 2 * x),
    "negated": lambda x: torch.where(~(x > 0), x, 2 * x),
    "both": lambda x: torch.where((x > 0) & ~(x > 0.5), x, 2 * x),
    "either": lambda x: torch.where((x < 0) | (x > 0.5), x, 2 * x),
}


class Followed(nn.Module):
    """The function of a product, its value used three times."""

    def __init__(self, function: Callable[[Tensor], Tensor], columns: int) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(24, columns), function

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.linear(x))
        return y * torch.sin(y) + y


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_which_the_value_is_used_often(tvm: Any, name: str) -> None:
    """Of columns that are vectors of 16 and three more."""
    torch.manual_seed(0)
    model, x = Followed(FUNCTIONS[name], columns=19).eval(), torch.randn(7, 24)
    compiled = regraft.compile(model, (x,), backends=(tvm,), cache=False)
    (kernel,) = compiled.report.to_dict()["kernels"]
    assert len(kernel["ops"]) > 3, "all is one kernel"
    assert_close([compiled(x)], [model.double()(x.double())], [model.float()(x)], reassociates=True)


def test_mish_of_large_numbers(tvm: Any) -> None:
    x = torch.tensor([-200.0, -90.0, -20.0, 0.0, 19.9, 20.1, 90.0, 3e38, float("inf"), float("nan")])
    for given in (x, x.double()):
        compiled = regraft.compile(nn.Mish().eval(), (given,), backends=(tvm,), cache=False)
        torch.testing.assert_close(compiled(given), functional.mish(given), equal_nan=True)
