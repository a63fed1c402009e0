"""Writes in arms and loops: to what the arm makes, to outer tensors, to arguments, to buffers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.compiler import control
from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls, rows

HERE = Path(__file__).name
UP, DOWN = rows(6, shift=1.0), rows(6, shift=-1.0)

Values = tuple[Tensor, ...]


def positive(x: Tensor) -> Tensor:
    return x.sum() > 0


def count() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


# -- conditions --------------------------------------------------------------------------------


def own_tensor(x: Tensor) -> Any:
    def then() -> Values:
        y = x * 2
        y[0] = 5.0
        y.t()[1].add_(1)
        return (y,)

    return control.cond(positive(x), then, lambda: (x.neg().relu_(),))


def outer_tensor(x: Tensor) -> Any:
    """One arm writes; what was read before, in the other arm and after must not see it unless taken."""
    y = x * 1
    row = y[1]
    before = y.sum(0)

    def then() -> Values:
        y.add_(1)
        y[0] = 7.0
        return (row * 2, y.sum())

    (doubled, total) = control.cond(positive(x), then, lambda: (row * 3, y.sum()))
    return before, doubled, total, y, row * 1


def both_arms(x: Tensor) -> Any:
    y, z = x * 1, x * 2

    def then() -> Values:
        y.mul_(2)
        z[:, 1] = y[:, 0]
        return (z.sum(),)

    def otherwise() -> Values:
        y.sub_(1)
        return (z.sum() + y.sum(),)

    (total,) = control.cond(positive(x), then, otherwise)
    y.add_(total)
    return y, z


def view_written_before(x: Tensor) -> Any:
    """Functionalization brings views up to date when they are read: not in one arm for all."""
    y = x * 1
    column, flat = y[:, 0], y.view(-1)
    y.add_(1)
    flat[2:4].mul_(3)
    (a,) = control.cond(positive(x), lambda: (column * 2,), lambda: (column.sum() + flat,))[:1]
    return a.sum(), column + 1, y


def view_given(x: Tensor) -> Any:
    """A view that is out of date is what one arm gives."""
    y = x * 1
    row = y[1]
    y.add_(1)
    (a,) = control.cond(positive(x), lambda: (row,), lambda: (y.sum(0),))
    return a * 2, row


def view_written_inside(x: Tensor) -> Any:
    y = x * 1
    column = y[:, 0]

    def then() -> Values:
        column.mul_(0.5)
        return (y.sum(),)

    (total,) = control.cond(positive(x), then, lambda: (column.sum(),))
    return total, column, y.t()


def nested(x: Tensor) -> Any:
    y = x * 1

    def inner() -> Values:
        y[1] += 2
        return (y.sum(),)

    def then() -> Values:
        y.mul_(2)
        (a,) = control.cond(y.sum() > 20, inner, lambda: (y.mean(),))
        y.sub_(1)
        return (a + y[1].sum(),)

    (a,) = control.cond(positive(x), then, lambda: (y.sum(),))
    return a, y


def argument(x: Tensor) -> Any:
    def then() -> Values:
        x.mul_(2)
        return (x.sum(),)

    return control.cond(positive(x), then, lambda: (x.sum() + 1,))


def given_back(x: Tensor) -> Any:
    """Both arms give the argument, which one of them writes to: the caller's own tensor comes back."""
    (same,) = control.cond(positive(x), lambda: (x.mul_(2),), lambda: (x,))
    return same


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self.cache = nn.Buffer(torch.zeros(6, 4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        def then() -> Values:
            self.steps.add_(1)
            self.cache[1:3] = x[1:3]
            return (self.linear(self.cache),)

        (y,) = control.cond(positive(x), then, lambda: (self.linear(x),))
        return y, self.cache.sum(0), self.steps * 2


def constant_written_in_an_arm(x: Tensor) -> Any:
    """What the trace knows of a constant is no longer so once an arm may have changed it."""
    flag, steps = torch.tensor(0), torch.tensor([1.0, 2.0])

    def then() -> Values:
        flag.add_(1)
        steps[0] = x.sum()
        return (flag + 1,)

    def otherwise() -> Values:
        assert control.undecided(flag) or not bool(flag)
        return (flag - 1,)

    (a,) = control.cond(positive(x), then, otherwise)
    (b,) = control.cond(flag == 1, lambda: (a * 10,), lambda: (a * 100,))
    return b, flag, steps


def dead_alias(x: Tensor) -> Any:
    """The result may be ``y`` itself, but nobody looks at ``y`` any more."""
    y = x * 2
    (h,) = control.cond(positive(x), lambda: (y + 1,), lambda: (y,))
    h.add_(1)
    return h


CONDITIONS = [
    own_tensor,
    outer_tensor,
    both_arms,
    view_written_before,
    view_given,
    view_written_inside,
    nested,
    argument,
    given_back,
    Buffers().eval(),
    constant_written_in_an_arm,
    dead_alias,
]


@pytest.mark.parametrize("model", CONDITIONS, ids=lambda m: getattr(m, "__name__", "buffers"))
def test_writes_in_arms(model: Any) -> None:
    check_calls(model, (UP,), [(DOWN,), (UP * 3,), (DOWN * 2,)])


# -- loops -------------------------------------------------------------------------------------


def carried_in_place(x: Tensor) -> Any:
    y = x * 1

    def trip(carried: Values) -> Values:
        h, i = carried
        h.mul_(0.5)
        h[0].sub_(1)
        i += 1
        return h, i

    h, i = control.loop(lambda c: (c[0].abs().sum() > 5) & (c[1] < 9), trip, (y, count()))
    return h, i, y


def writes_to_outer(x: Tensor) -> Any:
    out, total = x.new_zeros(3, 4), x.new_zeros(4)

    def trip(carried: Values) -> Values:
        (i,) = carried
        out.index_copy_(0, i.view(1), (x[:1] * i) + total)
        total.add_(out.sum(0))
        return (i + 1,)

    (i,) = control.loop(lambda c: (c[0] < 3) & (total.sum() < 20), trip, (count(),))
    return out, total, i


def first_trip_only(x: Tensor) -> Any:
    """Trips write to what they get and hand on another tensor; nobody sees the first one's write."""

    def trip(carried: Values) -> Values:
        h, i = carried
        h.add_(1)
        return h * 0.5, i + 1

    return control.loop(lambda c: c[1] < 4, trip, (x * 1, count()))


def argument_in_loop(x: Tensor) -> Any:
    def trip(carried: Values) -> Values:
        (i,) = carried
        x.mul_(0.5)
        return (i + 1,)

    return control.loop(lambda c: x.abs().sum() > 4, trip, (count(),))


def condition_in_loop(x: Tensor) -> Any:
    seen = x.new_zeros(4)

    def trip(carried: Values) -> Values:
        h, i = carried

        def even() -> Values:
            seen.index_add_(0, (i % 4).view(1), h.sum().view(1))
            h.mul_(0.9)
            return (h + 1,)

        (g,) = control.cond(i % 2 == 0, even, lambda: (h * 1,))
        return g, i + 1

    h, _ = control.loop(lambda c: c[1] < 5, trip, (x * 1, count()))
    return h, seen


def constant_in_loop(x: Tensor) -> Any:
    """A constant that trips write to is not what it was when the first trip is traced."""
    steps = torch.tensor(0)

    def trip(carried: Values) -> Values:
        (h,) = carried
        (h,) = control.cond(steps < 2, lambda: (h * 2,), lambda: (h + 1,))
        steps.add_(1)
        return (h,)

    (h,) = control.loop(lambda c: steps < 4, trip, (x,))
    return h, steps


LOOPS = [
    carried_in_place,
    writes_to_outer,
    first_trip_only,
    argument_in_loop,
    condition_in_loop,
    constant_in_loop,
]


@pytest.mark.parametrize("model", LOOPS, ids=lambda m: m.__name__)
def test_writes_in_loops(model: Any) -> None:
    check_calls(model, (UP,), [(DOWN,), (UP * 0.1,), (UP * 5,)])


# -- refusals ----------------------------------------------------------------------------------


def alias_of_argument(x: Tensor) -> Any:
    (h,) = control.cond(positive(x), lambda: (x + 1,), lambda: (x,))
    h.add_(1)
    return h


def alias_read_later(x: Tensor) -> Any:
    y = x * 2
    (h,) = control.cond(positive(x), lambda: (y + 1,), lambda: (y[:],))
    y.add_(1)
    return h


def two_results_of_one(x: Tensor) -> Any:
    def then() -> Values:
        y = x * 2
        return y, y[0]

    h, row = control.cond(positive(x), then, lambda: (x * 3, x[0] * 1))
    h.add_(1)
    return row


def handed_on_and_read(x: Tensor) -> Any:
    y = x * 1

    def trip(carried: Values) -> Values:
        h, i = carried
        h.add_(1)
        return h, i + y.sum().long()

    return control.loop(lambda c: c[1] < 3, trip, (y, count()))


def first_trip_seen(x: Tensor) -> Any:
    def trip(carried: Values) -> Values:
        h, i = carried
        h.add_(1)
        return h * 0.5, i + 1

    return control.loop(lambda c: c[1] < 4, trip, (x, count()))


def carried_twice(x: Tensor) -> Any:
    y = x * 1

    def trip(carried: Values) -> Values:
        h, g, i = carried
        h.add_(1)
        return h, g, i + g.sum().long()

    return control.loop(lambda c: c[2] < 4, trip, (y, y, count()))


def test_writes(x: Tensor) -> Any:
    y = x * 1
    return control.loop(lambda c: y.sub_(1).sum() > 0, lambda c: (c[0] + 1,), (count(),))


test_writes.__test__ = False  # type: ignore[attr-defined]

ALIASED = "is one that is used under another name too"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (alias_of_argument, ALIASED),
        (alias_read_later, ALIASED),
        (two_results_of_one, ALIASED),
        (handed_on_and_read, ALIASED),
        (first_trip_seen, ALIASED),
        (carried_twice, ALIASED),
        (test_writes, "writes, in the condition of a loop"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refused_with_the_line(model: Any, words: str) -> None:
    with pytest.raises(CaptureError, match=words) as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert caught.value.hint
