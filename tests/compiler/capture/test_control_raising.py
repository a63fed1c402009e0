"""Arms that raise: what is a check of the call, and what is refused with its lines.

PYTEST_DONT_REWRITE: what pytest makes of an `assert` is not what stands in the source.
"""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError, RegraftError
from tests.compiler.capture.running import compiled, rows

UP, DOWN = rows(3, shift=1.0), rows(3, shift=-1.0)


def always(text: str) -> NoReturn:
    raise ValueError(text)  # raises


def after_a_print(x: Tensor) -> Tensor:
    if x.sum() > 0:  # here
        print("bad")
        raise ValueError("no")  # raises
    return x


def asserts_false(x: Tensor) -> Tensor:
    if x.sum() > 0:  # here
        assert False, "no"  # noqa: B011, PT015  # raises
    return x


def asserts_at_the_end(x: Tensor) -> Tensor:
    if x.sum() < 0:  # here
        return x
    assert False, "no"  # noqa: B011, PT015  # raises


def by_a_helper(x: Tensor) -> Tensor:
    if x.sum() > 0:  # here
        always("no")
    return x


def in_an_expression(x: Tensor) -> Tensor:
    return always("no") if x.sum() > 0 else x  # here


def in_a_trip(x: Tensor) -> Tensor:
    while x.norm() > 1:
        if x.sum() > 9:  # here
            always("no")
        x = x * 0.5
    return x


def in_an_inner_arm(x: Tensor) -> Tensor:
    if x.sum() > 0:
        x = x * 2
        if x.sum() > 9:  # here
            print("bad")
            raise ValueError("no")  # raises
    return x


def by_a_check(x: Tensor) -> Tensor:
    if x.sum() > 0:  # here
        torch._check(False, lambda: "no")  # raises
    return x


def line(function: Any, word: str) -> int | None:
    lines, first = inspect.getsourcelines(function)
    return next((first + i for i, each in enumerate(lines) if each.rstrip().endswith(f"# {word}")), None)


@pytest.mark.parametrize(
    "model",
    [
        *(after_a_print, asserts_false, asserts_at_the_end, by_a_helper, in_an_expression, in_a_trip),
        *(in_an_inner_arm, by_a_check),
    ],
)
def test_an_arm_that_does_not_only_raise_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match=r"an arm that a tensor chooses raises.*: no") as caught:
        regraft.capture(model, (DOWN,))
    raising = line(model, "raises") or line(always, "raises")
    assert caught.value.location == f"{__file__}:{raising}"
    assert f"the condition is at {__file__}:{line(model, 'here')}" in caught.value.message
    assert "raise ValueError" in (caught.value.hint or "")


def only_raises(x: Tensor) -> Tensor:
    if x.sum() > 0:
        text = "no"
        raise ValueError(text)
    return x


def raises_otherwise(x: Tensor) -> Tensor:
    if x.sum() <= 0:
        x = x * 2
    else:
        raise KeyError("no")
    return x


@pytest.mark.parametrize("model", [only_raises, raises_otherwise])
def test_an_arm_that_only_raises_is_a_check(model: Any) -> None:
    made = compiled(model, (DOWN,), "eager")
    assert torch.equal(made(DOWN), model(DOWN))
    with pytest.raises(Exception) as eager:  # noqa: PT011
        model(UP)
    with pytest.raises(RegraftError) as raised:
        made(UP)
    assert f"{type(eager.value).__name__}: {eager.value}" in str(raised.value)


def matrices_that_do_not_fit(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x @ torch.ones(3, 3)
    return x


def test_what_torch_raises_is_told_as_before() -> None:
    with pytest.raises(CaptureError, match="same reduction dim") as caught:
        regraft.capture(matrices_that_do_not_fit, (DOWN,))
    assert "an arm that a tensor chooses" not in caught.value.message
