"""Chains of ``if`` and ``elif`` of which some arms jump: what the others set is there for what follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls

SCALES = (-3.0, -1.2, -0.6, -0.3, 0.1, 0.4, 0.7, 1.3, 4.0)
CALLS = [(torch.tensor([[1.0, -0.4, 0.3], [0.2, 0.5, -0.9], [0.8, 0.1, 0.6]]) * scale,) for scale in SCALES]


def returns_at_the_end(x: Tensor) -> Tensor:
    if x.sum() > 1:
        w = x * 2
    elif x.sum() > -1:
        w = x + 1
    else:
        return x
    return w.cumsum(0)


def returns_in_the_middle(x: Tensor) -> Tensor:
    if x.sum() > 1:
        w = x * 2
    elif x.sum() > 0:
        return x - 1
    elif x.sum() > -1:
        w = x + 1
    elif x.sum() > -2:
        return x * 3
    else:
        w = -x
    return w.cumsum(0)


def sets_more_than_tensors(x: Tensor) -> Tensor:
    if x.sum() > 1:
        factor, parts, mode = 2, [x, x + 1], "sum"
    elif x.sum() > -1:
        factor, parts, mode = 3, [x - 1, x * 2], "sum"
    else:
        return x
    parts.append(x * factor)
    return torch.stack(parts).sum(0) * factor if mode == "sum" else x


def returns_from_within_an_arm(x: Tensor) -> Tensor:
    if x.sum() > 1:
        w = x * 2
        if x[0, 0] > 2:
            return w
        v = w - 1
    elif x.sum() > -1:
        if x[0, 0] < 0:
            return x
        elif x[0, 0] < 0.2:
            v = x * 5
        else:
            v = x
        w = v + 1
    else:
        w = v = x
    return w * v


def goes_on_with_the_next_row(x: Tensor) -> Tensor:
    out = x.clone()
    for i in range(3):
        total = x[i].sum()
        if total > 1:
            w = x[i] * 2
        elif total > 0:
            w = x[i]
        else:
            continue
        out[i] = w + 1
    return out


def leaves_or_goes_on(x: Tensor) -> Tensor:
    total = x[0]
    for row in x:
        if row.sum() > 1.5:
            w = row * 2
        elif row.sum() > 0.5:
            break
        elif row.sum() > 0:
            w = row - 1
        elif row.sum() > -1:
            continue
        elif row.sum() > -2:
            w = row * row
        else:
            return total * 100
        total = total + w
    else:
        total = total - 50
    return total


def in_a_loop_that_a_tensor_ends(x: Tensor) -> tuple[Tensor, Tensor]:
    count = torch.zeros(())
    while x.abs().max() > 0.2:
        x = x * 0.5
        if x.sum() > 1:
            w = count + 2
        elif x.sum() > 0.5:
            break
        elif x.sum() > -0.5:
            w = count + 3
        else:
            continue
        count = w * 2
    return x, count


def under_a_context(x: Tensor) -> Tensor:
    with torch.no_grad():
        if x.sum() > 1:
            w = x * 2
        elif x.sum() > 0:
            return x
        else:
            w = x - 1
    return w * 2


def holds_what_it_was_given(x: Tensor) -> Tensor:
    y = x + 1
    if x.sum() > 1:
        w = y
    elif x.sum() > 0:
        return y
    else:
        w = y * 2
    return w + y


MODELS = [
    returns_at_the_end,
    returns_in_the_middle,
    sets_more_than_tensors,
    returns_from_within_an_arm,
    goes_on_with_the_next_row,
    leaves_or_goes_on,
    in_a_loop_that_a_tensor_ends,
    under_a_context,
    holds_what_it_was_given,
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_arm(model: Any) -> None:
    check_calls(model, CALLS[0], CALLS[1:], backends=("ort",))


def read_after_the_loop(x: Tensor) -> Tensor:
    for row in x:
        if row.sum() > 1:
            w = row * 2
        elif row.sum() > 0:
            w = row
        else:
            continue
        x = x + w
    return w


def read_by_an_inner_function(x: Tensor) -> Tensor:
    def read() -> Tensor:
        return w

    for row in x:
        if row.sum() > 1:
            w = row
        elif row.sum() > 0:
            continue
        else:
            w = -row
        x = x + w
    return read()


def not_set_where_it_goes_on(x: Tensor) -> Tensor:
    if x.sum() > 1:
        w = x
    elif x.sum() > 0:
        if x[0, 0] > 0:
            return x
    else:
        w = -x
    return w


@pytest.mark.parametrize("model", [read_after_the_loop, read_by_an_inner_function, not_set_where_it_goes_on])
def test_a_variable_that_may_have_no_value_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="the variable 'w' is set in one branch only"):
        regraft.capture(model, CALLS[0])
