"""Conditions and loops between markers: what is traced becomes regions that compute as eager does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.compiler import control
from regraft.errors import CaptureError, RegraftError, ShapeError
from regraft.ir import print_module, verify
from regraft.testing import assert_close, randomise
from tests.compiler.capture.running import AUTO, BACKENDS, check_calls, compiled, rows

assert_async = torch.ops.aten._assert_async.msg
HERE = Path(__file__).name
UP, DOWN = rows(6, shift=1.0), rows(6, shift=-1.0)
ROWS = ({0: AUTO},)


def count(start: int = 0) -> Tensor:
    return torch.full((), start, dtype=torch.int64)


def positive(x: Tensor) -> Tensor:
    return x.sum() > 0


# -- conditions --------------------------------------------------------------------------------


class Exits(nn.Module):
    """Layers with an exit after each but the last; the threshold is an argument."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(depth))

    def forward(self, x: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        return self.rest(x, stop, 0)

    def rest(self, x: Tensor, stop: Tensor, index: int) -> Any:
        x = self.layers[index](x).tanh()
        found = self.heads[index](x[0]), torch.full((), index)
        if index == len(self.layers) - 1:
            return found
        return control.cond(stop <= index, lambda: found, lambda: self.rest(x, stop, index + 1))


def test_exits_at_each_depth() -> None:
    model = randomise(Exits(5).eval())
    calls = [(rows(n, seed=stop), count(stop)) for stop in range(5) for n in (2, 7)]
    check_calls(model, (rows(3), count()), calls, dynamic_shapes=({0: AUTO}, None))


def test_each_block_is_traced_once() -> None:
    module = regraft.capture(Exits(12).eval(), (rows(3), count()))
    names = [op.name for op in module.main.walk()]
    assert names.count("cf.cond") == 11
    assert names.count("aten.linear") == 24
    verify(module, "captured")


def both_sizes(x: Tensor) -> Any:
    (half,) = control.cond(positive(x), lambda: (x[::2] * 2,), lambda: (x - 1,))
    return half, half.relu() + 1, half.sum(0)


def test_arms_that_differ_in_a_size() -> None:
    calls = [(rows(n, seed=n, shift=s),) for n in (5, 8, 11) for s in (-1.0, 1.0)]
    check_calls(both_sizes, (UP,), calls, dynamic_shapes=ROWS)
    check_calls(both_sizes, (UP,), [(DOWN,)])


def odd_values(x: Tensor) -> Any:
    """An outer value, one value twice, constants, an argument, an inner view."""
    y = x.relu()
    return control.cond(
        positive(x),
        lambda: (y, x, x, torch.ones(2), x.sum(), torch.tensor(3), y.t()),
        lambda: (x, x, y, torch.zeros(2), torch.tensor(0.5), torch.tensor(4), x.abs().t()),
    )


def test_what_arms_may_give() -> None:
    check_calls(odd_values, (UP,), [(DOWN,)])


def nothing(x: Tensor) -> Any:
    assert control.cond(positive(x), tuple, tuple) == ()
    return x + 1


def test_arms_may_be_empty() -> None:
    check_calls(nothing, (UP,), [(DOWN,)])


def test_a_tensor_that_both_arms_give_is_given_itself() -> None:
    seen: list[bool] = []

    def model(x: Tensor) -> Tensor:
        y = x + 1
        same, other = control.cond(positive(x), lambda: (y, y * 2), lambda: (y, y * 3))
        seen.append(same is y)
        return same + other

    check_calls(model, (UP,), [(DOWN,)])
    assert all(seen)


def if_in_while_in_if(x: Tensor) -> Any:
    def trip(carried: tuple[Tensor, ...]) -> Any:
        h, i = carried
        (h,) = control.cond(i % 2 == 0, lambda: (h * 0.7 + x.mean(),), lambda: (h.abs(),))
        return h, i + 1

    def then() -> Any:
        return control.loop(lambda c: (c[0].sum() > 1) & (c[1] < 20), trip, (x * 2, count()))

    return control.cond(positive(x), then, lambda: (x, count(-1)))


def test_a_condition_in_a_loop_in_a_condition() -> None:
    calls = [(rows(n, seed=n, shift=s),) for n in (2, 9) for s in (-1.0, 0.1, 3.0)]
    check_calls(if_in_while_in_if, (UP,), calls, dynamic_shapes=ROWS)


def number(x: Tensor) -> Any:
    (whole,) = control.cond(x, lambda: (torch.tensor(1),), lambda: (torch.tensor(0),))
    (compared,) = control.cond(x[0] > 1, lambda: (torch.tensor(1),), lambda: (torch.tensor(0),))
    return whole, compared


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_number_is_as_true_as_python_finds_it(backend: str) -> None:
    made = compiled(number, (torch.ones(1),), backend)
    for value in (0.0, -0.0, 2.0, float("nan"), float("inf")):
        given = torch.tensor([value])
        assert [t.item() for t in made(given)] == [bool(given), bool(given[0] > 1)]


def size_decides(x: Tensor) -> Any:
    kept = x[x > 0]
    empty = kept.numel() == 0
    assert control.undecided(empty) is isinstance(empty, torch.SymBool)
    return control.cond(empty, lambda: (x.sum(),), lambda: (kept.max(),))


def test_a_condition_on_a_size_that_values_decide() -> None:
    check_calls(size_decides, (UP,), [(-UP.abs(),), (DOWN,)])


def needs_some(x: Tensor) -> Any:
    """Only the arm that is taken where there are some needs some."""
    kept = x[x > 0]
    (found,) = control.cond(kept.numel() == 0, lambda: (x.sum(),), lambda: (kept[0] + kept[-1],))
    return found, kept


def shrinks(x: Tensor) -> Any:
    """So does a trip: the test that ends the loop finds none left."""
    kept = x[x > -1]
    return control.loop(
        lambda c: torch.full((), c[0].shape[0]) > 0,
        lambda c: (c[0][1:], c[1] + c[0][0]),
        (kept, x.sum()),
    )


@pytest.mark.parametrize("model", [needs_some, shrinks])
def test_what_an_arm_needs_of_a_size_is_asked_there_only(model: Any) -> None:
    calls = [(-UP.abs().view(-1) - 1,), (torch.ones(24),), (DOWN.view(-1),)]
    check_calls(model, (UP.view(-1),), calls)


def at_least_two(x: Tensor) -> Any:
    kept = x[x > 0]

    def then() -> Any:
        torch._check(kept.shape[0] >= 2)
        return (kept.sum(),)

    return control.cond(x[0] > 1, then, lambda: (x.sum(),))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_size_that_an_arm_needs_is_checked_in_it(backend: str) -> None:
    made = compiled(at_least_two, (torch.ones(3) * 2,), backend)
    assert made(torch.tensor([2.0, 1.0, -3.0]))[0].item() == 3
    assert made(torch.tensor([1.0, -1.0, -3.0]))[0].item() == -3
    with pytest.raises(RegraftError, match=rf"is not what the code at .*{HERE}:\d+ needs: 2 <= u"):
        made(torch.tensor([2.0, -1.0, -3.0]))


def four_twice(x: Tensor) -> Any:
    """What the arm needs of a size the code behind it needs too."""
    kept = x[x > 0]
    (found,) = control.cond(x[0] > 1, lambda: ((kept + torch.ones(4)).sum(),), lambda: (x.sum(),))
    return found, kept + torch.ones(4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_an_arm_needed_of_a_size_is_asked_behind_it_too(backend: str) -> None:
    made = compiled(four_twice, (torch.ones(4) * 2,), backend)
    assert [t.tolist() for t in made(torch.ones(4))] == [4, [2.0] * 4]
    for first in (1.0, 2.0):
        with pytest.raises((RegraftError, RuntimeError)):  # torch's own, where torch runs it
            made(torch.tensor([first, 1.0, 1.0, -1.0]))


def many_or_few(x: Tensor) -> Any:
    return control.cond(positive(x), lambda: (x[:4] if x.shape[0] > 3 else x,), lambda: (x * 2,))


def test_a_size_of_an_argument_that_an_arm_needs_is_asked_of_every_call() -> None:
    made = compiled(many_or_few, (UP,), "eager", dynamic_shapes=ROWS)
    with pytest.raises(ShapeError, match="dimension 0 of 'x' is 3"):
        made(rows(3, shift=-2.0))


def test_a_mask_is_counted_in_each_arm() -> None:
    def model(x: Tensor) -> Any:
        mask = x > 0
        before = x[mask].sum()
        (inside,) = control.cond(
            positive(x),
            lambda: (x[mask].sum() + x.nonzero().sum(),),
            lambda: ((x * 2)[mask].sum() + x[mask].sum(),),
        )
        return before, inside, (x * 3)[mask].sum()

    check_calls(model, (UP,), [(DOWN,), (rows(6),)])


def settled_later(x: Tensor) -> Any:
    """Code after the condition settles the size that its arms leave open."""
    (y,) = control.cond(positive(x), lambda: (x[:2] * 1,), lambda: (x * 2,))
    return y + x, y.sum()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_size_that_later_code_settles_is_checked(backend: str) -> None:
    made = compiled(settled_later, (DOWN,), backend)
    given = DOWN * 2
    assert_close(made(given), settled_later(given.double()))
    with pytest.raises(RegraftError):
        made(UP)


# -- loops -------------------------------------------------------------------------------------


def grows(x: Tensor) -> Any:
    def trip(carried: tuple[Tensor, ...]) -> Any:
        h, other = carried
        return torch.cat((h, h[:1])), other[:, 1:]

    return control.loop(lambda c: (c[0].sum() < 30) & (c[1].sum() > -40), trip, (x.abs(), x.repeat(1, 9)))


def test_a_loop_that_changes_sizes() -> None:
    calls = [(rows(n, seed=n, shift=s),) for n in (3, 8) for s in (-2.0, 0.5)]
    check_calls(grows, (UP,), calls, dynamic_shapes=ROWS)


def loop_in_loop(x: Tensor, trips: Tensor) -> Any:
    def outer(carried: tuple[Tensor, ...]) -> Any:
        h, i = carried
        _, h = control.loop(lambda c: c[0] < i, lambda c: (c[0] + 1, c[1] * 0.5 + x), (count(), h))
        return h, i + 1

    return control.loop(lambda c: c[1] < trips, outer, (x, count()))


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_a_loop_in_a_loop(trips: int) -> None:
    check_calls(loop_in_loop, (UP, count(2)), [(DOWN, count(trips))])


def doubles(x: Tensor) -> Any:
    return control.loop(lambda c: c[0].sum() < 100, lambda c: (c[0] * 2,), (x,), limit=4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loop_that_takes_too_many_trips_says_so(backend: str) -> None:
    made = compiled(doubles, (torch.full((1,), 50.0),), backend)
    assert made(torch.full((1,), 7.0))[0].item() == 112  # four trips
    assert made(torch.full((1,), 200.0))[0].item() == 200
    with pytest.raises(RegraftError, match=rf"{HERE}:\d+ takes more than 4 trips \(max_trips\)"):
        made(torch.full((1,), 6.0))
    with pytest.raises(RegraftError, match="more than 4 trips"):
        made(torch.full((1,), -1.0))


# -- checks ------------------------------------------------------------------------------------


def checked(x: Tensor, trips: Tensor) -> Any:
    """Checks in both arms, in a loop, and in a condition in it."""

    def trip(carried: tuple[Tensor, ...]) -> Any:
        h, i = carried
        assert_async((h < 100).all(), "too large")
        (h,) = control.cond(i > 0, lambda: (small(h),), lambda: (h + 1,))
        return h, i + 1

    def small(h: Tensor) -> Tensor:
        assert_async(h.min() > -50, "too small")
        return h * 2

    def refused() -> Any:
        assert_async(x.sum() > -20, "far down")
        return x, trips

    def looped() -> Any:
        return control.loop(lambda c: c[1] < trips, trip, (x, count()))

    return control.cond(positive(x), looped, refused)


@pytest.mark.parametrize("backend", BACKENDS)
def test_checks_of_what_runs_hold(backend: str) -> None:
    made = compiled(checked, (torch.ones(2), count(2)), backend)

    def run(values: list[float], trips: int) -> list[float]:
        return made(torch.tensor(values), count(trips))[0].tolist()

    assert run([1.0, 2.0], 3) == [8.0, 12.0]
    assert run([-200.0, 201.0], 0) == [-200.0, 201.0]
    assert run([-7.0, -8.0], 9) == [-7.0, -8.0]
    for values, trips, message in (
        ([1.0, 99.0], 3, "too large"),
        ([-60.0, 90.0], 2, "too small"),
        ([-19.0, -8.0], 1, "far down"),
    ):
        with pytest.raises(RegraftError, match=message):
            run(values, trips)


def test_a_limit_holds_in_eager() -> None:
    with pytest.raises(RuntimeError, match="more than 4 trips"):
        doubles(torch.ones(1))


# -- sizes of 1 --------------------------------------------------------------------------------


def test_a_size_of_1_is_allowed_where_every_arm_has_it_right() -> None:
    one = [(rows(1, seed=n, shift=s),) for n in (0, 1) for s in (-3.0, 0.1, 3.0)]
    check_calls(if_in_while_in_if, (UP,), one, dynamic_shapes=ROWS)


def another_path(x: Tensor) -> Any:
    """The arm that the example does not take has a path of its own for a single row."""
    return control.cond(positive(x), lambda: (x * 2,), lambda: (x * 5 if x.shape[0] == 1 else x - 1,))


def another_trip(x: Tensor) -> Any:
    """So has the body of a loop that the example does not enter."""
    return control.loop(lambda c: c[0].sum() < 0, lambda c: (c[0].abs() + x.shape[0] % 2,), (x,))


@pytest.mark.parametrize("model", [another_path, lambda x: another_path(x.neg())])
@pytest.mark.parametrize("example", [UP, DOWN])
def test_a_size_of_1_is_refused_where_one_arm_differs(model: Any, example: Tensor) -> None:
    made = compiled(model, (example,), "eager", dynamic_shapes=ROWS)
    with pytest.raises(ShapeError, match="dimension 0 of 'x' is 1"):
        made(rows(1))


def test_a_trip_that_depends_on_the_size_is_right() -> None:
    check_calls(another_trip, (UP,), [(rows(n, shift=-2.0),) for n in (1, 2, 3)], dynamic_shapes=ROWS)


# -- refusals ----------------------------------------------------------------------------------


def leaks(x: Tensor) -> Any:
    kept: list[Tensor] = []

    def then() -> Any:
        kept.append(x * 2)
        return (x,)

    control.cond(positive(x), then, lambda: (x + 1,))
    return kept[0]


def draws(x: Tensor) -> Any:
    return control.cond(positive(x), lambda: (x + torch.rand(4),), lambda: (x,))


def drops_a_draw(x: Tensor) -> Any:
    torch.rand(3)
    return control.cond(positive(x), lambda: (x,), lambda: (x + 1,))


def several_elements(x: Tensor) -> Any:
    return control.cond(x > 0, lambda: (x,), lambda: (x + 1,))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (leaks, "one arm of a condition makes, or a trip of a loop, is used outside"),
        (draws, "aten.rand draws random numbers in an arm"),
        (drops_a_draw, "nobody uses the random numbers of aten.rand"),
        (several_elements, "a tensor with 24 elements is ambiguous"),
        (
            lambda x: control.cond(positive(x), lambda: (x,), lambda: (x > 0,)),
            r"float32\[6, 4\] in one arm of the condition and bool\[6, 4\] in the other",
        ),
        (
            lambda x: control.cond(positive(x), lambda: (x,), lambda: (x[0],)),
            r"float32\[6, 4\] in one arm of the condition and float32\[4\] in the other",
        ),
        (
            lambda x: control.cond(positive(x), lambda: (x,), tuple),
            "one arm of the condition gives 1 tensors and the other 0",
        ),
        (
            lambda x: control.loop(lambda c: positive(c[0]), lambda c: (c[0].double(),), (x,)),
            r"float32\[6, 4\] before a trip and float64\[6, 4\] after it",
        ),
    ],
)
def test_refused_with_the_line(model: Any, words: str) -> None:
    with pytest.raises(CaptureError, match=words) as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert caught.value.hint


# -- values that the trace knows ---------------------------------------------------------------


def test_what_is_undecided() -> None:
    def model(x: Tensor) -> Tensor:
        known = torch.tensor(1)
        values = {"bool": True, "constant": known > 0, "size": x.shape[0] > 3, "tensor": positive(x)}
        found = {name: control.undecided(value) for name, value in values.items()}
        assert found == {"bool": False, "constant": False, "size": False, "tensor": True}
        return x + 1

    regraft.capture(model, (UP,))
    assert not control.undecided(torch.ones(()))
    assert not control.undecided(None)


def test_the_text_of_regions_reads_back() -> None:
    module = regraft.capture(if_in_while_in_if, (UP,), dynamic_shapes=ROWS)
    text = print_module(module)
    assert text.count("cf.cond") == 2
    assert text.count("cf.while") == 1
