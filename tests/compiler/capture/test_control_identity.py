"""Questions that Python answers by objects and not by values: `is` of numbers, and the order of nan."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError, RegraftError
from tests.compiler.capture.running import compiled

PAIR = torch.tensor([1, 1])
PAIRS = [torch.tensor(values) for values in ([1, 1], [1, 2], [300, 300], [0, -7])]


def of_two_items(x: Tensor) -> Tensor:
    m, n = x[0].item(), x[1].item()
    return x + 1 if m is n else x


def is_not(x: Tensor) -> Tensor:
    m, n = x[0].item(), x[1].item()
    if m is not n:
        x = x * 2
    return x


def of_a_sum(x: Tensor) -> Tensor:
    m = x[0].item()
    n = m + 0
    return x + 1 if m is n else x


def of_what_an_arm_chooses(x: Tensor) -> Tensor:
    m = 1 if x.sum() > 2 else 2
    n = 1
    return x + 1 if m is n else x


def of_one_that_may_be_the_other(x: Tensor) -> Tensor:
    a, b = float(x[0]), float(x[1])
    m = a if x.sum() > 2 else b
    return x + 1 if m is a else x


def same(m: Any, n: Any) -> bool:
    return m is n


def in_another_function(x: Tensor) -> Tensor:
    return x + 1 if same(x[0].item(), x[1].item()) else x


def of_sizes(x: Tensor) -> Tensor:
    found = x[x > 0]
    return x + 1 if len(found) is x.shape[0] else x


@pytest.mark.parametrize(
    "model",
    [
        *(of_two_items, is_not, of_a_sum, of_what_an_arm_chooses, of_one_that_may_be_the_other),
        *(in_another_function, of_sizes),
    ],
)
def test_is_of_two_numbers_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="`is` of two numbers of which only a call knows one") as caught:
        regraft.capture(model, (PAIR,))
    assert __file__ in (caught.value.location or "")
    assert "==" in (caught.value.hint or "")


def of_itself(x: Tensor) -> Tensor:
    m = x[0].item()
    n = m
    return x + 1 if m is n else x


def of_other_kinds(x: Tensor) -> Tensor:
    m, nothing, half, text = x[0].item(), None, 0.5, "m"
    found = (m is nothing, m is None, m is True, m is half, text is m, float(x[0]) is m)
    return x + 1 if any(found) else x * 2 if m is not nothing else x


def of_truth_values(x: Tensor) -> Tensor:
    up, down = bool(x[0] > 1), bool(x[1] > 1)
    return x + 1 if up is down else x


@pytest.mark.parametrize("model", [of_itself, of_other_kinds, of_truth_values])
def test_is_of_what_is_known(model: Any) -> None:
    made = compiled(model, (PAIR,), "eager")
    for x in PAIRS:
        assert made(x).tolist() == model(x).tolist()


# -- nan ---------------------------------------------------------------------------------------

NAN = math.nan
ROWS = [
    torch.tensor(values, dtype=torch.float64)
    for values in (
        [2.0, 1.0, 3.0],
        [1.0, NAN, 2.0],
        [NAN, 1.0, 2.0],
        [3.0, 1.0, NAN],
        [NAN] * 3,
        [0.0, -0.0, 0],
    )
]


def of_a_list(x: Tensor) -> Tensor:
    return torch.tensor([min(x.tolist()), max(x.tolist())], dtype=torch.float64)


def of_arguments(x: Tensor) -> Tensor:
    a, b, c = x.tolist()
    values = [min(a, b, 1.5), max(c, 2.5, a), max(a, NAN), min(NAN, b), max(b, c, key=lambda v: -v)]
    return torch.tensor(values, dtype=torch.float64)


def of_an_unknown_list(x: Tensor) -> Tensor:
    values = x[x != 9].tolist()
    found = [min(values), max(values), min(values, default=0.0), max(values, default=7.0)]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize("model", [of_a_list, of_arguments, of_an_unknown_list])
def test_min_and_max_pick_as_python_does(model: Any, backend: str) -> None:
    made = compiled(model, (ROWS[0],), backend)
    for x in ROWS:
        assert repr(made(x).tolist()) == repr(model(x).tolist())


def sorted_numbers(x: Tensor) -> Tensor:
    return torch.tensor(sorted(x.tolist()), dtype=torch.float64)


def sorted_from_the_greatest(x: Tensor) -> Tensor:
    a, b, c = x.tolist()
    return torch.tensor(sorted([a, b, c], reverse=True), dtype=torch.float64)


def sorted_of_an_unknown_list(x: Tensor) -> Tensor:
    return torch.tensor(sorted(x[x != 9].tolist()), dtype=torch.float64)


@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize("model", [sorted_numbers, sorted_from_the_greatest, sorted_of_an_unknown_list])
def test_sorted_raises_where_nan_decides(model: Any, backend: str) -> None:
    made = compiled(model, (ROWS[0],), backend)
    for x in ROWS:
        if x.isnan().any():
            with pytest.raises(RegraftError, match="sorted of numbers with nan among them"):
                made(x)
        else:
            assert made(x).tolist() == model(x).tolist()


def test_one_number_is_in_order() -> None:
    made = compiled(sorted_of_an_unknown_list, (ROWS[0],), "eager")
    for values in ([NAN, 9.0, 9.0], [9.0, 9.0, 9.0]):
        x = torch.tensor(values, dtype=torch.float64)
        assert repr(made(x).tolist()) == repr(sorted_of_an_unknown_list(x).tolist())
