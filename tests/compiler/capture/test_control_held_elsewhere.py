"""What a converted function changes is seen by whoever else holds it, or is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls, rows

HERE = Path(__file__).name
UP = rows(4)
CALLS = [(UP - 9,), (UP + 9,), (-UP,)]


# -- lists of the caller's -----------------------------------------------------------------------


def collect(h: Tensor, outs: list[Tensor]) -> None:
    while h.abs().sum() < 40:
        h = h * 1.5
        outs.append(h)


def in_an_arm(h: Tensor, outs: list[Tensor]) -> None:
    if h.sum() > 0:
        outs.append(h)


def each_step(h: Tensor, outs: list[Tensor]) -> None:
    for _ in range(34):
        h = h * 0.9
        outs.append(h)


def a_caller_s_list_in_a_loop(x: Tensor) -> Tensor:
    outs = [x]
    collect(x, outs)
    return torch.stack(outs).sum(0)


def a_caller_s_list_in_an_arm(x: Tensor) -> Tensor:
    outs = [x]
    in_an_arm(x, outs)
    return torch.stack(outs).sum(0)


@pytest.mark.parametrize("model", [a_caller_s_list_in_a_loop, a_caller_s_list_in_an_arm])
def test_a_list_of_the_caller_s_by_the_same_name_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="'outs'") as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert caught.value.hint is not None


def a_caller_s_list_in_a_long_loop(x: Tensor) -> Tensor:
    outs: list[Tensor] = []
    each_step(x, outs)
    return torch.stack(outs).sum(0)


def an_inner_function_s_list(x: Tensor) -> Tensor:
    outs = [x]

    def add(h: Tensor) -> None:
        outs.append(h)

    h = x
    while h.abs().sum() < 40:
        h = h * 1.5
        outs.append(h)
    add(x)
    return torch.stack(outs).sum(0)


@pytest.mark.parametrize("model", [a_caller_s_list_in_a_long_loop, an_inner_function_s_list])
def test_lists_that_are_followed(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))


# -- numbers and lists, and the tensors that they were taken from --------------------------------


def numbers_of_what_is_written(x: Tensor) -> Tensor:
    total, count, rows_of = x.double().sum(), (x > 0).sum(), x.double()
    holds = x.sum() > 0
    n, k, h, m = total.item(), int(count), bool(holds), rows_of.tolist()
    total.add_(1)
    count.add_(1)
    rows_of.zero_()
    holds.logical_not_()
    return x * n + k + m[0][0] + (2 if h else 3) + total + count


def a_list_of_what_is_written(x: Tensor) -> Tensor:
    part = x.double()[x > 0]
    values = part.tolist()
    part.zero_()
    return x + sum(values)


def tensors_of_numbers_that_are_written(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, values = x.double().sum().item(), x.double()[x > 0].tolist()
    one = torch.as_tensor(n, dtype=torch.float64)
    all_of_them = torch.as_tensor(values, dtype=torch.float64)
    one.add_(5)
    all_of_them.add_(1)
    return one, all_of_them.sum(), x + n + sum(values)


def a_tensor_of_a_tensor(x: Tensor) -> Tensor:
    y = x * 2
    torch.as_tensor(y).add_(1)
    torch.tensor(y.sum().item()).add_(1)
    return y * y.sum().item()


def a_size_asked_for_twice(x: Tensor) -> Tensor:
    count = (x[:, 0] > -5).sum()
    return x[: count.item(), 0] + torch.arange(count.item())


NUMBERS = [
    *(numbers_of_what_is_written, a_list_of_what_is_written),
    *(tensors_of_numbers_that_are_written, a_tensor_of_a_tensor, a_size_asked_for_twice),
]


@pytest.mark.parametrize("model", NUMBERS, ids=lambda model: model.__name__)
def test_numbers_do_not_follow_writes(model: Any) -> None:
    check_calls(model, (UP,), [(UP + 9,), (-UP,)], backends=("ort",))


# -- what was collected --------------------------------------------------------------------------


def stacked_and_written(x: Tensor) -> tuple[Tensor, Tensor]:
    outs, h = [], x
    for _ in range(34):
        h = h * 0.9
        outs.append(h)
    one, other = torch.stack(outs), torch.cat(outs)
    one.mul_(2)
    return one.sum(0) + outs[3], other


def stacked_twice(x: Tensor) -> tuple[Tensor, Tensor]:
    outs, h = [x], x
    while h.abs().sum() < 40:
        h = h * 1.5
        outs.append(h)
    one = torch.stack(outs)
    one.mul_(2)
    return one, torch.stack(outs).sum(0)


@pytest.mark.parametrize("model", [stacked_and_written, stacked_twice])
def test_a_stack_is_a_tensor_of_its_own(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))


# -- sets and classes of the model's own ---------------------------------------------------------


class Own(list[float]):
    pass


def a_set_in_an_arm(x: Tensor) -> Tensor:
    seen = {1}
    if x.sum() > 0:
        seen.add(3)
    return x + len(seen)


def a_set_in_both_arms(x: Tensor) -> Tensor:
    seen = {1}
    if x.sum() > 0:
        seen.add(3)
    else:
        seen |= {4}
    return x * 2 if 3 in seen else x * 3


def a_set_in_a_loop(x: Tensor) -> Tensor:
    seen = {1, 2}
    while x.abs().sum() < 40:
        x = x * 1.5
        seen.discard(2)
    return x + len(seen)


def a_counter_in_an_arm(x: Tensor) -> Tensor:
    found = Counter[str]()
    if x.sum() > 0:
        found["a"] += 1
    return x + found["a"]


def an_own_list_in_a_loop(x: Tensor) -> Tensor:
    found = Own([1.0])
    while x.abs().sum() < 40:
        x = x * 1.5
        found.append(3.0)
    return x + len(found)


SETS = [
    *(a_set_in_an_arm, a_set_in_both_arms, a_set_in_a_loop),
    *(a_counter_in_an_arm, an_own_list_in_a_loop),
]


@pytest.mark.parametrize("model", SETS, ids=lambda model: model.__name__)
def test_containers_without_parts_are_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="changes where a tensor decides") as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert caught.value.hint is not None


def a_set_after_an_exit(x: Tensor) -> Tensor:
    seen = {1}
    if x.sum() > 0:
        return x
    for i in range(3):
        seen.add(i)
    return x + len(seen)


def a_set_that_stays(x: Tensor) -> Tensor:
    seen, kinds = {1}, Counter("aab")
    if x.sum() > 0:
        seen.add(1)
        kinds["a"] += 0
        x = x * 2
    return x + len(seen) + kinds["a"]


def a_set_in_a_long_loop(x: Tensor) -> Tensor:
    seen = {1}
    for i in range(34):
        seen.add(i % 3)
        x = x * 0.9
    return x + len(seen)


@pytest.mark.parametrize("model", [a_set_after_an_exit, a_set_that_stays, a_set_in_a_long_loop])
def test_sets_that_do_not_depend_on_a_tensor(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))


# -- lists that += extends -----------------------------------------------------------------------


def another_name_of_what_is_added_to(x: Tensor) -> Tensor:
    values = [1.0]
    other = values
    values += x[x > 0].tolist()
    return x + len(other) + len(values)


def a_dict_holds_what_is_added_to(x: Tensor) -> Tensor:
    held = {"a": [1.0]}
    values = held["a"]
    values += x[x > 0].tolist()
    return x + len(held["a"])


@pytest.mark.parametrize("model", [another_name_of_what_is_added_to, a_dict_holds_what_is_added_to])
def test_a_list_that_others_hold_is_not_added_to(model: Any) -> None:
    with pytest.raises(CaptureError, match="the variable 'values' is extended") as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert caught.value.hint is not None


def a_list_of_ones_own_is_added_to(x: Tensor) -> Tensor:
    values, count, text = [1.0], 0, "a"
    values += x[x > 0].tolist()
    count += len(values)
    text += "b"
    values += [2.0]
    x += 1
    return x + sum(values) + count + len(text)


def test_a_list_of_ones_own_is_added_to() -> None:
    check_calls(a_list_of_ones_own_is_added_to, (UP,), CALLS, backends=("ort",))
