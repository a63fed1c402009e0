"""Lists, dicts and records where paths meet: they keep their identity, or changes of them are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls

HERE = Path(__file__).name
ROW = torch.tensor([1.0, -2.0, 3.5, 4.0])


@dataclass
class Beam:
    score: float
    state: Any


# -- the same object on both paths ---------------------------------------------------------------


def the_same_in_both_arms(x: Tensor) -> Tensor:
    a, b = [1.0], [2.0]
    if x.sum() > 0:
        y, c, d = x * 2, a, (b, a)
    else:
        y, c, d = x * 3, a, (b, a)
    c[0] = 5.0
    d[0].append(3.0)
    return y + a[0] + len(b)


def a_list_in_a_dict(x: Tensor) -> Tensor:
    outs = [x]
    state: dict[str, Any] = {"outs": outs, "n": 0}
    if x.sum() > 0:
        state["n"] += 1
    outs.append(x * 2)
    return torch.stack(state["outs"]).sum(0) + state["n"]


def a_list_in_a_list_that_both_arms_change(x: Tensor) -> Tensor:
    first = [1.0]
    lists = [first, [2.0]]
    if x.sum() > 0:
        lists[1] = [3.0]
        first[0] = 5.0
    else:
        first[0] = 6.0
    first.append(1.0)
    return x + lists[0][0] + lists[1][0] * 10 + first[0] * 100 + len(lists[0])


def a_record_in_a_list(x: Tensor) -> Tensor:
    beams = [Beam(1.0, x), Beam(2.0, x * 2)]
    beam = beams[0]
    if x.sum() > 0:
        beams[1] = Beam(3.0, x * 3)
    beam.score, beam.state = 9.0, x * 100
    return beams[0].state * beams[0].score + beams[1].score


def one_list_of_two_names(x: Tensor) -> Tensor:
    if x.sum() > 0:
        a = b = [1.0]
    else:
        a = b = [2.0]
    a.append(5.0)
    return x + b[0] + len(b) * 10


class Row(list[Any]):
    """A list that torch does not take apart."""


def what_is_not_taken_apart(x: Tensor) -> Tensor:
    row, size = Row([x]), x.shape
    if x.sum() > 0:
        y, held, sizes = x * 2, row, size
    else:
        y, held, sizes = x * 3, row, size
    held.append(y)
    return torch.stack(row).sum(0) + sizes[0]


SAME = [
    what_is_not_taken_apart,
    the_same_in_both_arms,
    a_list_in_a_dict,
    a_list_in_a_list_that_both_arms_change,
    a_record_in_a_list,
    one_list_of_two_names,
]


@pytest.mark.parametrize("model", SAME, ids=lambda model: model.__name__)
def test_what_is_the_same_on_both_paths_stays_that_object(model: Any) -> None:
    check_calls(model, (ROW,), [(-ROW,)], backends=("ort",))


# -- another object on each path -----------------------------------------------------------------


def number_of(x: Tensor) -> int:
    return int((x > 0).sum()) - 2


def chosen_by_an_index(x: Tensor) -> Tensor:
    buckets: list[list[Tensor]] = [[x], [x], [x]]
    buckets[number_of(x)].append(x)
    return x + len(buckets[0]) + len(buckets[1]) * 10


def an_element_of_what_an_index_chooses(x: Tensor) -> Tensor:
    lists = [[1.0], [2.0], [3.0]]
    lists[number_of(x)][0] = 50.0
    return x + lists[0][0] + lists[1][0]


def chosen_in_a_tuple(x: Tensor) -> Tensor:
    a, b = [1.0], [2.0]
    both = (a, b) if x.sum() > 0 else (b, a)
    both[0].append(4.0)
    return x + len(a)


def a_chosen_record(x: Tensor) -> Tensor:
    a, b = Beam(1.0, x), Beam(2.0, x * 2)
    c = a if x.sum() > 0 else b
    c.state = x * 100
    return a.state + b.state


def another_one_on_one_path(x: Tensor) -> Tensor:
    a = [1.0, 2.0]
    b = a
    if x.sum() > 0:
        a = [a[0], 7.0]
    a[0] = 3.0
    return x + b[0]


def swapped_on_one_path(x: Tensor) -> Tensor:
    a, b = [1.0], [2.0]
    c = a
    if x.sum() > 0:
        a, b = b, a
    c[0] = 7.0
    return x + a[0] + b[0] * 10


def one_of_two_names_on_one_path(x: Tensor) -> Tensor:
    if x.sum() > 0:
        a = b = [1.0]
    else:
        a, b = [1.0], [2.0]
    a[0] = 5.0
    return x + b[0]


def changed_in_an_arm(x: Tensor) -> Tensor:
    a, b = [1.0], [2.0]
    c = a if x.sum() > 0 else b
    if x.max() > 1:
        c[0] = 9.0
        x = x + a[0]
    return x


CHOSEN = [
    chosen_by_an_index,
    an_element_of_what_an_index_chooses,
    chosen_in_a_tuple,
    a_chosen_record,
    another_one_on_one_path,
    swapped_on_one_path,
    one_of_two_names_on_one_path,
    changed_in_an_arm,
]


@pytest.mark.parametrize("model", CHOSEN, ids=lambda model: model.__name__)
def test_a_change_of_what_others_may_hold_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="of which a tensor decides whether it is another one") as caught:
        regraft.capture(model, (ROW,))
    assert HERE in str(caught.value.location)
    assert "copy" in str(caught.value.hint)


def which_list_it_is(x: Tensor) -> Tensor:
    a, b = [1.0], [2.0]
    c = a if x.sum() > 0 else b
    return x * 2 if c is a else x * 3


def test_which_of_two_containers_it_is_is_refused() -> None:
    with pytest.raises(CaptureError, match="are one object") as caught:
        regraft.capture(which_list_it_is, (ROW,))
    assert HERE in str(caught.value.location)


def only_read(x: Tensor) -> Tensor:
    lists, beams = [[1.0, x], [2.0, x * 2]], [Beam(1.0, x), Beam(2.0, x * 3)]
    chosen = lists[number_of(x)]
    beam = beams[0] if x.sum() > 0 else beams[1]
    fresh = [x] if x.max() > 3 else [x * 2]
    fresh.append(chosen[1])
    return torch.stack(fresh).sum(0) * chosen[0] + beam.state * beam.score


def test_what_is_only_read_is_chosen() -> None:
    check_calls(only_read, (ROW,), [(-ROW,)], backends=("ort",))
