"""Lists hold the very tensors and lists that they were given: what is written later shows, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls, rows

HERE = Path(__file__).name
UP = rows(4)
CALLS = [(UP - 9,), (UP + 9,), (-UP,)]
ROW = torch.tensor([1.0, -2.0, 3.5, 4.0])


# -- loops of which one trip stands for all ------------------------------------------------------


def one_tensor_written_in_each_trip(x: Tensor) -> Tensor:
    outs, h = [], x.clone()
    for _ in range(34):
        h.add_(1)
        outs.append(h)
    return torch.stack(outs).sum(0)


def one_tensor_written_afterwards(x: Tensor) -> Tensor:
    outs, h = [], x.clone()
    for _ in range(34):
        outs.append(h)
    h.add_(1)
    return torch.stack(outs).sum(0)


def views_of_what_is_written_afterwards(x: Tensor) -> Tensor:
    outs, h = [], x.clone()
    for i in range(34):
        outs.append(h[i % 4])
    h.add_(1)
    return torch.stack(outs).sum(0)


def the_last_one_written_afterwards(x: Tensor) -> Tensor:
    outs, h = [], x.clone()
    for _ in range(34):
        h = h * 0.9
        outs.append(h)
    h.add_(1)
    return torch.stack(outs).sum(0)


def a_ring_buffer(x: Tensor) -> Tensor:
    ring, outs = torch.zeros_like(x), []
    for i in range(34):
        ring[i % 4] = x[i % 4] * i
        outs.append(ring[i % 4])
    return torch.stack(outs).sum(0)


class UpdatedInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, outs = torch.zeros_like(x[0]), []
        for i in range(34):
            h.mul_(0.9).add_(torch.tanh(self.linear(x[i % 4] + h)))
            outs.append(h)
        return torch.stack(outs)


LONG = [
    one_tensor_written_in_each_trip,
    one_tensor_written_afterwards,
    views_of_what_is_written_afterwards,
    the_last_one_written_afterwards,
    a_ring_buffer,
    UpdatedInPlace().eval(),
]


@pytest.mark.parametrize("model", LONG, ids=lambda m: getattr(m, "__name__", "updated_in_place"))
def test_long_loops(model: Any) -> None:
    check_calls(model, (UP,), [(UP - 9,)], backends=("ort",))


def copies_of_what_is_written(x: Tensor) -> Tensor:
    outs, h = [], x.clone()
    for _ in range(34):
        h.add_(1)
        outs.append(h.clone())
    return torch.stack(outs)


def one_of_them_written_afterwards(x: Tensor) -> tuple[Tensor, Tensor]:
    outs, h = [], x
    for _ in range(34):
        h = h * 0.9
        outs.append(h)
    outs[3].add_(1)
    return torch.stack(outs).sum(0), torch.cat(outs[:5], -1)


@pytest.mark.parametrize("model", [copies_of_what_is_written, one_of_them_written_afterwards])
def test_long_loops_stay_loops(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))
    assert "cf.while" in [op.name for op in regraft.capture(model, (UP,)).main.walk()]


# -- variables that get another list -------------------------------------------------------------


def the_list_before(x: Tensor) -> Tensor:
    now = x[x > 0].tolist()
    before, total = now, x * 0
    while len(now) > 1:
        total, now = total * 0.5 + now[-1], now[:-1]
    return total + len(before)


def the_list_of_tensors_before(x: Tensor) -> Tensor:
    now = [x, x * 2]
    before = now
    while now[0].abs().max() < 30:
        now = [now[1] * 2, now[0]]
    return now[0] + before[1] * 100


@pytest.mark.parametrize("model", [the_list_before, the_list_of_tensors_before])
def test_another_list_is_not_the_one_before(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))


# -- what is refused -----------------------------------------------------------------------------


def views_written(x: Tensor) -> Tensor:
    y = x.clone()
    for each in [row for row in y if row.sum() > 0]:
        each.mul_(2)
    return y


def a_view_set(x: Tensor) -> Tensor:
    y = x.clone()
    kept = [row for row in y if row.sum() > -99]
    if len(kept) > 0:
        kept[0][0] = 5.0
    return y


def elements_written_at_an_index(x: Tensor) -> Tensor:
    boxes = [row * 2 for row in x if row.sum() > 0]
    for box in boxes:
        box[0] += 100
    return x * len(boxes)


def elements_written(x: Tensor) -> Tensor:
    boxes = [row * 2 for row in x if row.sum() > 0]
    for box in boxes:
        box += 100
    return x * len(boxes)


def the_last_element_written(x: Tensor) -> Tensor:
    outs, h = [], x[0]
    while h.abs().max() > 0.1:
        h = h * 0.5
        outs.append(h)
    outs[-1].zero_()
    return torch.stack(outs).sum(0)


def an_element_written_in_a_loop(x: Tensor) -> Tensor:
    outs, h = [row * 2 for row in x if row.sum() > 0], x[0]
    h = outs[0]
    while h.abs().max() < 9:
        h.mul_(2)
    return torch.stack(outs).sum(0)


def what_the_list_starts_with(x: Tensor) -> Tensor:
    y = x + 0
    outs, i = [y], 0
    while i < (x > 0).sum():
        outs.append(x * i)
        i += 1
    y.add_(10)
    return torch.stack(outs)


def what_extends_it(x: Tensor) -> Tensor:
    y = x[0] + 0
    outs = [row * 2 for row in x if row.sum() > 0]
    outs.extend([y])
    y.add_(10)
    return torch.stack(outs)


def what_an_arm_appends(x: Tensor) -> Tensor:
    outs, y = [x], x * 1
    if x.sum() > 0:
        y = x * 2
        outs.append(y)
    y.add_(1)
    return torch.stack(outs).sum(0)


REFUSED = [
    views_written,
    a_view_set,
    elements_written_at_an_index,
    elements_written,
    the_last_element_written,
    an_element_written_in_a_loop,
    what_the_list_starts_with,
    what_extends_it,
    what_an_arm_appends,
]


@pytest.mark.parametrize("model", REFUSED, ids=lambda model: model.__name__)
def test_writes_to_elements_are_refused(model: Any) -> None:
    with pytest.raises(
        CaptureError, match=r"the model writes to a tensor|a loop writes to a tensor"
    ) as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert "clone()" in str(caught.value.hint)


# -- lists in lists ------------------------------------------------------------------------------


def lengths(x: Tensor, lists: Any) -> Tensor:
    total = x * 0
    for each in lists:
        total = total * 3 + len(each)
    return total


def copies_of_a_path(x: Tensor) -> Tensor:
    path, paths, i = [0], [[0]], 0
    while i < (x[0] > 0).sum():
        path.append(i + 1)
        paths.append(list(path))
        i += 1
    return lengths(x, paths)


def a_path_of_each_trip(x: Tensor) -> Tensor:
    paths, i = [[0]], 0
    while i < (x[0] > 0).sum():
        path = [i]
        path.append(i + 1)
        paths.append(path)
        i += 1
    longer = list(paths[-1])
    longer.append(3)
    return lengths(x, paths) + len(longer)


@pytest.mark.parametrize("model", [copies_of_a_path, a_path_of_each_trip])
def test_lists_in_lists(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))


def pairs_of(x: Tensor) -> list[Any]:
    pairs, i = [[0]], 0
    while i < (x[0] > 0).sum():
        pairs.append([i, i + 1])
        i += 1
    return pairs


def the_path_itself(x: Tensor) -> Tensor:
    path, paths, i = [0], [[0]], 0
    while i < (x[0] > 0).sum():
        path.append(i + 1)
        paths.append(path)
        i += 1
    return lengths(x, paths)


def a_list_changed_afterwards(x: Tensor) -> Tensor:
    pair, pairs, i = [0, 1], [[0, 0]], 0
    while i < (x[0] > 0).sum():
        pairs.append(pair)
        i += 1
    pair[0] = 9
    return lengths(x, pairs) + pairs[-1][0]


def a_list_that_grows_afterwards(x: Tensor) -> Tensor:
    found, lists, i = (x[0] * 2).to(torch.int64)[x[0] > 0].tolist(), [[0]], 0
    while i < (x[0] > 0).sum():
        lists.append(found)
        i += 1
    found.append(100)
    return lengths(x, lists)


def an_element_grows(x: Tensor) -> Tensor:
    pairs = pairs_of(x)
    pairs[0].append(5)
    return lengths(x, pairs)


def elements_grow_in_a_loop(x: Tensor) -> Tensor:
    pairs = pairs_of(x)
    for each in pairs:
        each.append(7)
    return lengths(x, pairs)


def an_element_is_extended(x: Tensor) -> Tensor:
    pairs = pairs_of(x)
    pair = pairs[0]
    pair += [5]
    return lengths(x, pairs)


def one_that_others_hold_is_replaced(x: Tensor) -> Tensor:
    now = (x[0] * 2).to(torch.int64)[x[0] > 0].tolist()
    before = now
    while len(now) < x.abs().sum():
        now.append(1)
        now = now[:]
    return x * len(before)


CHANGED = [
    the_path_itself,
    a_list_changed_afterwards,
    a_list_that_grows_afterwards,
    an_element_grows,
    elements_grow_in_a_loop,
    an_element_is_extended,
    one_that_others_hold_is_replaced,
]


@pytest.mark.parametrize("model", CHANGED, ids=lambda model: model.__name__)
def test_changes_of_lists_in_lists_are_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match=r"another list|another variable|in another one") as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert "list(" in str(caught.value.hint)


def values_of_no_item(x: Tensor) -> Tensor:
    nothing: list[int] = []
    return x + len([v for v in x[x > 0].tolist() for _ in nothing])


def test_a_comprehension_that_makes_nothing() -> None:
    check_calls(values_of_no_item, (UP,), CALLS, backends=("ort",))


# -- containers among which a tensor chooses ---------------------------------------------------


def pairs(x: Tensor) -> tuple[list[Any], list[Any]]:
    return [x.sum(), x.max()], [x.min(), x.mean()]


def a_chosen_list_grows(x: Tensor) -> Tensor:
    one, other = pairs(x)
    found = one if x.sum() > 0 else other
    found.append(x[0])
    return x + len(one)


def a_list_grows_that_may_be_chosen(x: Tensor) -> Tensor:
    one, other = pairs(x)
    if x.sum() > 0:
        found = one
    else:
        found = other
    one.append(x[0])
    return x + len(found)


def an_element_is_replaced(x: Tensor) -> Tensor:
    one, other = pairs(x)
    found = one if x.sum() > 0 else other
    one[0] = x[0] * 100
    return x + found[0]


def a_chosen_dict_changes(x: Tensor) -> Tensor:
    one, other = {"a": x.sum()}, {"a": x.max()}
    found = one if x.sum() > 0 else other
    found["a"] = x[0]
    return x + one["a"]


def chosen_lists_of_unknown_length(x: Tensor) -> Tensor:
    up, down = x[x > 0].tolist(), x[x < 0].tolist()
    found = up if x.sum() > 0 else down
    found.append(1.0)
    return x + len(up)


def picked(x: Tensor, one: Any, other: Any) -> Any:
    if x.sum() > 0:
        return one
    return other


def a_returned_list_grows(x: Tensor) -> Tensor:
    one, other = pairs(x)
    picked(x, one, other).append(x[0])
    return x + len(one)


@pytest.mark.parametrize(
    "model",
    [
        a_chosen_list_grows,
        a_list_grows_that_may_be_chosen,
        an_element_is_replaced,
        a_chosen_dict_changes,
        chosen_lists_of_unknown_length,
        a_returned_list_grows,
    ],
    ids=lambda model: model.__name__,
)
def test_a_change_of_what_may_be_another_container_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="of which a tensor decides whether it is another one") as caught:
        regraft.capture(model, (ROW,))
    assert HERE in str(caught.value.location)
    assert "list(values)" in str(caught.value.hint)


def chosen_lists_that_nobody_else_has(x: Tensor) -> Tensor:
    one, other = pairs(x)
    found = list(one) if x.sum() > 0 else [*other]
    found.append(x[0])
    if x.max() > 2:
        found = [each * 2 for each in found]
    found[1] = x[1]
    return torch.stack(found).sum() + x + len(one)


def test_chosen_lists_may_change_that_nobody_else_has() -> None:
    check_calls(chosen_lists_that_nobody_else_has, (ROW,), [(-ROW,), (ROW * 0.1,)], backends=("ort",))
