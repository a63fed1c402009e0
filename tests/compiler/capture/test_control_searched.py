"""`index`, `count` and `in` of lists of a known length, with numbers that only a call knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.errors import RegraftError
from tests.compiler.capture.running import check_calls, compiled

X = torch.tensor([[1.0, 2.0], [-3.0, 0.0], [4.0, 4.0]])
CALLS = [(X[[1, 0, 2]],), (X[[2, 0, 1]],), (X[[0, 2, 0]],), (X[[1, 1, 1]],)]


def means(x: Tensor) -> list[float]:
    return [row.mean().item() for row in x]


def index_of_the_least(x: Tensor) -> Tensor:
    scores = means(x)
    return x[scores.index(min(scores))]


def index_in_a_tuple_of_lists(x: Tensor) -> Tensor:
    scores = tuple(means(x))
    return [x, x * 2, x + 3][scores.index(max(scores))]


def index_from_a_start(x: Tensor) -> Tensor:
    scores = [*means(x), 1.5, 9.0]
    return x * scores.index(1.5, 1) + scores.index(9.0, -1, 12)


def index_where_one_is_certain(x: Tensor) -> Tensor:
    wanted = (x > 0).sum().item()
    found: list[Any] = ["none", 4, wanted, x]
    return x * found.index(wanted)


def index_of_a_number_among_constants(x: Tensor) -> Tensor:
    wanted: Any = (x > 0).sum().item()
    return x * [0, 2, 4, 3, 6].index(wanted)


def counts(x: Tensor) -> Tensor:
    scores = means(x)
    return x * scores.count(1.5) + (1, 2, 4, 2, None).count((x > 0).sum().item())


def held_in_it(x: Tensor) -> Tensor:
    scores = means(x)
    return x * 2 if 1.5 in scores and max(scores) not in scores[:1] else x - 1


@pytest.mark.parametrize(
    "model",
    [
        index_of_the_least,
        index_in_a_tuple_of_lists,
        index_from_a_start,
        index_where_one_is_certain,
        index_of_a_number_among_constants,
        counts,
        held_in_it,
    ],
)
def test_it_is_found_where_eager_finds_it(model: Any) -> None:
    calls = CALLS[:2] if model in (index_from_a_start, index_of_a_number_among_constants) else CALLS
    check_calls(model, (X,), calls)


def index_of_what_need_not_be_there(x: Tensor) -> Tensor:
    return x * means(x).index(1.5)


def test_a_call_raises_in_which_it_is_not_there() -> None:
    made = compiled(index_of_what_need_not_be_there, (X,), "ort")
    torch.testing.assert_close(made(X), index_of_what_need_not_be_there(X))
    with pytest.raises(RegraftError, match="ValueError: the value is not in the list"):
        made(X * 10)


def test_nan_is_not_searched_for_among_nan() -> None:
    made = compiled(index_of_the_least, (X,), "ort")
    with pytest.raises(RegraftError, match="nan is searched for among numbers with nan"):
        made(torch.full((3, 2), torch.nan))
