"""What is in containers, and which lists and sets are equal, of numbers that only a call knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError, RegraftError
from tests.compiler.capture.running import check_calls, compiled

HERE = Path(__file__).name
X = torch.tensor([1.0, -2.0, 3.0, 4.0])
CALLS = [
    (torch.tensor(row),) for row in ([-1.0, -2.0, -3.0, -4.0], [1.0, 2.0, 3.0, 1.0], [5.0, -1.0, 4.0, -2.0])
]
NAMED = {3: "three", 0: "zero"}
KEYS = NAMED.keys()


def positives(x: Tensor) -> Any:
    return (x > 0).sum().item()


def whole(x: Tensor) -> Any:
    return x[x > 0].to(torch.int64).tolist()


# -- in ----------------------------------------------------------------------------------------


def in_a_set(x: Tensor) -> Tensor:
    return x * 2 if positives(x) in {2, 3} else x - 1


def not_in_a_frozenset(x: Tensor) -> Tensor:
    if positives(x) not in frozenset((2, 3, None)):
        x = x * 3
    return x


def in_a_mixed_set(x: Tensor) -> Tensor:
    return x * 2 if x.sum().item() in {6, 7.0, "a"} else x - 1


def in_no_set(x: Tensor) -> Tensor:
    return x * 2 if positives(x) in set[int]() else x - 1


def in_a_range(x: Tensor) -> Tensor:
    n = positives(x)
    return x * (1 + (n in range(2, 4)) + 2 * (n in range(4, -1, -2)) + 4 * (n + 0.5 in range(9)))


def in_an_unknown_range(x: Tensor) -> Tensor:
    n = positives(x)
    return x * (1 + (2 in range(n)) + 2 * (n in range(1, n)) + 4 * (n - 1 in range(n - 3, n + 1, 2)))


def in_a_dict(x: Tensor) -> Tensor:
    n = positives(x)
    return x * (1 + (n in NAMED) + 2 * (n in KEYS) + 4 * (n in {"a": 2, "b": 4}.values()))


def in_a_list_of_numbers(x: Tensor) -> Tensor:
    n, found = positives(x), whole(x)
    return x * (1 + (n in found) + 2 * (5 in found) + 4 * (x.max() in found) + 8 * ("a" in found))


def in_a_list_of_tensors(x: Tensor) -> Tensor:
    kept = [each * 2 for each in x if each > 0]
    return x * (1 + (6 in kept) + 2 * (x[0] * 2 in kept))


def in_what_grows(x: Tensor) -> Tensor:
    seen, i, now = [], 0, x.abs().max().to(torch.int64).item()
    while now not in seen and i < 20:
        seen.append(now)
        now, i = (now * 3 + 1) % 7, i + 1
    return x + i


def tensors_are_hashed_by_identity(x: Tensor) -> Tensor:
    largest = x.max()
    return x * (1 + (largest in {3.0, 4.0}) + 2 * (largest in (3.0, 4.0)) + 4 * (largest in set(whole(x))))


IN = [
    in_a_set,
    not_in_a_frozenset,
    in_a_mixed_set,
    in_no_set,
    in_a_range,
    in_an_unknown_range,
    in_a_dict,
    in_a_list_of_numbers,
    in_a_list_of_tensors,
    in_what_grows,
    tensors_are_hashed_by_identity,
]


@pytest.mark.parametrize("model", IN, ids=lambda model: model.__name__)
def test_in(model: Any) -> None:
    check_calls(model, (X,), CALLS, backends=("ort",))


# -- == ----------------------------------------------------------------------------------------


def equal_lists(x: Tensor) -> Tensor:
    found, some = whole(x), [1, 3]
    other = [each + 1 for each in (x - 1)[x > 0].tolist()]
    return x * (1 + (found == [1, 3, 4]) + 2 * (some == found) + 4 * (found != other) + 8 * (found == found))


def equal_to_no_list(x: Tensor) -> Tensor:
    found, parts = whole(x), x[:, None][x > 0].tolist()
    return x * (1 + (found == []) + 2 * (parts != []) + 4 * (found == (1, 3, 4)) + 8 * (found != 3))


def equal_sets(x: Tensor) -> Tensor:
    one, other = set(whole(x)), set(whole(x * (x > 2)))
    return x * (1 + (one == {1, 3, 4}) + 2 * (one != other) + 4 * (frozenset((4, 3)) == other))


def ordered_sets(x: Tensor) -> Tensor:
    one, some = set(whole(x)), {1, 3, 4}
    return x * (1 + (one <= some) + 2 * (one < some) + 4 * (some <= one) + 8 * (one > {3}) + 16 * (one < one))


def different_sets(x: Tensor) -> Tensor:
    return x * len(set(whole(x)) ^ {1, 7}) + len({1, 7} ^ set(whole(x)))


def joined_lists(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = x[x > 0].tolist()
    more, half = [*range(2)], [0.5]
    return torch.tensor(found + half), torch.tensor(half + found + found), torch.tensor(more + whole(x))


EQUAL = [equal_lists, equal_to_no_list, equal_sets, ordered_sets, different_sets, joined_lists]


@pytest.mark.parametrize("model", EQUAL, ids=lambda model: model.__name__)
def test_equal(model: Any) -> None:
    check_calls(model, (X,), CALLS, backends=("ort",))


# -- places ------------------------------------------------------------------------------------


def fifth_from_the_end(x: Tensor) -> Tensor:
    return x + x[x > -9].tolist()[-5]


def test_there_is_no_such_element() -> None:
    made = compiled(fifth_from_the_end, (X.repeat(2),), "ort")
    torch.testing.assert_close(made(X.repeat(2)), fifth_from_the_end(X.repeat(2)))
    wanting = torch.cat([X, X - 99])
    with pytest.raises(RegraftError, match="IndexError: list index out of range"):
        made(wanting)


# -- what is refused ---------------------------------------------------------------------------


def pair_in_a_set(x: Tensor) -> Tensor:
    return x * ((positives(x), 1) in {(3, 1)})


def tensors_compared(x: Tensor) -> Tensor:
    kept = [row * 2 for row in x if row > 0]
    return x * (kept == [x[0]])


def lists_in_order(x: Tensor) -> Tensor:
    return x * (whole(x) < [2])


def in_a_list_of_rows(x: Tensor) -> Tensor:
    kept = [row * 2 for row in x[:, None] if row.sum() > 0]
    return x * (x[:1] in kept)


def with_a_set_of_words(x: Tensor) -> Tensor:
    return x * (set(whole(x)) == {"a"})


def set_in_place(x: Tensor) -> Tensor:
    found = set(whole(x))
    same = found
    found |= {9}
    return x * len(same)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (pair_in_a_set, "a key of a dict or a set"),
        (tensors_compared, "of what are no numbers is compared"),
        (lists_in_order, "is compared by its order"),
        (in_a_list_of_rows, "is searched for a value"),
        (with_a_set_of_words, "is compared with a set of what are no integers"),
        (set_in_place, "is changed in place"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_refused(model: Any, words: str) -> None:
    with pytest.raises(CaptureError, match=words) as caught:
        regraft.capture(model, (X,))
    assert HERE in str(caught.value.location)
    assert caught.value.hint
