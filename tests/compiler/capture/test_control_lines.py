"""Refusals and checks name the line that they are about, whatever stands above a function's `def`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError, RegraftError
from tests.compiler.capture.running import compiled, rows

UP, DOWN = rows(6, shift=1.0), rows(6, shift=-1.0)


def passed_on(function: Any) -> Any:
    @functools.wraps(function)
    def called(*args: Any) -> Any:
        return function(*args)

    return called


def named(*_: str) -> Callable[[Any], Any]:
    return passed_on


@passed_on
def under_one(x: Tensor) -> Tensor:
    y = x + 1
    if y.sum() > 0:
        text = "up"
    else:
        text = "down"
    return y * len(text)  # here


@named(
    "a",
    "b",
)
@passed_on
def under_two_of_several_lines(x: Tensor) -> Any:
    y = x + 1
    return str(y.sum().item())  # here


@passed_on
def with_one_within(x: Tensor) -> Tensor:
    @passed_on
    @passed_on
    def inner(y: Tensor) -> Tensor:
        try:
            return y if y.sum() > 0 else -y  # here
        except ValueError:
            return y

    return inner(x) if x.sum() > 0 else x


class Method(nn.Module):
    @passed_on
    def forward(self, x: Tensor) -> Tensor:
        values = iter([1.0, 2.0])
        if x.sum() > 0:  # here
            x = x * next(values)
        return x + next(values)


@pytest.mark.parametrize("model", [under_one, under_two_of_several_lines, with_one_within, Method().eval()])
def test_a_refusal_under_decorators_names_its_line(model: Any) -> None:
    function = inspect.unwrap(type(model).forward if isinstance(model, nn.Module) else model)
    lines, first = inspect.getsourcelines(function)
    (at,) = (i for i, line in enumerate(lines) if line.rstrip().endswith("# here"))
    with pytest.raises(CaptureError) as caught:
        regraft.capture(model, (UP,))
    assert caught.value.location == f"{__file__}:{first + at}"


class Checked(nn.Module):
    @passed_on
    def forward(self, x: Tensor) -> Tensor:
        return x[: int(x.sum().abs())].amin()


def test_a_check_under_a_decorator_names_its_line() -> None:
    line = inspect.unwrap(Checked.forward).__code__.co_firstlineno + 2
    made = compiled(Checked().eval(), (UP,), "ort")
    with pytest.raises(RegraftError, match=rf"{Path(__file__).name}:{line}: return x\["):
        made(torch.zeros(6, 4))
