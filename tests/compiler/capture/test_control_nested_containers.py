"""Containers within others that a loop changes: they stay what other names hold, or are refused."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls, rows

HERE = Path(__file__).name
UP = rows(4, shift=1.0)
CALLS = [(UP - 9,), (UP + 9,), (-UP,), (UP * 0.1,)]


@dataclass
class Step:
    count: int
    value: Any


# -- the same object after the loop --------------------------------------------------------------


def a_list_in_a_dict(x: Tensor) -> Tensor:
    outs = [x]
    state: dict[str, Any] = {"outs": outs, "n": 0}
    while x.abs().sum() < 40:
        x = x * 1.5
        state["n"] += 1
    outs.append(x)
    return torch.stack(state["outs"]).sum(0) + state["n"] + len(state["outs"])


def a_list_in_a_dict_that_is_read_in_a_trip(x: Tensor) -> Tensor:
    first = [1.0]
    state: dict[str, Any] = {"first": first, "n": 0}
    while x.abs().sum() < 40:
        x = x * 1.5 + first[0]
        first[0] = first[0] + 1.0
        state["n"] += state["first"][0]
    first[0] = first[0] * 2
    return x + state["first"][0] + state["n"]


def a_record_in_a_dict(x: Tensor) -> Tensor:
    step = Step(0, x)
    state: dict[str, Any] = {"step": step, "n": 0}
    while x.abs().sum() < 40:
        x = x * 1.5
        state["n"] += 1
    step.count, step.value = 5, x * 2
    return state["step"].value * state["step"].count + state["n"]


def a_record_that_trips_change(x: Tensor) -> Tensor:
    step = Step(0, x)
    state: dict[str, Any] = {"step": step, "n": 0}
    while x.abs().sum() < 40:
        x = x * 1.5
        step.count += 1
        state["n"] += step.count
    step.value = x
    return state["step"].value * state["step"].count + state["n"]


def a_dict_in_a_list_in_a_tuple(x: Tensor) -> Tensor:
    inner = {"k": 1.0}
    pair = ([inner, 0.0], 2.0)
    rows_of = pair[0]
    while x.abs().sum() < 40:
        x = x * 1.5
        rows_of[1] += 1.0
    inner["k"] = 7.0
    return x + pair[0][0]["k"] + pair[0][1]


def a_deque_in_a_dict(x: Tensor) -> Tensor:
    last: deque[Any] = deque([1.0], maxlen=2)
    state: dict[str, Any] = {"last": last, "n": 0}
    while x.abs().sum() < 40:
        x = x * 1.5
        state["n"] += 1
    last.append(4.0)
    return x + sum(state["last"]) + state["n"]


def one_list_in_two(x: Tensor) -> Tensor:
    shared = [1.0]
    one, two = [shared, 0.0], [shared, 0.0]
    while x.abs().sum() < 40:
        x = x * 1.5
        one[1] += 1.0
        two[1] += 2.0
    one[0].append(3.0)
    return x + len(two[0]) + one[1] + two[1] * 10 + len(shared) * 100


def a_list_in_a_long_loop(x: Tensor) -> Tensor:
    outs = [x]
    state: dict[str, Any] = {"outs": outs, "n": x.sum() * 0}
    for _ in range(40):
        state["n"] = state["n"] + x.sum()
        x = x * 0.99
    outs.append(x)
    return torch.stack(state["outs"]).sum(0) + state["n"] + len(state["outs"])


def a_dict_that_trips_make_anew(x: Tensor) -> Tensor:
    outs = [x]
    state: dict[str, Any] = {"outs": outs, "n": 0}
    while x.abs().sum() < 40:
        x = x * 1.5
        state = {"outs": state["outs"], "n": state["n"] + 1}
    outs.append(x)
    return torch.stack(state["outs"]).sum(0) + state["n"]


KEPT = [
    *(a_list_in_a_dict, a_list_in_a_dict_that_is_read_in_a_trip, a_record_in_a_dict),
    *(a_record_that_trips_change, a_dict_in_a_list_in_a_tuple, a_deque_in_a_dict, one_list_in_two),
    *(a_list_in_a_long_loop, a_dict_that_trips_make_anew),
]


@pytest.mark.parametrize("model", KEPT, ids=lambda model: model.__name__)
def test_what_is_in_a_container_stays_the_object_that_it_is(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))


# -- one that nobody knows -----------------------------------------------------------------------


def a_list_that_trips_replace(x: Tensor) -> Tensor:
    values = [1.0]
    state: dict[str, Any] = {"values": values, "n": 0}
    while x.abs().sum() < 40:
        x = x * 1.5
        state["values"] = [state["values"][0] + 1]
    state["values"].append(5.0)
    return x + len(values)


def the_original_of_one(x: Tensor) -> Tensor:
    values = [1.0]
    state: dict[str, Any] = {"values": values, "n": 0}
    while x.abs().sum() < 40:
        x = x * 1.5
        state["values"] = [state["values"][0] + 1]
    values.append(5.0)
    return x + len(state["values"])


def a_variable_that_trips_replace(x: Tensor) -> Tensor:
    values = [1.0]
    other = values
    while x.abs().sum() < 40:
        x = x * 1.5
        values = [values[0] + 1]
    values.append(5.0)
    return x + len(other)


def a_list_of_two_names_that_a_trip_makes(x: Tensor) -> Tensor:
    one, two = [1.0], [1.0]
    while x.abs().sum() < 40:
        x = x * 1.5
        one = two = [two[0] + 1]
    one.append(5.0)
    return x + len(two)


UNKNOWN = [
    *(a_list_that_trips_replace, the_original_of_one, a_variable_that_trips_replace),
    a_list_of_two_names_that_a_trip_makes,
]


@pytest.mark.parametrize("model", UNKNOWN, ids=lambda model: model.__name__)
def test_a_change_of_one_that_may_be_another_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="decides whether it is another one") as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert "list(values)" in str(caught.value.hint)


def what_only_the_loop_holds(x: Tensor) -> Tensor:
    values = [1.0, 2.0]
    while x.abs().sum() < 40:
        x = x * 1.5
        new = [values[0] + 1, values[1] * 2]
        values = new
    values.append(5.0)
    values[0] = values[0] * 2
    return x + values[0] + values[1] + len(values)


def test_what_nobody_else_holds_may_change() -> None:
    check_calls(what_only_the_loop_holds, (UP,), CALLS, backends=("ort",))


# -- in arms -------------------------------------------------------------------------------------


def grow(step: Step) -> None:
    step.count += 1


def a_record_that_a_function_changes(x: Tensor) -> Tensor:
    step = Step(0, x)
    pair = [step]
    if x.sum() > 0:
        pair.append(Step(2, x))
        grow(step)
    return x * step.count


def set_first(values: list[float]) -> None:
    values[0] = 5.0


def a_list_that_a_function_changes(x: Tensor) -> Tensor:
    inner = [1.0]
    pair = [inner]
    if x.sum() > 0:
        pair.append([2.0])
        set_first(inner)
    return x * inner[0]


@pytest.mark.parametrize("model", [a_record_that_a_function_changes, a_list_that_a_function_changes])
def test_what_is_in_a_list_that_nobody_reads_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="changes where a tensor decides"):
        regraft.capture(model, (UP,))


def of_a_tuple(x: Tensor) -> Tensor:
    outs = [x]
    pair = (outs, 1)
    while x.abs().sum() < 40:
        x = x * 1.5
        outs.append(x)
    return x + len(pair[0])


def test_a_list_that_a_tuple_holds_is_refused() -> None:
    with pytest.raises(CaptureError, match="'outs' is a list that grows"):
        regraft.capture(of_a_tuple, (UP,))


# -- op= of an element or attribute --------------------------------------------------------------


class Holder:
    def __init__(self, values: list[Any]) -> None:
        self.values = values


def of_an_element(x: Tensor) -> Tensor:
    state: dict[str, Any] = {"a": [1.0]}
    state["a"] += x[x > 0].tolist()
    return x + len(state["a"])


def of_an_attribute(x: Tensor) -> Tensor:
    holder = Holder([1.0])
    holder.values += x[x > 0].tolist()
    return x + len(holder.values) + sum(holder.values)


def more_in_a_dict(state: dict[str, Any], more: Any) -> None:
    state["a"] += more


def in_a_called_function(x: Tensor) -> Tensor:
    state: dict[str, Any] = {"a": [1.0]}
    more_in_a_dict(state, x[x > 0].tolist())
    return x + len(state["a"])


EXTENDED = [of_an_element, of_an_attribute, in_a_called_function]


@pytest.mark.parametrize("model", EXTENDED, ids=lambda model: model.__name__)
def test_op_and_assignment_extends_a_list(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))


def an_element_that_is_held(x: Tensor) -> Tensor:
    values = [1.0]
    state: dict[str, Any] = {"a": values}
    state["a"] += x[x > 0].tolist()
    return x + len(values)


def an_element_of_two(x: Tensor) -> Tensor:
    state: dict[str, Any] = {"a": [1.0]}
    state["b"] = state["a"]
    state["a"] += x[x > 0].tolist()
    return x + len(state["b"])


def an_attribute_that_is_held(x: Tensor) -> Tensor:
    values = [1.0]
    holder = Holder(values)
    holder.values += x[x > 0].tolist()
    return x + len(values)


def more(values: list[Any], others: Any) -> None:
    values += others


def a_list_of_the_caller_s(x: Tensor) -> Tensor:
    values = [1.0]
    more(values, x[x > 0].tolist())
    return x + len(values)


def an_element_of_a_tuple_s(x: Tensor) -> Tensor:
    state: dict[str, Any] = {"a": [1.0]}
    pair = (state["a"], 2)
    state["a"] += x[x > 0].tolist()
    return x + len(pair[0])


HELD = [
    *(an_element_that_is_held, an_element_of_two, an_attribute_that_is_held, a_list_of_the_caller_s),
    an_element_of_a_tuple_s,
]


@pytest.mark.parametrize("model", HELD, ids=lambda model: model.__name__)
def test_op_and_assignment_of_a_list_that_others_hold_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="is extended by something of which only a call knows") as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert "+=" in str(caught.value)


# -- sizes among sizes ---------------------------------------------------------------------------


def sizes(x: Tensor) -> Any:
    count = (x > 0).sum()
    n: Any = count.item()
    made = torch.zeros(n, 4) + torch.ones(1, 4), torch.ones(2, n), torch.zeros((n, 2)), torch.empty(n, 0)
    filled = torch.full((2, n), 1.5), x.new_zeros(n, 3), x.new_ones(2, n), torch.zeros(size=(n, 2))
    shaped = torch.arange(n * 2).view(n, 2), torch.arange(n * 2).reshape(2, n), x[:1, :1].expand(n, 2)
    again = x[:1, :1].repeat(n, 2), torch.zeros(n, 4, dtype=torch.int64), torch.zeros(int(count.item()), 4)
    return x * 2, *made, *filled, *shaped, *again


def zeros_of(n: Any) -> Tensor:
    return torch.zeros(n, 4)


def sizes_in_a_called_function(x: Tensor) -> Tensor:
    return zeros_of((x > 0).sum().item()).sum(0) + x


@pytest.mark.parametrize("model", [sizes, sizes_in_a_called_function])
def test_a_number_among_sizes(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))
