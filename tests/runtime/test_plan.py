"""Plans: calls over slots."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.errors import BackendError
from regraft.runtime import Plan, Step, profile


class Call:
    """An executable that applies ``function`` to its inputs."""

    backend = "test"

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.sizes: Mapping[str, int] = {}

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        self.sizes = sizes
        found = self.function(*inputs)
        return list(found) if isinstance(found, tuple) else [found]

    def save(self, writer: Any) -> dict[str, Any]:
        return {}


def test_steps_run_in_order_over_slots() -> None:
    plan = Plan(
        2,
        5,
        (
            Step(Call(torch.sub), (1, 0), (2,)),
            Step(Call(lambda x: (x + 1, x * 2)), (2,), (4, 3), dead=(2,)),
        ),
        (3, 4),
    )
    doubled, more = plan.run([torch.tensor(3.0), torch.tensor(10.0)], {})
    assert (doubled.item(), more.item()) == (14.0, 8.0)


def test_sizes_reach_every_step() -> None:
    calls = [Call(torch.neg), Call(torch.neg)]
    plan = Plan(1, 3, (Step(calls[0], (0,), (1,)), Step(calls[1], (1,), (2,))), (2,))
    plan.run([torch.ones(3)], {"s0": 3})
    assert [call.sizes for call in calls] == [{"s0": 3}, {"s0": 3}]


def test_sizes_that_a_step_decides_reach_later_steps() -> None:
    """In a call, and in one with a clock around each step."""
    later = Call(torch.neg)
    steps = (Step(Call(torch.nonzero), (0,), (1,), binds=(("u0", 0, 0),)), Step(later, (1,), (2,)))
    plan = Plan(1, 3, steps, (2,))
    plan.run([torch.tensor([1, 0, 1])], {"s0": 3})
    assert later.sizes == {"s0": 3, "u0": 2}
    profile(plan, [torch.tensor([1, 1, 1])], {"s0": 3})
    assert later.sizes == {"s0": 3, "u0": 3}


def test_an_argument_is_returned_as_a_copy() -> None:
    x = torch.ones(3)
    first, second = Plan(1, 1, (), (0, 0)).run([x], {})
    first.zero_()
    assert x.tolist() == second.tolist() == [1, 1, 1]


def test_dead_values_are_freed_before_the_next_step() -> None:
    alive: list[bool] = []
    made: list[weakref.ref[Tensor]] = []

    def make(x: Tensor) -> Tensor:
        y = x + 1
        made.append(weakref.ref(y))
        return y

    def look(x: Tensor) -> Tensor:
        alive.append(made[0]() is not None)
        return x * 2

    steps = (
        Step(Call(make), (0,), (1,)),
        Step(Call(torch.neg), (1,), (2,), dead=(1,)),
        Step(Call(look), (2,), (3,)),
    )
    Plan(1, 4, steps, (3,)).run([torch.ones(2)], {})
    assert alive == [False]


def test_a_step_with_other_results_than_slots_is_an_error() -> None:
    step = Step(Call(lambda x: (x, x)), (0,), (1,))
    for results in ((1,), (1, 1)):
        with pytest.raises(BackendError, match="gives 2 results where the plan has 1"):
            Plan(1, 2, (step,), results).run([torch.ones(2)], {})


def test_calls_do_not_meet() -> None:
    barrier = threading.Barrier(2, timeout=10)

    def meet(x: Tensor) -> Tensor:
        barrier.wait()
        return x + 1

    plan = Plan(1, 3, (Step(Call(meet), (0,), (1,)), Step(Call(meet), (1,), (2,))), (2,))
    results: dict[int, float] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: plan.run([torch.tensor(i)], {})[0].item()}))
        for i in (10, 20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {10: 12, 20: 22}
