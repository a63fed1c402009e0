"""Tensors indexed by truth values that only a call knows, and by masks that pick one row, or none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.errors import RegraftError
from tests.compiler.capture.running import check_calls, compiled

CALLS = [
    (torch.tensor(values),)
    for values in (
        [1.0, -1.0, 2.0, -2.0],
        [1.0, -1.0, -2.0, -2.0],
        [-1.0, -1.0, -1.0, -1.0],
        [1.0, 1.0, 1.0, 1.0],
        [1.0, 1.0, 1.0, -1.0],
    )
]


def all_rows(x: Tensor) -> Tensor:
    y = x.new_zeros(4, 3)
    y[x.sum() > 0] = x.new_ones(4, 3) * x.unsqueeze(1)
    return y


def one_number(x: Tensor) -> Tensor:
    y = x * 2
    y[x.sum() > 0] = 1.5
    y[x[0] > 0] = x.sum()
    return y


def by_a_bool(x: Tensor) -> Tensor:
    y, flag = x.new_zeros(4, 3), bool(x.sum() > 0)
    y[flag] = x.new_ones(3)
    other: Any = (x[1] > 0).item()
    y[other] += x[:3]
    return y


def to_the_argument(x: Tensor) -> Tensor:
    flag = x.sum() > 0
    x[flag] = x * 2 + 1
    return x + 1


def among_others(x: Tensor) -> Tensor:
    y, flag = x.new_zeros(2, 4, 3), x.sum() > 0
    y[0, flag, 1] = x[1:] * 2
    y[..., flag] = x.new_ones(1)
    y[:, flag, 2:] *= 3
    y[1:, flag] -= 1
    return y


def read(x: Tensor) -> Any:
    y, flag = x.reshape(2, 2) * 2, x.sum() > 0
    same: Any = flag.item()
    return y[flag], y[:, flag], y[..., flag], y[None, flag, 0], y[same]


def read_and_written(x: Tensor) -> Tensor:
    y, flag = x.new_zeros(4), x.sum() > 0
    y[flag] = x[flag] * 2
    return y


def in_an_arm(x: Tensor) -> Tensor:
    y, flag = x * 1, x[0] > 0
    if x.sum() > 0:
        y[flag] = x + 1
    else:
        y[flag] = 0.0
        y = y - 1
    return y


MODELS = [all_rows, one_number, by_a_bool, to_the_argument, among_others, read, read_and_written, in_an_arm]


@pytest.mark.parametrize("model", MODELS)
def test_a_truth_value_as_an_index(model: Any) -> None:
    check_calls(model, CALLS[0], CALLS[1:])


# -- masks that pick one row, or values of one ---------------------------------------------------


def rows_of_values(x: Tensor) -> Tensor:
    """One row where one number is negative: it is the value of all that the other mask picks."""
    y, values = torch.zeros(4, 3), torch.arange(12.0).view(4, 3)
    y[x > 0] = values[x < 0]
    return y


def two_rows(x: Tensor) -> Tensor:
    y = torch.zeros(4, 3)
    y[x > 0] = torch.arange(6.0).view(2, 3)
    return y


def as_many(x: Tensor) -> Tensor:
    y, m = torch.zeros(4, 3), x > 0
    y[m] = torch.arange(12.0).view(4, 3)[m] * x[m].unsqueeze(1)
    return y


def reshaped(x: Tensor) -> Tensor:
    part = torch.ones(4, 3)[x > 0]
    return part.view(part.shape[0], -1)


def made_of_a_number(x: Tensor) -> Tensor:
    n = int((x > 0).sum())
    return x.new_ones(n, 6).view(n, -1, 2)


@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize("model", [rows_of_values, two_rows, as_many, reshaped, made_of_a_number])
def test_eagers_values_or_an_error_where_eager_raises(model: Any, backend: str) -> None:
    made = compiled(model, CALLS[0], backend)
    for (x,) in CALLS:
        try:
            expected = model(x.clone())
        except RuntimeError:
            with pytest.raises(RegraftError):
                made(x.clone())
        else:
            assert torch.equal(made(x.clone()), expected)
