"""What a loop carries: one trip that is thrown away shows it, mostly, and the recorded one that it does."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import regraft
from tests.compiler.capture.running import check_calls, rows

UP = rows(6, shift=1.0)
SHIFTS = [rows(6, seed=i, shift=shift) for i, shift in enumerate((-2.0, -0.2, 0.4, 2.0))]


def grows(x: Tensor) -> Any:
    """One trip shows that ``a`` gets longer, and that nothing else does."""
    a, steps = x[:1], 0
    while a.sum() < 8 and steps < 4:
        a = torch.cat([a, x[:1].abs() + 1])
        steps += 1
    return a * steps


def sizes_that_follow(x: Tensor) -> Any:
    """A trip later ``b`` is as long as ``a`` was, and ``c`` two trips later."""
    a, b, c, steps = x[:1], x[:1], x[:1], 0
    while a.sum() < 8 and steps < 4:
        a, b, c = torch.cat([a, x[:1].abs() + 1]), a, b * 2
        steps += 1
    return a.sum(), b, c


def types_that_follow(x: Tensor) -> Any:
    """A trip later ``late`` is a float too."""
    now, late, steps = 0, 0, 0
    while x[:, 0].sum() + now < 8 and steps < 5:
        now, late = now + 1.5, now
        steps += 1
    return x * late, x[0] + now


def lists_that_follow(x: Tensor) -> Any:
    """The list is longer after each trip, and so is, a trip later, what is made of it."""
    kept, seen, steps = [], x[:1, 0], 0
    while x.sum() + len(kept) < 12 and steps < 4:
        seen = torch.stack(kept) if len(kept) > 0 else x[:1, 0]
        kept.append(x[0, 0] * steps)
        steps += 1
    return seen.sum() * len(kept)


def a_list_that_grows(x: Tensor) -> Any:
    """From the first trip on it is another object for the trace, and the function's own list all the same."""
    kept, steps = [], 0
    while x.abs().max() > 0.5 and steps < 6:
        kept.append(steps)
        x = x * 0.8
        steps += 1
    return x * len(kept), torch.tensor(kept)


def none_in_a_trip(x: Tensor) -> Any:
    """The trip that is thrown away finds that ``half`` may be None; the next one knows it."""
    steps = 0
    while x.abs().max() > 0.5 and steps < 6:
        half = None
        if x[0, 0] > 0:
            half = x * 0.5
        x = x * 0.8 if half is None else half - 0.1
        steps += 1
    return x * steps


@pytest.mark.parametrize(
    "model",
    [grows, sizes_that_follow, types_that_follow, lists_that_follow, a_list_that_grows, none_in_a_trip],
)
def test_all_that_changes_is_carried(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS])


@pytest.mark.parametrize(
    ("model", "traces"),
    [
        *((model, 2) for model in (grows, a_list_that_grows, none_in_a_trip)),
        *((model, 3) for model in (sizes_that_follow, types_that_follow)),
    ],
)
def test_a_trace_begins_anew_only_where_one_trip_does_not_show_all(model: Any, traces: int) -> None:
    """The first one finds that a tensor decides."""
    with mock.patch.object(torch.export, "export", wraps=torch.export.export) as export:
        regraft.capture(model, (UP,))
    assert export.call_count == traces
