"""Every construct that is converted: converted and not, a function gives the same on every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, tensor

from tests.compiler.capture.control.both_paths import converted
from tests.compiler.capture.control.test_programs import function_of, plain


def if_else(x):
    if x > 0:
        y = x * 2
    else:
        y = -x
    return y


def elif_chain(x):
    if x > 3:
        kind = 1
    elif x > 1:
        kind = 2
    elif x > 0:
        kind = 3
    else:
        kind = 4
    return x * kind, kind


def early_return(x):
    if x > 3:
        return x
    x = x + 1
    if not x < 2:
        return x * 2
    return x * 3


def falls_off(x):
    if x > 0:
        y = x + 1
        if y > 2:
            return y
    return -x


def returned_by_the_second_arm_alone(x, early=False):
    y = x
    if x > 5:
        y = x * 2
    elif x > 3:
        if early:
            return x, 1
    else:
        return x * 5, 2
    return y + 1, 3


def conditional_expression(x):
    return (x + 1 if x > 1 else 0 if x > 0 else x), 1.0 if x > 2 else 2.0


def logic(x):
    a = x > 0 and x < 3
    b = x > 2 or x == 0
    return not a, b, 1 if a and not b else 0, x and 5.0


def chained(x):
    y = 1 if 0 < x <= 3 != x < 9 else 2
    return y, x in (1.0, 2.0), x not in (1.0, 2.0)


def while_loop(x):
    steps = 0
    while x < 10:
        x = x.abs() * 2 + 1
        steps += 1
    return x, steps


def while_with_everything(x):
    found = tensor(-1.0)
    n = 0
    while n < 6:
        n += 1
        x = x + 1
        if x == 3:
            continue
        if x > 5:
            found = x
            break
        if x < 0:
            return x * 100, n
    else:
        found = tensor(-5.0)
    return found, n


def do_while(x):
    while True:
        y = x + 1
        if y > 4:
            break
        x = y.abs() * 2 + 1
    return y


def returns_from_a_loop(x):
    while True:
        x = x + 1
        if x > 5:
            return x * 3
        if x < 1:
            return x * 5


def exits(x):
    for i in range(5):
        x = x + i
        if x > 6:
            return x, i
    return x * 2, -1


def breaks(x):
    for i in range(4):  # noqa: B007
        x = x + 1
        if x > 4:
            break
    else:
        x = -x
    return x + i


def skips(x):
    total = 0
    for step in (1.0, -2.0, 3.0):
        if x + step < 1:
            continue
        total = total + x * step
        if total > 6:
            break
        total = total + 1
    return total + x


def nested_loops(x):
    for i in range(3):
        for j in range(2):
            x = x + j
            if x > 4:
                return x, i
            if x == 2:
                break
        x = x + 1
    return -x, 7


def inner_functions(x):
    scale = 2

    def grow(value):
        if value > 2:
            return value * scale
        return value + scale

    if x > 1:
        scale = 3
    return grow(x), (lambda v: v * scale if v > 1 else v)(x)


def grows_a_list(x):
    found = []
    if x > 1:
        found.append(x)
    else:
        found.append(-x)
    found.append(x)
    return tuple(found)


def containers_in_a_loop(x):
    state = [x, x + 1]
    seen = {"most": x}
    while state[0] < 9:
        state[0] = state[0].abs() + state[1].abs() + 1
        seen["most"] = state[0] * 2
    return state[0], state[1], seen["most"]


def unknown_indices(x):
    table = torch.arange(12.0).reshape(3, 4)
    i = int(x) % 3
    row = (table[i] if x > 1 else table[-1]) * 2
    table[:, i] = x
    return row.sum(), table[i, ..., 1], table[None, :, i].sum(), table.sum()


def in_a_dict(x):
    state = {"x": x, "name": "a"}
    if x > 1:
        state["x"] = x * 2
    return state["x"], len(state["name"])


def numbers(x):
    value = x.item()
    whole = int(x * 1.5)
    truth = bool(x)
    best = max(value, 2.0, float(whole))
    if value > 1.5 and whole < 4:
        whole += 1
    return x * value, value / 2, whole, float(whole), truth + 1, best, abs(-value), 3 - value


def mixed(x):
    total = 0
    loss = 0.0
    if x > 1:
        total = x
        loss = x * 2
    return total + 1, loss


def any_and_all(x):
    parts = [x > 1, x > 2]
    return any(parts), all(parts), any(p > 0 for p in (x, x - 3))


def with_block(x):
    with torch.no_grad():
        if x > 1:
            return x
        x = x + 1
    return x * 2


def kept_try(x):
    y = x
    try:
        y = y + [1][0]
    except IndexError:
        y = -y
    if x > 1:
        y = y * 2
    return y


def deletes(x):
    y = x + 1
    if x > 1:
        z = y * 2
        x = z
        del z
    del y
    return x


def walrus_in_a_test(x):
    if (y := x * 2) > 3:
        return y
    return y + 1


def python_decides(x, flag=True, many=("a", "b")):
    out = x
    for i, name in enumerate(many):
        if flag and name != "b":
            out = out + i + 1
        else:
            out = out * 2
        while i > 5:
            i -= 1
    if x > 1:
        out = -out
    return out if flag else None


def starred(x, *more, last=2.0):
    head, *rest = [x, *more, last]
    if head > rest[-1]:
        head, rest[0] = rest[0], head
    return head, rest[0]


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.__factor = 3.0

    def forward(self, x):
        return x * 2

    def private(self, x):
        return x * self.__factor if x > 1 else x


class Child(Doubled):
    def forward(self, x):
        if x > 1:
            x = super().forward(x)
        return super().forward(x)


CHILD = Child()


def methods(x):
    return CHILD.forward(x), CHILD.private(x)


FUNCTIONS = [
    value
    for name, value in list(globals().items())
    if callable(value)
    and getattr(value, "__module__", "") == __name__
    and not isinstance(value, (type, nn.Module))
]
VALUES = (-2.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 40.0)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_path(function: Any) -> None:
    run, _, found = converted(function)
    for value in VALUES:
        assert plain(run(tensor(value))) == plain(function(tensor(value))), value
    assert not [note for note in found.notes if "try" not in note.reason]


# pytest rewrites the assertions of test files, so that their source is not what runs.
CHECKS = """
def f(x):
    if x.dim() > 1:
        raise ValueError("too many dims")
    if x > 2:
        x = x + 1
    assert x.dim() == 0, "no scalar"
    return x
"""


def test_what_pythons_values_decide_raises_as_before() -> None:
    function = function_of(CHECKS)
    run, _, _ = converted(function)
    for value in VALUES:
        assert run(tensor(value)) == function(tensor(value))
    with pytest.raises(ValueError, match="too many dims"):
        run(torch.ones(2, 2))
    with pytest.raises(AssertionError, match="no scalar"):
        run(torch.ones(1))


@pytest.mark.parametrize("method", [Child.forward, Doubled.private], ids=lambda m: m.__qualname__)
def test_methods_keep_their_class(method: Any) -> None:
    run, _, _ = converted(method)
    for value in VALUES:
        assert plain(run(CHILD, tensor(value))) == plain(method(CHILD, tensor(value)))


@pytest.mark.parametrize("flag", [False, True])
def test_arguments_and_defaults_stay(flag: bool) -> None:
    run, _, _ = converted(python_decides)
    for value in VALUES:
        assert plain(run(tensor(value), flag, many="ab")) == plain(
            python_decides(tensor(value), flag, many="ab")
        )
    run, _, _ = converted(starred)
    assert plain(run(tensor(3.0), tensor(1.0), last=0.0)) == plain(
        starred(tensor(3.0), tensor(1.0), last=0.0)
    )


def test_exits_nest_and_nothing_is_written_twice() -> None:
    run, traced, _ = converted(twelve_exits)
    for value in VALUES:
        assert plain(run(tensor(value))) == plain(twelve_exits(tensor(value)))
    assert (traced.counts.conditions, traced.counts.deepest) == (12 * len(VALUES), 12)


def twelve_exits(x):
    for _ in range(12):
        x = x + 1
        if x > 6:
            return x
    return -x


def twelve_exits_and_a_list(x):
    seen = []
    for _ in range(12):
        x = x + 1
        seen.append(x * 1)
        if x > 6:
            break
    return torch.stack(seen)


def test_a_list_that_grows_until_a_loop_is_left_costs_one_trial() -> None:
    run, traced, _ = converted(twelve_exits_and_a_list)
    for value in VALUES:
        assert run(tensor(value)).tolist() == twelve_exits_and_a_list(tensor(value)).tolist()
    assert traced.counts.thrown_away_conditions <= 12 * len(VALUES)
