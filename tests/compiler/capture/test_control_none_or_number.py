"""Variables that are None on one path and a number on the other, and what a test of None makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls

HERE = Path(__file__).name
X = torch.tensor([[-1.0, -2.0], [3.0, 4.0], [0.5, -2.0]])
#: A loop over the rows is left in the first, the second, the last and in none of them.
CALLS = [(X[[1, 0, 2]],), (-X,), (X[[0, 2, 1]],), (X[[0, 0, 0]],)]


def a_number_before_a_break(x: Tensor) -> Tensor:
    stop = None
    for t in range(3):
        if x[t].sum() > 0:
            stop = t
            break
    if stop is None:
        stop = -1
    return x * stop


def a_tensor_before_a_break(x: Tensor) -> Tensor:
    stop = None
    for t in range(3):
        if x[t].sum() > 0:
            stop = x[t]
            break
    if stop is None:
        stop = -x[0]
    return x * stop


def set_in_the_other_arm(x: Tensor) -> Tensor:
    first = None
    if x[0].sum() > 0:
        first = x[0] * 2
    if first is not None:
        pass
    else:
        first = x[1]
    return x + first


def set_in_both_arms(x: Tensor) -> Tensor:
    scale = None
    if x[1].sum() > 0:
        scale = x.sum().item()
    if scale is not None and x[0].sum() < 0:
        scale = scale * 2
    else:
        scale = 0.5
    return x * scale


def set_in_a_part_of_the_arm(x: Tensor) -> Tensor:
    scale = None
    if x[1].sum() > 0:
        scale = 3
    if scale is None:
        x = x + 1
        if x[0].sum() > 0:
            scale = 5
    return x - 1 if scale is None else x * scale


def the_last_of_many(x: Tensor) -> Tensor:
    last = None
    for t in range(3):
        if x[t].sum() > 0:
            last = t
    return x - 1 if last is None else x + x[last]


def by_a_conditional_expression(x: Tensor) -> Tensor:
    count = None
    if x[0].sum() > 0:
        count = int((x > 0).sum())
    count = 7 if count is None else count + 1
    return x * count


def a_truth(x: Tensor) -> Tensor:
    is_long = None
    if x[0].sum() > 0:
        is_long = bool(x.sum() > 2)
    if is_long is None:
        is_long = False
    return x * 2 if is_long else x - 1


def _scaled(x: Tensor, by: Any) -> Tensor:
    scale = None
    if x.sum() > 0:
        scale = by
    return x - 1 if scale is None else x * scale


def numbers_and_tensors_at_one_line(x: Tensor) -> Tensor:
    return torch.cat([_scaled(x[0], 2), _scaled(x[1], x[2]), _scaled(x[2], 0.5)])


@pytest.mark.parametrize(
    "model",
    [
        a_number_before_a_break,
        a_tensor_before_a_break,
        set_in_the_other_arm,
        set_in_both_arms,
        set_in_a_part_of_the_arm,
        the_last_of_many,
        by_a_conditional_expression,
        a_truth,
        numbers_and_tensors_at_one_line,
    ],
)
def test_it_is_what_it_is_in_eager(model: Any) -> None:
    check_calls(model, (X,), CALLS)


def a_long_loop(x: Tensor) -> Tensor:
    stop = None
    for t in range(20):
        if x[t] > 0:
            stop = t
            break
    return x - 1 if stop is None else x * stop


def test_each_trip_of_a_loop_that_may_be_left_is_traced_once() -> None:
    x = torch.full((20,), -1.0)
    found = x.clone()
    found[17] = 2.0
    check_calls(a_long_loop, (x,), [(found,), (-x,)], backends=("eager",))


def a_number_that_may_be_none_is_read(x: Tensor) -> Tensor:
    stop = None
    if x.sum() > 0:
        stop = 2
    return x * stop  # pyright: ignore[reportOperatorIssue]


def an_integer_in_a_chain_of_floats(x: Tensor) -> Tensor:
    mask = x > 0
    if mask.all():
        w = 1.0
    elif mask.any():
        w = mask.float().mean().item()
    else:
        w = 0
    return x * w


def none_in_a_list(x: Tensor) -> Any:
    found = [2 if x.sum() > 0 else None]
    return x if found[0] is None else x * found[0]


@pytest.mark.parametrize(
    ("model", "reason", "hint"),
    [
        (a_number_that_may_be_none_is_read, "may be a number or None", "under `if x is not None`"),
        (an_integer_in_a_chain_of_floats, "'w' is a float on one path and 0 on the other", "0.0 for 0"),
        (none_in_a_list, "is 2 on one path and None on the other", "a number, such as -1"),
    ],
)
def test_a_refusal_says_what_is_on_the_paths(model: Any, reason: str, hint: str) -> None:
    with pytest.raises(CaptureError, match=reason) as caught:
        regraft.capture(model, (X,))
    assert HERE in str(caught.value.location)
    assert hint in str(caught.value.hint)
