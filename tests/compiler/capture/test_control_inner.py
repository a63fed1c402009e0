"""Decisions in functions made by others, and numbers that a loop turns into tensors."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compiler.capture.running import check_calls, rows

UP = rows(4)
CALLS = [(UP - 9,), (UP + 9,), (-UP,)]


def an_inner_function_decides(x: Tensor) -> Tensor:
    def pick(t: Tensor) -> Tensor:
        if t.sum() > 0:
            return t * 2
        return t

    return pick(x)


def a_lambda_decides(x: Tensor) -> Tensor:
    pick = lambda t: t * 2 if t.sum() > 0 else t  # noqa: E731
    return pick(x)


def an_inner_function_calls_itself(x: Tensor) -> Tensor:
    def go(depth: int, t: Tensor) -> Tensor:
        if depth == 0:
            return t
        if t.sum() > 0:
            return go(depth - 1, t * 0.5)
        return go(depth - 1, t + 1)

    return go(3, x)


def a_list_of_known_length(x: Tensor) -> Tensor:
    first, second, *_ = x[0].tolist()
    return x * first + second


def a_number_that_becomes_a_tensor(x: Tensor) -> Tensor:
    total: Any = 0
    while x.abs().sum() < 40:
        x = x * 1.5
        total = total + x.sum()
    return x + total


def a_float_that_becomes_a_tensor_in_place(x: Tensor) -> Tensor:
    start = x.double().sum().item()
    total: Any = start
    while x.abs().sum() < 40:
        x = x * 1.5
        total += x.double().sum()
    return x + total + start


def a_range_of_one_more(x: Tensor) -> Tensor:
    outs = [x]
    while outs[-1].abs().sum() < 40:
        outs.append(outs[-1] * 1.5)
    for i in range(len(outs) + 1):
        x = x + i
    return x


MODELS = [
    *(an_inner_function_decides, a_lambda_decides, an_inner_function_calls_itself, a_list_of_known_length),
    *(a_number_that_becomes_a_tensor, a_float_that_becomes_a_tensor_in_place, a_range_of_one_more),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_works(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))


def makes_one() -> Any:
    return lambda x: torch.tensor([each.item() + 1 for each in x])


def test_an_equal_function_may_be_alive() -> None:
    """A capture copies a function's code: that of an earlier one may still be there."""
    model = makes_one()
    alive = FunctionType(model.__code__.replace(co_name="forward"), model.__globals__)
    check_calls(model, (UP[0],), [(-UP[0],)], backends=("ort",))
    assert torch.equal(alive(UP[0]), model(UP[0]))
