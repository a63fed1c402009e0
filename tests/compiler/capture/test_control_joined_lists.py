"""``outs += [h]`` of lists of which only a call knows the length."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls, rows

HERE = Path(__file__).name
UP = rows(6, shift=1.0)
SHIFTS = [rows(6, seed=i, shift=shift) for i, shift in enumerate((-2.0, -0.7, -0.2, 0.1, 0.4, 0.9, 2.0))]


def in_a_loop(x: Tensor) -> Tensor:
    outs, n = [x[0]], 0
    while x.abs().max() > 0.5 and n < 6:
        outs += [x[1] * n, x[2]]
        x, n = x * 0.8, n + 1
    return torch.stack(outs) * len(outs)


def in_an_arm(x: Tensor) -> Tensor:
    outs = [x[0]]
    for row in x:
        if row.sum() > 0:
            outs += (row, row * 2)
    return torch.stack(outs)


@pytest.mark.parametrize("model", [in_a_loop, in_an_arm])
def test_a_list_grows_in_place(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS])


def what_it_holds_is_written_to(x: Tensor) -> Tensor:
    outs, n, h = [x[0] * 1], 0, x[1] * 1
    while x.abs().max() > 0.5 and n < 6:
        outs += [h]
        h.mul_(2)
        x, n = x * 0.8, n + 1
    return torch.stack(outs)


def another_variable_has_it(x: Tensor) -> Tensor:
    outs, n = [x[0]], 0
    other = outs
    while x.abs().max() > 0.5 and n < 6:
        outs += [x[1]]
        x, n = x * 0.8, n + 1
    return torch.stack(other)


def at_its_front(x: Tensor) -> Tensor:
    outs, n = [x[0]], 0
    while x.abs().max() > 0.5 and n < 6:
        outs.insert(0, x[1])
        x, n = x * 0.8, n + 1
    return torch.stack(outs)


@pytest.mark.parametrize(
    ("model", "words", "hint"),
    [
        (what_it_holds_is_written_to, "writes to a tensor", "clone"),
        (another_variable_has_it, "another variable holds it too", r"outs = list\(outs\)"),
        (at_its_front, r"insert\(\)", r"reverse\(\)"),
    ],
)
def test_refused_with_the_way_out(model: Any, words: str, hint: str) -> None:
    with pytest.raises(CaptureError, match=words) as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert re.search(hint, str(caught.value.hint))
