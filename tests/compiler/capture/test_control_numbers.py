"""Numbers that only a call knows: tensors made of them, what they are, and where Python's would raise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import RegraftError
from regraft.ir import print_module
from tests.compiler.capture.running import check_calls, compiled

ROW, NONE = torch.tensor([1.0, -2.0, 3.0, 4.0]), torch.tensor([-1.0, -2.0, -3.0, -4.0])


# -- tensors made of numbers -------------------------------------------------------------------


def numbers_in_f64(x: Tensor) -> Tensor:
    return torch.tensor([x.sum().item() / 3, 0.1], dtype=torch.float64)


def numbers_in_i64(x: Tensor) -> Tensor:
    return torch.tensor([(x > 0).sum().item() + 16777217, 3.0], dtype=torch.int64)


def a_list_in_f64(x: Tensor) -> Tensor:
    return torch.tensor([v / 3 for v in x[x > 0].tolist()], dtype=torch.float64)


def a_list_in_i32(x: Tensor) -> Tensor:
    return torch.tensor([v * 1000.5 for v in x[x > 0].tolist()], dtype=torch.int32)


def nested_as_tensor(x: Tensor) -> Tensor:
    n = x.sum().item() / 3
    return torch.as_tensor([[n, 0.1], [1, n]], dtype=torch.float64)


def one_number_in_f64(x: Tensor) -> Tensor:
    return torch.tensor(x.sum().item() / 3, dtype=torch.float64)


def without_a_dtype(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = (x > 0).sum().item()
    return torch.tensor([n, 0.1]), torch.tensor([n, 3]), torch.tensor([n > 2, True])


MADE = [
    *(numbers_in_f64, numbers_in_i64, a_list_in_f64, a_list_in_i32),
    *(nested_as_tensor, one_number_in_f64, without_a_dtype),
]


@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize("model", MADE, ids=lambda model: model.__name__)
def test_tensors_of_numbers_have_all_digits_of_their_dtype(model: Any, backend: str) -> None:
    made = compiled(model, (ROW,), backend)
    for x in (ROW, torch.tensor([1.0, 2.0, 3.0, 1.0])):
        torch.testing.assert_close(made(x), model(x), rtol=0, atol=0)


# -- division ----------------------------------------------------------------------------------


def divides(x: Tensor) -> Tensor:
    return x + 1 / (x > 0).sum().item()


def divides_to_an_integer(x: Tensor) -> Tensor:
    n = (x > 0).sum().item()
    return x + n // (n - 3 * (n > 1))


def takes_the_rest(x: Tensor) -> Tensor:
    return x + 7 % (x > 0).sum().item()


def divides_floats(x: Tensor) -> Tensor:
    return x * (x.sum().item() / (x > 0).sum().item())


def divides_where_it_may(x: Tensor) -> Tensor:
    n = (x > 0).sum().item()
    return x + (7 / n if n > 0 else 0.5)


def divides_by_what_is_never_zero(x: Tensor) -> Tensor:
    k = 2 if x.sum() > 0 else 4
    return x * (x.max().item() / k) + x.min().item() // 3 + x.numel() % k


@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize("model", [divides, takes_the_rest, divides_floats], ids=lambda model: model.__name__)
def test_a_division_by_zero_is_an_error(model: Any, backend: str) -> None:
    made = compiled(model, (ROW,), backend)
    torch.testing.assert_close(made(ROW), model(ROW))
    with pytest.raises(ZeroDivisionError):
        model(NONE)
    with pytest.raises(RegraftError, match="ZeroDivisionError: division by zero"):
        made(NONE)


def test_only_the_divisor_is_looked_at() -> None:
    check_calls(divides_where_it_may, (ROW,), [(NONE,)])
    check_calls(divides_by_what_is_never_zero, (ROW,), [(NONE,)])
    made = compiled(divides_to_an_integer, (NONE,), "ort")
    torch.testing.assert_close(made(NONE * 0 + 1), divides_to_an_integer(NONE * 0 + 1))


def test_what_is_never_zero_is_not_checked() -> None:
    assert "rg.check" in print_module(regraft.capture(divides, (ROW,)))
    assert "rg.check" not in print_module(regraft.capture(divides_by_what_is_never_zero, (ROW,)))
