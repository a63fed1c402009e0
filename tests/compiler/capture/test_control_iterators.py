"""Loops over iterators that a variable holds: how far one is is the same on all paths, or nobody's to see."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError
from regraft.testing import randomise
from tests.compiler.capture.running import check_calls, rows

HERE = Path(__file__).name
UP = rows(6, shift=1.0)
SHIFTS = [rows(6, seed=i, shift=shift) for i, shift in enumerate((-2.0, -0.7, -0.2, 0.1, 0.4, 0.9, 2.0))]


class Exits(nn.Module):
    """Early exits, the layers and heads taken from pairs that are made before the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        pairs = enumerate(zip(self.layers, self.heads, strict=True))
        for number, (layer, head) in pairs:
            x = layer(x).tanh()
            if head(x).softmax(-1).max() > 0.6:
                return head(x) + number
        return x[:, :3] * 2


def left_by_break(x: Tensor) -> Tensor:
    steps = iter([0.5, 2.0, 0.25])
    for step in steps:
        x = x * step + 0.1
        if x.sum() > 8:
            break
    else:
        x = x - 1
    return x * 2


def the_others_after_the_first(x: Tensor) -> Tensor:
    steps = reversed((3.0, 2.0, 1.0))
    x = x + next(steps)
    for step in steps:
        if x.sum() > 30:
            continue
        x = x * step
        if x.sum() < -9:
            return -x
    return x


def two_of_them(x: Tensor) -> Tensor:
    ups, downs = iter([1.0, 2.0, 3.0]), iter((0.5, 0.25))
    for up, down in zip(ups, downs, strict=False):
        x = x * down + up
        if x.sum() > 40:
            return x
    return x.abs()


def under_its_own_name(x: Tensor) -> Tensor:
    step = iter([1.0, 2.0, 3.0])
    for step in step:  # noqa: B020
        x = x + step
        if x.sum() > 40:
            break
    return x * step


def one_after_the_other(x: Tensor) -> Tensor:
    steps = iter([1.0, 2.0])
    for step in steps:
        x = x + step
        if x.sum() > 30:
            break
    steps = iter([0.5, 0.25, 0.125])
    for step in steps:
        x = x * step
        if x.abs().max() < 0.5:
            break
    return x


def scaled(x: Tensor, steps: Iterator[float]) -> Tensor:
    for step in steps:
        x = x * step
        if x.abs().max() < 0.5:
            return x
    return -x


def given_to_a_function(x: Tensor) -> Tensor:
    return scaled(x, iter([0.5, 0.25])) + scaled(x + 1, map(float, (1, 0.125)))


def _forgotten(value: Any) -> None:
    """Leaves it in a cycle that nobody else has, as an exception with its frames may."""
    cycle: list[Any] = [value]
    cycle.append(cycle)


def in_what_is_not_collected_yet(x: Tensor) -> Tensor:
    steps = iter([0.5, 2.0, 0.25])
    _forgotten(steps)
    for step in steps:
        x = x * step + 0.1
        if x.sum() > 8:
            break
    return x


def after_another_decision(x: Tensor) -> Tensor:
    """Whoever has asked a running function for its variables left a copy of them there."""
    steps = iter([0.5, 2.0, 0.25])
    if x.sum() > 0:
        x = x - 1
    for step in steps:
        x = x * step + 0.1
        if x.sum() > 8:
            break
    return x


def made_in_a_loop(x: Tensor) -> Tensor:
    """Each trip has an iterator of its own."""
    while x.abs().max() > 0.5:
        steps = iter([0.5, 0.25, 0.125])
        for step in steps:
            x = x * step
            if x.abs().max() < 1:
                break
    return x


@pytest.mark.parametrize(
    "model",
    [
        randomise(Exits().eval()),
        left_by_break,
        the_others_after_the_first,
        two_of_them,
        under_its_own_name,
        one_after_the_other,
        given_to_a_function,
        in_what_is_not_collected_yet,
        after_another_decision,
        made_in_a_loop,
    ],
    ids=lambda model: getattr(model, "__name__", "Exits"),
)
def test_what_nobody_reads_again_may_be_advanced(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS], backends=("ort",))


def read_after_the_loop(x: Tensor) -> Tensor:
    steps = iter([1.0, 2.0, 3.0])
    for step in steps:
        x = x + step
        if x.sum() > 30:
            break
    return x * next(steps, 0.5)


def read_in_the_loop(x: Tensor) -> Tensor:
    steps = iter([1.0, 2.0, 3.0, 4.0])
    for step in steps:
        x = x + step * next(steps)
        if x.sum() > 30:
            break
    return x


def of_another_name(x: Tensor) -> Tensor:
    steps = iter([1.0, 2.0, 3.0])
    same = steps
    for step in steps:
        x = x + step
        if x.sum() > 30:
            break
    return x * next(same, 0.5)


def of_an_attribute(x: Tensor) -> Tensor:
    holder = nn.Module()
    holder.steps = iter([1.0, 2.0, 3.0])
    for step in holder.steps:
        x = x + step
        if x.sum() > 30:
            break
    return x


def of_the_caller(x: Tensor) -> Tensor:
    steps = iter([0.5, 0.25, 3.0])
    return scaled(x, steps) * next(steps, 7.0)


def in_an_arm(x: Tensor) -> Tensor:
    steps = iter([1.0, 2.0, 3.0])
    if x.sum() > 0:
        for step in steps:
            x = x + step
    return x


def in_a_trip(x: Tensor) -> Tensor:
    steps = iter([0.5, 0.25, 0.125])
    while x.abs().max() > 0.5:
        for step in steps:
            x = x * step
        x = x * 0.5
    return x


def of_a_closure(x: Tensor) -> Tensor:
    steps = iter([1.0, 2.0, 3.0])

    def after() -> float:
        return next(steps, 0.5)

    for step in steps:
        x = x + step
        if x.sum() > 30:
            break
    return x * after()


def of_a_closure_that_finds_it_emptied(x: Tensor) -> Tensor:
    steps: Iterator[float] | None = iter([1.0, 2.0, 3.0])

    def after() -> float:
        assert steps is not None
        return next(steps, 0.5)

    for step in steps:
        x = x + step
        if x.sum() > 30:
            break
    x = x * after()
    steps = None
    return x


def mapped_twice(x: Tensor) -> Tensor:
    """Nothing but a stack of C's holds what the second call goes on with."""
    one, two = map(scaled, (x, x + 1), [iter([0.5, 0.25, 3.0])] * 2)
    return one + two


def reduced(x: Tensor) -> Tensor:
    return functools.reduce(scaled, [iter([0.5, 0.25, 3.0])] * 2, x)


def zipped_twice(x: Tensor) -> Tensor:
    """What is gone over is each call's own; what that takes its items from is not."""
    steps = iter([(0.5,), (0.25,), (3.0,)])
    one, two = map(scaled, (x, x + 1), map(itertools.chain.from_iterable, [steps] * 2))
    return one + two


def by_default(x: Tensor, steps: Iterator[float] = iter([0.5, 0.25, 3.0])) -> Tensor:  # noqa: B008
    for step in steps:
        x = x * step
        if x.abs().max() < 0.5:
            break
    return x


class Cycle:
    steps = itertools.cycle([1.0, 2.0, 3.0])


ONCE = iter([1.0, 2.0, 3.0])


def of_a_class(x: Tensor) -> Tensor:
    steps = Cycle.steps
    for step in steps:
        x = x + step
        if x.sum() > 30:
            break
        if step > 2.5:
            break
    return x


def of_the_module(x: Tensor) -> Tensor:
    steps = ONCE
    for step in steps:
        x = x + step
        if x.sum() > 30:
            break
    return x


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (read_after_the_loop, "steps"),
        (read_in_the_loop, "steps"),
        (of_another_name, "steps"),
        (of_an_attribute, "holder.steps"),
        (of_the_caller, "steps"),
        (in_an_arm, "steps"),
        (in_a_trip, "steps"),
        (of_a_closure, "steps"),
        (of_a_closure_that_finds_it_emptied, "steps"),
        (mapped_twice, "steps"),
        (reduced, "steps"),
        (zipped_twice, "steps"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_somebody_reads_later_is_refused(model: Any, name: str) -> None:
    with pytest.raises(CaptureError, match=f"'{name}' is advanced where a tensor decides") as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert "list(" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (by_default, "a default of forward"),
        (of_a_class, "Cycle.steps"),
        (of_the_module, f"ONCE of {__name__}"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_outlives_a_call_is_refused(model: Any, name: str) -> None:
    with pytest.raises(
        CaptureError, match=f"advances the iterator '{name}', which outlives a call"
    ) as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert "a list in its place" in str(caught.value.hint)


def test_the_model_is_as_it_was() -> None:
    """What a trace empties is put back with its variables: eager still gives what it gave."""
    model = randomise(Exits().eval())
    before = model(UP)
    regraft.capture(model, (UP,))
    assert torch.equal(model(UP), before)
