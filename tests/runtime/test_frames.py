"""Plans in memory of their own: what stays at its place, and that no caller sees it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.errors import BackendError, RegraftError
from regraft.runtime import LARGE, Block, Bound, HostExecutable, Plan, Step, lasting, profile


class Adds:
    """Adds ``number`` to each input and gives the sums; ``bound`` are the calls that were prepared."""

    backend = "test"

    def __init__(self, number: float, give: int = 1) -> None:
        self.number, self.give = number, give
        self.bound: list[BoundAdds] = []

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        return [sum(inputs, torch.tensor(self.number)) for _ in range(self.give)]

    def bind(self, inputs: Sequence[Tensor | None], keep: Sequence[bool], sizes: Mapping[str, int]) -> Bound:
        self.bound.append(BoundAdds(self, inputs, keep, sizes))
        return self.bound[-1]

    def save(self, writer: Any) -> dict[str, Any]:
        return {}


class BoundAdds:
    def __init__(
        self, adds: Adds, inputs: Sequence[Tensor | None], keep: Sequence[bool], sizes: Mapping[str, int]
    ) -> None:
        self.adds, self.stay, self.sizes = adds, list(inputs), dict(sizes)
        self.kept: tuple[Tensor | None, ...] = tuple(
            lasting((2,), torch.float32) if each else None for each in keep
        )
        self.calls = 0

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        self.calls += 1
        for tensor, place in zip(inputs, self.stay, strict=True):
            assert place is None or place is tensor
        made = self.adds.run(inputs, {})
        return [
            tensor if place is None else place.copy_(tensor)
            for tensor, place in zip(made, self.kept, strict=True)
        ]


class Fails(Adds):
    """The same, unless the sum is 0."""

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        made = super().run(inputs, sizes)
        if not made[0].any():
            raise BackendError("nothing but zeros", backend=self.backend)
        return made


def chain(*executables: Any) -> Plan:
    """Each takes what the one before gives; the last one's is the result."""
    steps = [Step(each, (n,), (n + 1,), (n,) if n else ()) for n, each in enumerate(executables)]
    return Plan(1, len(executables) + 1, tuple(steps), (len(executables),))


def rows(*numbers: float) -> Tensor:
    return torch.tensor(numbers)


def test_what_steps_hand_on_stays_and_results_do_not() -> None:
    first, second, third = Adds(1.0), Adds(2.0), Adds(3.0)
    plan = chain(first, second, third)
    x = rows(1, 2)
    results = [plan.run([x + n], {})[0] for n in range(3)]
    assert [r.tolist() for r in results] == [[7, 8], [8, 9], [9, 10]]
    assert x.tolist() == [1, 2]
    (call,) = second.bound
    assert call.calls == 3
    assert call.stay == [first.bound[0].kept[0]]
    assert first.bound[0].stay == [None]
    assert third.bound[0].kept == (None,)


def test_a_value_that_is_also_a_result_does_not_stay() -> None:
    first, second = Adds(1.0), Adds(2.0)
    plan = Plan(1, 3, (Step(first, (0,), (1,)), Step(second, (1,), (2,))), (1, 2, 1))
    before = plan.run([rows(1, 2)], {})
    after = plan.run([rows(5, 6)], {})
    assert [t.tolist() for t in before] == [[2, 3], [4, 5], [2, 3]]
    assert [t.tolist() for t in after] == [[6, 7], [8, 9], [6, 7]]
    assert len({t.data_ptr() for t in (*before, *after)}) == 6


def test_large_values_do_not_stay() -> None:
    assert lasting((LARGE // 4,), torch.float32) is None
    small = lasting((LARGE // 4 - 1,), torch.float32)
    assert small is not None
    assert small.data_ptr() % 64 == 0


def test_memory_that_inference_mode_made_serves_other_calls() -> None:
    plan = chain(Adds(1.0), Adds(1.0))
    with torch.inference_mode():
        assert plan.run([rows(1, 2)], {})[0].tolist() == [3, 4]
    result = plan.run([rows(2, 3)], {})[0]
    assert result.tolist() == [4, 5]
    assert not result.is_inference()


def test_steps_that_cannot_be_bound_take_part() -> None:
    class Plain(Adds):
        bind = None  # type: ignore[assignment]

    last = Adds(4.0)
    plan = chain(Adds(1.0), Plain(2.0), last)
    for n in range(2):
        assert plan.run([rows(n, n)], {})[0].tolist() == [n + 7, n + 7]
    assert last.bound[0].stay == [None]


def test_sizes_that_come_again_are_bound() -> None:
    adds = Adds(1.0)
    plan = chain(Adds(1.0), adds)
    for size in (2, 3, 2, 2, 3):
        assert plan.run([torch.ones(2)], {"s0": size})[0].tolist() == [3, 3]
    assert [(call.sizes, call.calls) for call in adds.bound] == [({"s0": 2}, 2), ({"s0": 3}, 1)]
    for size in range(40):
        plan.run([torch.ones(2)], {"s0": size})
    assert len(plan._idle) <= 8
    assert plan.run([torch.ones(2)], {"s0": 2})[0].tolist() == [3, 3]


def test_sizes_that_values_decide_are_not_bound() -> None:
    first, second = Adds(1.0), Adds(1.0)
    steps = (Step(first, (0,), (1,), binds=(("u0", 0, 0),)), Step(second, (1,), (2,)))
    plan = Plan(1, 3, steps, (2,))
    assert plan.run([rows(1, 2)], {})[0].tolist() == [3, 4]
    assert first.bound == second.bound == []


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    last = Adds(1.0)
    plan = chain(Adds(1.0), Fails(0.0), last)
    assert plan.run([rows(1, 2)], {})[0].tolist() == [3, 4]
    with pytest.raises(BackendError, match="nothing but zeros"):
        plan.run([rows(-1, -1)], {})
    assert plan.run([rows(2, 3)], {})[0].tolist() == [4, 5]
    assert len(last.bound) == 2


def test_calls_at_once_have_frames_of_their_own() -> None:
    barrier = threading.Barrier(2, timeout=10)

    class Meets(Adds):
        def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
            barrier.wait()
            return super().run(inputs, sizes)

    plan = chain(Meets(1.0), Meets(1.0), Meets(1.0))
    results: dict[int, list[list[float]]] = {10: [], 20: []}

    def work(number: int) -> None:
        for turn in range(5):
            results[number].append(plan.run([rows(number, turn)], {})[0].tolist())

    threads = [threading.Thread(target=work, args=(number,)) for number in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, found in results.items():
        assert found == [[number + 3, turn + 3] for turn in range(5)]


def test_a_profile_times_what_a_call_runs() -> None:
    first, second = Adds(1.0), Adds(2.0)
    plan = chain(first, second)
    for number in range(3):
        assert [step.backend for step in profile(plan, [rows(number, 2)], {}).steps] == ["test", "test"]
    assert plan.run([rows(1, 2)], {})[0].tolist() == [4, 5]
    assert [call.calls for call in (*first.bound, *second.bound)] == [4, 4]


def test_another_number_of_results_is_an_error() -> None:
    class Unsure(Adds):
        bind = None  # type: ignore[assignment]

    plan = Plan(1, 3, (Step(Adds(1.0), (0,), (1,)), Step(Unsure(1.0, give=2), (1,), (2,))), (2,))
    with pytest.raises(BackendError, match="gives 2 results where the plan has 1"):
        plan.run([rows(1, 2)], {})


# -- control flow ------------------------------------------------------------------------------


class Positive(Adds):
    """Whether the first number is positive."""

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        return [inputs[0][0] > 0]

    def bind(self, inputs: Sequence[Tensor | None], keep: Sequence[bool], sizes: Mapping[str, int]) -> Bound:
        super().bind(inputs, keep, sizes)
        self.bound[-1].kept = tuple(lasting((), torch.bool) if each else None for each in keep)
        return self.bound[-1]


def condition(then: Plan, other: Plan, *operands: int, keeps: tuple[int, ...] = (0,)) -> HostExecutable:
    return HostExecutable("cf.cond", (Block(then), Block(other)), operands, keeps)


def test_arms_are_bound_when_they_are_entered() -> None:
    test, first, hundred, thousand = Positive(0.0), Adds(1.0), Adds(100.0), Adds(1000.0)
    arms = chain(Adds(0.0), hundred), chain(Adds(0.0), thousand)
    steps = (
        Step(test, (0,), (1,)),
        Step(first, (0,), (2,)),
        Step(condition(*arms, 0, 1), (1, 2), (3,), dead=(1, 2)),
    )
    plan = Plan(1, 4, steps, (3,))
    assert [plan.run([rows(n, n)], {})[0].tolist() for n in (1, 2)] == [[102, 102], [103, 103]]
    assert not thousand.bound
    assert [plan.run([rows(n, n)], {})[0].tolist() for n in (-1, 3)] == [[1000, 1000], [104, 104]]
    assert len(hundred.bound) == len(thousand.bound) == 1


def test_what_an_arm_hands_through_is_fresh() -> None:
    """Once what stays at its place, once an argument, once the same twice."""
    same = Plan(2, 2, (), (0, 1, 0))
    swapped = Plan(2, 2, (), (1, 0, 1))
    steps = (
        Step(Positive(0.0), (0,), (1,)),
        Step(Adds(1.0), (0,), (2,)),
        Step(condition(same, swapped, 0, 1, 2, keeps=(0, 1, 2)), (1, 0, 2), (3, 4, 5)),
    )
    plan = Plan(1, 6, steps, (3, 4, 5))
    x = rows(1, 2)
    found = [*plan.run([x], {}), *plan.run([-x], {}), *plan.run([x], {})]
    expected = [[1, 2], [2, 3], [1, 2], [0, -1], [-1, -2], [0, -1], [1, 2], [2, 3], [1, 2]]
    assert [t.tolist() for t in found] == expected
    assert len({t.data_ptr() for t in (*found, x)}) == 10


def test_a_check_that_fails_raises_each_time() -> None:
    check = HostExecutable("rg.check", (), (0,), (), details={"message": "it must be positive"})
    steps = (Step(Positive(0.0), (0,), (1,)), Step(check, (1,), ()), Step(Adds(1.0), (0,), (2,)))
    plan = Plan(1, 3, steps, (2,))
    for _ in range(2):
        assert plan.run([rows(1, 2)], {})[0].tolist() == [2, 3]
        with pytest.raises(RegraftError, match="it must be positive"):
            plan.run([rows(-1, 2)], {})


def test_trips_of_a_loop_do_not_overwrite_what_they_carry() -> None:
    """In a trip a value that stays, and a result that the next trip reads."""
    body = chain(Adds(-1.0), Adds(-1.0))
    loop = HostExecutable(
        "cf.while", (Block(Plan(1, 2, (Step(Positive(0.0), (0,), (1,)),), (1,))), Block(body)), (0,), (0,)
    )
    plan = Plan(
        1, 4, (Step(Adds(0.0), (0,), (1,)), Step(loop, (1,), (2,)), Step(Adds(0.5), (2,), (3,))), (3,)
    )
    for start in (7, 0, 4):
        left = start - 2 * max(0, -(-start // 2))
        assert plan.run([rows(start, start + 1)], {})[0].tolist() == [left + 0.5, left + 1.5]


def test_what_a_scan_hands_through_is_fresh_in_a_frame() -> None:
    scan = HostExecutable(
        "cf.scan",
        (Block(Plan(2, 2, (), (1,))),),
        (0, 1),
        (0,),
        details={"carried": 1, "scanned": 1, "rows": []},
    )
    plan = Plan(2, 4, (Step(Adds(1.0), (0,), (2,)), Step(scan, (2, 1), (3,))), (3,))
    x = torch.arange(6.0).view(3, 2)
    for _ in range(2):
        (last,) = plan.run([rows(1, 2), x], {})
        assert last.tolist() == [4, 5]
        last.zero_()
    assert torch.equal(x, torch.arange(6.0).view(3, 2))


def test_a_region_with_sizes_of_its_own_is_not_bound() -> None:
    adds = Adds(1.0)
    arm = Block(chain(Adds(1.0), adds), binds=(("u0", 0, 0),))
    host = HostExecutable("cf.cond", (arm, arm), (0, 1), (0,))
    plan = Plan(
        1, 4, (Step(Positive(0.0), (0,), (1,)), Step(host, (1, 0), (2,)), Step(Adds(1.0), (2,), (3,))), (3,)
    )
    assert plan.run([rows(1, 2)], {})[0].tolist() == [4, 5]
    assert not adds.bound
