"""Lists and sets of which only a call knows the length: comprehensions, ``extend``, loops, searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError, RegraftError
from tests.compiler.capture.running import check_calls, compiled, rows

HERE = Path(__file__).name
UP = rows(6, shift=1.0)
SHIFTS = [rows(6, seed=i, shift=shift) for i, shift in enumerate((-0.7, -0.2, 0.1, 0.4, 0.9, 2.0))]


# -- comprehensions ----------------------------------------------------------------------------


def rows_that_are_kept(x: Tensor) -> Tensor:
    kept = [row * 2 for row in x if row.sum() > 0]
    return x * len(kept)


def kept_and_stacked(x: Tensor) -> Tensor:
    kept = [x[0]]
    kept.extend([row * 2 for row in x if row.sum() > 0])
    return torch.stack(kept).sum(0) + len(kept)


def places_of_rows(x: Tensor) -> Tensor:
    places = [i for i, row in enumerate(x) if row[0] > 0 and i != 3]
    return x[places].sum(0)


def two_conditions(x: Tensor) -> Tensor:
    found = [i for i in range(6) if i % 2 == 0 if x[i, 0] > 0]
    return torch.tensor(found).sum() + x.sum()


def over_one_of_unknown_length(x: Tensor) -> Tensor:
    part = x[x[:, 0] > 0]
    places = [i for i, row in enumerate(part) if row.sum() > 1]
    doubled = [2 * i + 1 for i in places]
    return part[places].sum() + torch.tensor(doubled).sum()


def pairs_of_unknown_length(x: Tensor) -> Tensor:
    part = x[x[:, 0] > 0]
    sums = [(a * b).sum() for a, b in zip(part, part + 1, strict=True) if a[1] < b[2]]
    return x * len(sums)


def without_conditions(x: Tensor) -> Tensor:
    if x.sum() > 0:
        x = x * 2
    return torch.stack([row + i for i, row in enumerate(x)])


@pytest.mark.parametrize(
    "model",
    [
        rows_that_are_kept,
        kept_and_stacked,
        places_of_rows,
        two_conditions,
        over_one_of_unknown_length,
        pairs_of_unknown_length,
        without_conditions,
    ],
    ids=lambda model: model.__name__,
)
def test_comprehensions(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in (UP - 9, *SHIFTS)], backends=("ort",))


def stacks_what_is_kept(x: Tensor) -> Tensor:
    return torch.stack([row * 2 for row in x if row.sum() > 0])


def test_there_is_nothing_to_stack() -> None:
    made = compiled(stacks_what_is_kept, (UP,), "ort")
    for x in (UP, UP + 9):
        torch.testing.assert_close(made(x), stacks_what_is_kept(x))
    with pytest.raises(RegraftError, match="a list of tensors to be joined is empty"):
        made(UP - 9)


# -- loops -------------------------------------------------------------------------------------


def goes_over_what_is_left(x: Tensor) -> Tensor:
    total = x[0]
    for i, row in enumerate(x[x[:, 0] > 0], 1):
        if row.sum() > 4:
            break
        total = total + row * i
    return total


def goes_over_a_list(x: Tensor) -> Tensor:
    seen, y = [], x
    while y.abs().max() > 0.5:
        y = y * 0.5
        seen.append(y[0])
    for each in seen:
        x = x + each
    return x


@pytest.mark.parametrize("model", [goes_over_what_is_left, goes_over_a_list])
def test_loops(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in (UP - 9, *SHIFTS)])


def appends_and_leaves(x: Tensor) -> tuple[Tensor, Tensor]:
    seen = []
    for _ in range(4):
        x = x * 0.6
        seen.append(x.norm())
        if seen[-1] < 2:
            break
    return x, torch.stack(seen)


def appends_numbers_and_leaves(x: Tensor) -> Tensor:
    steps, rows = [0], []
    for i in range(5):
        x = x * 0.6
        steps.append(i * 2)
        rows.append(x[0])
        if x.norm() < 2:
            break
    else:
        steps.append(-1)
    return torch.tensor(steps).sum() + torch.stack(rows)


def collects_in_a_helper(x: Tensor) -> Tensor:
    def history(y: Tensor, trips: int) -> Tensor:
        seen = []
        for i in range(trips):
            y = y * 0.6
            if i % 2 == 0:
                seen.append(y.sum(0))
            if y.norm() < 2:
                break
        return torch.stack(seen)

    return torch.cat([history(x, 3), history(x[:2] * 2, 4)])


@pytest.mark.parametrize(
    "model", [appends_and_leaves, appends_numbers_and_leaves, collects_in_a_helper], ids=lambda m: m.__name__
)
def test_a_loop_appends_and_is_left_in_any_trip(model: Any) -> None:
    calls = [(UP * scale,) for scale in (0.1, 0.6, 1.0, 1.7, 3.0, 9.0)]
    check_calls(model, (UP,), calls, backends=("ort",))


def loses_what_it_has_appended(x: Tensor) -> Tensor:
    seen = [x[0]]
    for _ in range(3):
        x = x * 0.6
        seen.append(x[0])
        if x.norm() < 2:
            seen.pop()
            break
    return torch.stack(seen)


# -- extend, lists of lists, searches ----------------------------------------------------------


def extends_in_a_loop(x: Tensor) -> tuple[Tensor, Tensor]:
    ended, scores, k = [], [], 0
    while x.abs().max() > 0.4:
        x, k = x * 0.6, k + 1
        part = x[x[:, 0] > 0.3]
        if len(part) > 0:
            ended.extend((part * 10).to(torch.int64).tolist())
            scores.extend(part[:, 1])
    if not ended:
        return torch.tensor([k, -1, -1, -1]), x[0, 0]
    i = scores.index(max(scores))
    return torch.tensor(ended[i]), min(scores) + scores[i]


def lists_of_other_lengths(x: Tensor) -> Tensor:
    found, n = [], 1
    while x.abs().max() > 0.4:
        x, n = x * 0.6, n + 1
        found.append((x[0, 0] + torch.arange(n)).tolist())
    return torch.tensor(found[-1]) + len(found) if len(found) > 0 else torch.zeros(1)


@pytest.mark.parametrize("model", [extends_in_a_loop, lists_of_other_lengths])
def test_lists_of_lists(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in (UP * 0, UP - 9, *SHIFTS)], backends=("ort",))


def best_of(x: Tensor) -> tuple[Any, Any]:
    values = x[x[:, 0] > 0][:, 0].tolist()
    return values.index(max(values)), min(values)


def test_the_first_of_the_best_is_found() -> None:
    x = torch.tensor([[-1.0], [3.0], [7.0], [7.0], [2.0]])
    made = compiled(best_of, (x,), "ort")
    assert [float(each) for each in made(x)] == [1.0, 2.0]
    with pytest.raises(RegraftError):
        made(-x.abs())


# -- sets --------------------------------------------------------------------------------------


def the_others(x: Tensor) -> tuple[Tensor, Tensor]:
    kept = [i for i, row in enumerate(x) if row.sum() > 0]
    others = list(set(range(len(x))) - set(kept))
    both = sorted(set(kept) | {0, 9})
    return x[others].sum(0), torch.tensor(both) + len(set(kept) & {1, 2})


def is_among(x: Tensor) -> Tensor:
    part = x[x[:, 0] > 0]
    numbers = set((part * 2).to(torch.int64)[:, 0].tolist())
    return x * len(numbers) if 3 in numbers else x + 1


@pytest.mark.parametrize("model", [the_others, is_among])
def test_sets(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in (UP - 9, UP + 9, *SHIFTS)], backends=("ort",))


def listed(x: Tensor) -> Tensor:
    return torch.tensor(list(set(range(int(x.max()))) - {2}))


def test_a_list_of_a_set_has_pythons_order_or_none() -> None:
    made = compiled(listed, (torch.tensor([3.0]),), "ort")
    for limit in (0.0, 1.0, 3.0, 8.0):
        assert made(torch.tensor([limit])).tolist() == list(set(range(int(limit))) - {2})
    with pytest.raises(RegraftError, match="write sorted"):
        made(torch.tensor([9.0]))


# -- what is refused ---------------------------------------------------------------------------


def of_two_types(x: Tensor) -> Tensor:
    kept = [x[0] if i else x for i in range(3) if x[i, 0] > 0]
    return kept[0]


def grows_while_it_is_gone_over(x: Tensor) -> Tensor:
    seen = [i for i in range(3) if x[i, 0] > 0]
    for each in seen:
        seen.append(each)
    return x * len(seen)


def a_condition_between_two_loops(x: Tensor) -> Tensor:
    return torch.tensor([i + j for i in range(2) if x[i, 0] > 0 for j in range(2)])


def a_set_in_a_comprehension(x: Tensor) -> Tensor:
    return x * len({i for i in range(3) if x[i, 0] > 0})


def goes_over_a_set(x: Tensor) -> Tensor:
    for i in set(range(int(x.max()))):
        x = x + i
    return x


def extends_another(x: Tensor) -> Tensor:
    outs: list[Any] = []
    same = outs
    outs.extend(x[x[:, 0] > 0])
    return torch.stack(same)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (of_two_types, "holds elements of different types|takes in an element of another type"),
        (grows_while_it_is_gone_over, "grows while it is gone over"),
        (a_condition_between_two_loops, "a condition in a comprehension"),
        (a_set_in_a_comprehension, "a condition in a comprehension"),
        (goes_over_a_set, "a set of which only a call knows the numbers is gone over"),
        (loses_what_it_has_appended, "is changed by pop()|the variable 'seen' holds more"),
        (extends_another, "the variable 'outs' is extended by something of which only a call knows"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_refused(model: Any, words: str) -> None:
    with pytest.raises(CaptureError, match=words) as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert caught.value.hint or "; " in caught.value.message
