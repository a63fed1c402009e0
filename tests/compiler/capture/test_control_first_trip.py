"""First trips unlike the others, variables that may be None, and parts of tensors up to unknown numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError, RegraftError
from tests.compiler.capture.running import check_calls, rows

HERE = Path(__file__).name
UP = rows(6, shift=1.0)
SHIFTS = [rows(6, seed=i, shift=shift) for i, shift in enumerate((-2.0, -0.7, -0.2, 0.1, 0.4, 0.9, 2.0))]


def positives(x: Tensor) -> Any:
    return (x[:, 0] > 0).sum()


# -- first trips -------------------------------------------------------------------------------


def reads_what_an_earlier_trip_set(x: Tensor) -> Tensor:
    steps = 0
    while steps < 8:
        if steps > 0 and last > 0.3:  # noqa: F821
            x = x - 0.1
        last = x[:, 0].mean().item()  # noqa: F841
        x = x * 0.7
        if x.abs().max() < 0.4:
            break
        steps += 1
    return x * steps


def starts_from_none(x: Tensor) -> Tensor:
    state, steps = None, 0
    while True:
        state = x if state is None else torch.tanh(state + x)
        steps += 1
        if state.abs().mean() > 0.8 or steps == 6:
            return state + steps


def starts_from_none_and_leaves_at_once(x: Tensor) -> Tensor:
    cache, steps = None, 0
    while steps < 5:
        cache = x[:1] if cache is None else torch.cat([cache, x[:1] * steps])
        if cache.sum() > 3:
            break
        steps += 1
    else:
        cache = cache * 2
    return cache


@pytest.mark.parametrize(
    "model", [reads_what_an_earlier_trip_set, starts_from_none, starts_from_none_and_leaves_at_once]
)
def test_the_first_trip_is_made_apart(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS])


# -- None on one path --------------------------------------------------------------------------


def none_on_one_path(x: Tensor) -> Tensor:
    extra = None
    if x.sum() > 0:
        extra = x[:2]
    y = x * 2
    if extra is not None:
        y = torch.cat([extra, y])
    return y if extra is None else y + extra.mean()


def a_tensor_first(x: Tensor) -> Tensor:
    if x.sum() > 0:
        extra = x * 3
    elif x[0, 0] > 0:
        extra = None
    else:
        extra = x.abs()
    if extra is None:
        return x if x[1, 0] > 0 else x * 3
    return x - 1 if extra.sum() > 2 else extra


@pytest.mark.parametrize("model", [none_on_one_path, a_tensor_first])
def test_a_variable_that_is_none_on_one_path(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS], backends=("ort",))


def read_without_asking(x: Tensor) -> Tensor:
    extra = None
    if x.sum() > 0:
        extra = x * 2
    return x + extra


def asked_for_its_truth(x: Tensor) -> Tensor:
    extra = None
    if x.sum() > 0:
        extra = x * 2
    return x if not extra else x + 1


def returned(x: Tensor) -> Tensor | None:
    extra = None
    if x.sum() > 0:
        extra = x * 2
    return extra


@pytest.mark.parametrize("model", [read_without_asking, asked_for_its_truth, returned])
def test_what_may_be_none_is_not_read_before_that_is_asked(model: Any) -> None:
    with pytest.raises(CaptureError, match="may be a tensor or None") as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert "is not None" in str(caught.value.hint)


# -- conditions of which a part says that a variable is not None --------------------------------


def both_of_it(x: Tensor) -> Tensor:
    extra = None
    if x.sum() > 0:
        extra = x[:2]
    if extra is not None and extra.sum() > 3:
        return torch.cat([extra, x]) + extra.mean()
    return x


def either_of_it(x: Tensor) -> Tensor:
    extra = None
    if x.sum() > 0:
        extra = x[:2]
    if extra is None or extra.sum() < 3:
        return x
    return torch.cat([extra, x])


def not_either(x: Tensor) -> Tensor:
    extra = None
    if x.sum() > 0:
        extra = x * 2
    if not (extra is None or extra.sum() < 3 or x[0, 0] < 0):
        x = x - extra
    if extra is not None and extra.sum() > 1000:
        raise ValueError("too large")
    return x + (extra if extra is not None and extra.max() > 1 else x.abs())


def two_of_them(x: Tensor) -> Tensor:
    low = high = None
    if x[0, 0] > 0:
        low = x * 2
    if x.sum() > 0:
        high = x + 1
    if low is not None and high is not None and (low + high).sum() > 9:
        return low * high
    if low is not None and (high is None or high.sum() < 0):
        return low
    return x


def not_even_none(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Python decides about the first part alone."""
    if mask is not None and mask.sum() > 0:
        x = x + mask
    if mask is None or mask.sum() > 0:
        x = x * 2
    return x if x.sum() > 0 else -x


def chosen_or_none(x: Tensor) -> Tensor:
    extra = x[:2] if x.sum() > 0 else None if x[0, 0] > 0 else x
    if extra is not None and extra.sum() > 1:
        return torch.cat([extra, x])
    return x * 2 if extra is None else x


@pytest.mark.parametrize(
    "model", [both_of_it, either_of_it, not_either, two_of_them, not_even_none, chosen_or_none]
)
def test_a_part_of_a_condition_says_what_the_others_may_read(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS], backends=("ort",))


def test_parts_that_python_decides_leave_no_condition() -> None:
    def model(x: Tensor, used: bool = False) -> Tensor:
        y = x * 2 if used and x.sum() > 0 else x
        if x.sum() > 0 and used:
            y = y + 1
        return y if not used or x.sum() > 0 else y * 3

    assert "cf.cond" not in str(regraft.compile(model, (UP,), cache=False).ir)


def reads_where_it_may_be_none(x: Tensor) -> Tensor:
    extra = None
    if x.sum() > 0:
        extra = x * 2
    if extra is not None or x[0, 0] > 0:
        return x + extra
    return x


def test_a_condition_that_leaves_it_open_is_refused() -> None:
    with pytest.raises(CaptureError, match="may be a tensor or None"):
        regraft.capture(reads_where_it_may_be_none, (UP,))


# -- another type where a loop is left ----------------------------------------------------------


def left_with_a_row(x: Tensor) -> Tensor:
    y, steps = x, 0
    while True:
        y = y.mean(0)
        if y.sum() > 1:
            break
        y = x + y + 0.1
        steps += 1
        if steps >= 3:
            break
    return y * 2 if steps >= 3 else x - steps


def left_from_two_loops(x: Tensor) -> Tensor:
    """The inner loop is left with integers, the outer one goes on with floats."""
    y, steps = x, 0
    while steps < 4:
        while True:
            y = (y * 2).to(torch.int64)
            if y.sum() > 9:
                break
            y = y * 0.5 + 0.4
        y = x * 0.5
        steps += 1
        if y.mean() > 0.3:
            break
    return y + steps


@pytest.mark.parametrize("model", [left_with_a_row, left_from_two_loops])
def test_a_variable_of_another_type_where_a_loop_is_left(model: Any) -> None:
    given = [x for x in SHIFTS if x.sum() > -9] if model is left_from_two_loops else SHIFTS
    check_calls(model, (UP,), [(x + 0.5,) for x in given], backends=("ort",))


def read_whatever_it_is(x: Tensor) -> Tensor:
    y, steps = x, 0
    while True:
        y = y.mean(0)
        if y.sum() > 1:
            break
        y = x + y
        steps += 1
        if steps >= 3:
            break
    return y * 2


def test_a_call_that_reads_the_other_type_is_refused() -> None:
    made = regraft.compile(read_whatever_it_is, (UP,), cache=False)
    low, high = UP * 0 - 1, UP * 0 + 9
    torch.testing.assert_close(made(low), read_whatever_it_is(low))
    with pytest.raises(RegraftError, match="give it one type before the `break`"):
        made(high)


# -- parts -------------------------------------------------------------------------------------


def part_up_to(x: Tensor) -> Tensor:
    return x[: positives(x)] * 2


def part_from_the_end(x: Tensor) -> Tensor:
    n = positives(x).item()
    return x[-n - 1 :, 1:] + x[: n + 20].sum()


def part_between(x: Tensor) -> tuple[Tensor, Tensor]:
    n = positives(x).item()
    return x[n - 2 : n + 1 : 2], x[None, ..., n:]


def part_up_to_a_size(x: Tensor) -> Tensor:
    kept = x[x[:, 0] > 0]
    if x.sum() > 0:
        kept = kept[1:]
    return x[: kept.shape[0] - 2] * 2


def part_of_a_list(x: Tensor) -> Tensor:
    outs = [x[0]]
    while x.abs().max() > 0.4:
        x = x * 0.7
        outs.append(x[0])
    return torch.stack(outs[: positives(x) + 1])


def writes_to_a_part(x: Tensor) -> Tensor:
    n = positives(x).item()
    out = x.clone()
    out[:n] = x[:1] * 2
    out[n:, 1] += 1
    return out


@pytest.mark.parametrize(
    "model",
    [part_up_to, part_from_the_end, part_between, part_up_to_a_size, part_of_a_list, writes_to_a_part],
)
def test_parts_up_to_numbers_that_only_a_call_knows(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS], backends=("ort",))


def step_of_a_part(x: Tensor) -> Tensor:
    return x[:: positives(x).item() + 1]


def test_a_step_that_only_a_call_knows_is_refused() -> None:
    with pytest.raises(CaptureError, match="a slice whose step only a call knows"):
        regraft.capture(step_of_a_part, (UP,))


# -- copies that are views in eager ------------------------------------------------------------


def written_after_its_use(x: Tensor) -> Tensor:
    out, n = x.clone(), positives(x).item()
    for i in range(3):
        total = out[n - 1 : n + 1].sum() + out[n - 1].mean()
        out[n - 1] = total + i
        if total > 3:
            break
    return out


def written_in_a_loop(x: Tensor) -> Tensor:
    out, n = x.clone(), 0
    while n < 5:
        out[n + 1] = out[n : n + 1].sum(0)
        if out[n, 0] > 2:
            out[n] = x[n] * 2
        n = n + 1 + positives(x).item()
    return out


def written_in_nested_loops(x: Tensor) -> Tensor:
    out, n = torch.zeros(14, 4), 0
    while n < 5:
        count = positives(x).item()
        for i in range(count):
            if i == count - 1 or (x[i, 0] != out[n + i, 0]):
                out[n + i + 1] = x[i] + out[n]
                n = n + 1 + i
                break
        x = x - 0.3
        if count == 0:
            break
    return out


@pytest.mark.parametrize("model", [written_after_its_use, written_in_a_loop, written_in_nested_loops])
def test_writes_to_what_a_part_was_taken_of(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS], backends=("ort",))


def used_after_the_write(x: Tensor) -> Tensor:
    out = x.clone()
    part = out[: positives(x).item()]
    out[0] = 1.0
    return part * 2


def chosen_and_used_after_the_write(x: Tensor) -> Tensor:
    out = x.clone()
    part = out[positives(x).item() - 1]
    other = part if x.sum() > 0 else x[0]
    out[:] = 1.0
    return other * 2


def used_in_the_next_trip(x: Tensor) -> Tensor:
    out, n = x.clone(), 0
    part = out[positives(x).item() - 1]
    while n < 3:
        x = x + part
        out[n] = 1.0
        n = n + (x.sum() > 0).long().item() + 1
    return x


def written_itself(x: Tensor) -> Tensor:
    out = x.clone()
    part = out[: positives(x).item()]
    part += 1
    return out


@pytest.mark.parametrize(
    "model",
    [used_after_the_write, chosen_and_used_after_the_write, used_in_the_next_trip, written_itself],
)
def test_a_part_that_is_in_use_when_it_changes_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match=r"while the other is in use|used under another name"):
        regraft.capture(model, (UP,))


# -- any, all, max -----------------------------------------------------------------------------


def any_of_rows(x: Tensor) -> Tensor:
    return x * 2 if any(x) else x


def all_of_rows(x: Tensor) -> Tensor:
    return x * 2 if all(x > 0) else x


@pytest.mark.parametrize("model", [any_of_rows, all_of_rows])
def test_the_truth_of_a_row_is_ambiguous_as_in_eager(model: Any) -> None:
    with pytest.raises(RuntimeError, match="ambiguous"):
        model(UP)
    with pytest.raises(CaptureError, match="ambiguous"):
        regraft.capture(model, (UP,))


def greatest_of_two_kinds(x: Tensor) -> Tensor:
    return x * max(x.sum().item(), positives(x).item())


def test_the_greatest_of_an_int_and_a_float_is_refused() -> None:
    """Which of the two kinds it is, and so the dtype of what it meets, only a call knows."""
    with pytest.raises(CaptureError, match="on one path and") as caught:
        regraft.capture(greatest_of_two_kinds, (UP,))
    assert "one kind" in str(caught.value.hint)
