"""A list that grows where a tensor decides, or in a loop of open length, and that a function holds too."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
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
KEPT: ContextVar[list[Tensor]] = ContextVar("KEPT")


def counter(values: list[Tensor]) -> Callable[[], int]:
    return lambda: len(values)


def counter_of_the_same_name(outs: list[Tensor]) -> Callable[[], int]:
    def count() -> int:
        return len(outs)

    return count


def a_default(x: Tensor) -> Tensor:
    outs = [x]
    count = lambda outs=outs: len(outs)  # noqa: E731
    if x.sum() > 0:
        outs.append(x)
    return x + count()


def a_default_by_its_name(x: Tensor) -> Tensor:
    outs = [x]

    def count(*, values: Any = outs) -> int:
        return len(values)

    if x.sum() > 0:
        outs.append(x)
    return x + count()


def a_default_in_a_loop(x: Tensor) -> Tensor:
    outs = [x]
    count = lambda outs=outs: len(outs)  # noqa: E731
    while x.abs().sum() < 40:
        x = x * 1.5
        outs.append(x)
    return x + count()


def seen_so_far(x: Tensor, seen: list[Tensor] = []) -> int:  # noqa: B006
    if x.sum() > 0:
        seen.append(x.sum())
    return len(seen)


def a_default_of_one_that_runs(x: Tensor) -> Tensor:
    return x + seen_so_far(x) + seen_so_far(x)


def a_default_of_the_model(x: Tensor, outs: list[Tensor] = []) -> Tensor:  # noqa: B006
    if x.sum() > 0:
        outs.append(x)
    return x + len(outs)


def a_closure(x: Tensor) -> Tensor:
    outs = [x]
    count = counter(outs)
    if x.sum() > 0:
        outs.append(x)
    return x + count()


def a_closure_over_the_same_name(x: Tensor) -> Tensor:
    outs = [x]
    count = counter_of_the_same_name(outs)
    if x.sum() > 0:
        outs.append(x)
    return x + count()


def a_closure_and_extend(x: Tensor) -> Tensor:
    outs: list[Any] = [1.0]
    count = counter(outs)
    outs.extend(x[x > 0].tolist())
    return x + count()


def an_attribute(x: Tensor) -> Tensor:
    outs: Any = an_attribute.outs  # type: ignore[attr-defined]
    if x.sum() > 0:
        outs.append(x)
    return x + len(outs)


an_attribute.outs = []  # type: ignore[attr-defined]


def a_read_only_dict(x: Tensor) -> Tensor:
    outs = [x]
    held = MappingProxyType({"outs": outs})
    if x.sum() > 0:
        outs.append(x)
    return x + len(held["outs"])


def a_context_variable(x: Tensor) -> Tensor:
    outs = [x]
    KEPT.set(outs)
    if x.sum() > 0:
        outs.append(x)
    return x + len(KEPT.get())


def an_iterator(x: Tensor) -> Tensor:
    outs = [x]
    values = iter(outs)
    if x.sum() > 0:
        outs.append(x)
    return x + len(list(values))


def an_iterator_alone_is_read(x: Tensor) -> Tensor:
    outs = [x]
    pairs = enumerate(outs)
    if x.sum() > 0:
        outs.append(x)
    return x + len(list(pairs))


HELD = [
    (a_default, "a default of a lambda holds"),
    (a_default_by_its_name, "a default of the function 'count' holds"),
    (a_default_in_a_loop, "a default of a lambda holds"),
    (a_default_of_one_that_runs, "a default of the function 'seen_so_far' holds"),
    (a_default_of_the_model, "a default of the function 'a_default_of_the_model' holds"),
    (a_closure, "the closure of a lambda holds"),
    (a_closure_over_the_same_name, "the closure of the function 'count' holds"),
    (a_closure_and_extend, "the closure of a lambda holds"),
    (an_attribute, "an attribute of the function 'an_attribute' holds"),
    (a_read_only_dict, "a dict holds"),
    (a_context_variable, "an object of the class 'ContextVar' holds"),
    (an_iterator, "an iterator holds"),
    (an_iterator_alone_is_read, "an iterator holds"),
]


@pytest.mark.parametrize(("model", "holder"), HELD, ids=lambda each: getattr(each, "__name__", ""))
def test_a_list_that_something_else_holds_does_not_grow(model: Any, holder: str) -> None:
    with pytest.raises(CaptureError, match=holder) as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert "list(" in str(caught.value.hint)


def columns(x: Tensor) -> Tensor:
    outs: list[Tensor] = []
    count = lambda outs=outs: len(outs)  # noqa: E731
    for t in range(x.shape[1]):
        outs.append(x[:, t])
    return torch.stack(outs) + count()


def test_a_list_that_a_default_holds_does_not_grow_by_an_open_size() -> None:
    with pytest.raises(CaptureError, match="a default of a lambda holds") as caught:
        regraft.capture(columns, (torch.ones(2, 3),), dynamic_shapes=({1: torch.export.Dim("t", min=2)},))
    assert HERE in str(caught.value.location)


def the_variable_itself(x: Tensor) -> Tensor:
    outs = [x]

    def add(value: Tensor) -> None:
        outs.append(value)

    count = lambda: len(outs)  # noqa: E731
    if x.sum() > 0:
        outs.append(x)
    add(x * 2)
    return torch.stack(outs).sum(0) + count()


def a_view_of_a_dict(x: Tensor) -> Tensor:
    found = {"a": x}
    values = found.values()
    if x.sum() > 0:
        found["a"] = x * 2
    return x + sum(values)


def iterators_that_end(x: Tensor) -> Tensor:
    outs, found = [x], {"a": x}
    total = sum(i * each for i, each in enumerate(outs)) + sum(found.values())
    for one, other in zip(outs, list(found.values()), strict=True):
        total = total + one * other
    if x.sum() > 0:
        outs.append(x)
        found["b"] = x
    return total


def a_copy(x: Tensor) -> Tensor:
    outs = [x]
    count = counter(list(outs))
    if x.sum() > 0:
        outs.append(x)
    return torch.stack(outs).sum(0) + count()


@pytest.mark.parametrize("model", [the_variable_itself, a_copy, a_view_of_a_dict, iterators_that_end])
def test_functions_that_see_what_the_variable_holds(model: Any) -> None:
    check_calls(model, (UP,), CALLS, backends=("ort",))
