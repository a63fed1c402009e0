"""Code that decides by tensors in ways a graph does not hold: it works, or an error says what to do."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError, RegraftError
from tests.compiler.capture.running import check_calls, compiled, rows

HERE = Path(__file__).name
UP, DOWN = rows(6, shift=1.0), rows(6, shift=-1.0)


# -- what is refused ---------------------------------------------------------------------------


def calls_itself(x: Tensor) -> Tensor:
    if x.abs().max() < 0.5:
        return x
    return calls_itself(x * 0.5)


def yields(x: Tensor) -> Iterator[Tensor]:
    while x.abs().max() > 0.5:
        x = x * 0.5
        yield x


def goes_over_a_generator(x: Tensor) -> Tensor:
    total = x
    for part in yields(x):
        total = total + part
    return total


def set_in_one_branch(x: Tensor) -> Tensor:
    if x.sum() > 0:
        y = x * 2
    return y


def read_before_it_is_set(x: Tensor) -> Tensor:
    while x.abs().max() > 0.5:
        if x.sum() > 9:
            x = x - last  # noqa: F821
        last = x * 0.1  # noqa: F841
        x = x * 0.5
    return x


def set_in_a_loop(x: Tensor) -> Tensor:
    while x.abs().max() > 0.5:
        y = x * 0.5
        x = y
    return y


def two_dtypes(x: Tensor) -> Tensor:
    y = x > 0 if x.sum() > 0 else x
    return y * 2


def two_ranks(x: Tensor) -> Tensor:
    y = x if x.sum() > 0 else x[0]
    return y * 2


def two_structures(x: Tensor) -> Any:
    y = (x, x) if x.sum() > 0 else [x]
    return y[0]


def two_lengths_of_two_types(x: Tensor) -> Tensor:
    outs = [x]
    if x.sum() > 0:
        outs.append(x[0])
    return outs[-1] * 2


def a_tensor_or_none(x: Tensor) -> Any:
    kept = [x if x.sum() > 0 else None]
    return x if kept[0] is None else kept[0] * 2


def returns_of_two_ranks(x: Tensor) -> Tensor:
    if x.sum() > 5:
        x = x * 2
    elif x.sum() > 3:
        if x[0, 0] > 0:
            return x[0]
    else:
        return x
    return x + 1


def another_rank_after_each_trip(x: Tensor) -> Tensor:
    while x.sum() < 100:
        x = (x * 2 + 10).unsqueeze(0)
    return x


def in_a_try(x: Tensor) -> Tensor:
    try:
        y = x if x.sum() > 0 else x * 2
    except ValueError:
        y = -x
    return y


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def up(self) -> None:
        self.count += 1


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def up(self) -> int:
        self.count += 1
        return self.count


def changes_an_object(x: Tensor) -> Tensor:
    counter = Counter()
    if x.sum() > 0:
        counter.up()
    return x * counter.count


def changes_an_object_with_slots(x: Tensor) -> Tensor:
    counter = Slotted()
    while x.abs().max() > 0.5:
        counter.up()
        x = x * 0.5
    return x * counter.count


def changes_the_object_of_a_method(x: Tensor) -> Tensor:
    up = Slotted().up
    if x.sum() > 0:
        up()
    return x * up()


def changes_a_closure(x: Tensor) -> Tensor:
    count = 0

    def up() -> int:
        nonlocal count
        count += 1
        return count

    while True:
        x = x * up() + 1
        if x.sum() > 100:
            break
    return x


def takes_from_a_list_in_a_loop(x: Tensor) -> Tensor:
    values = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    while True:
        x = x * next(values) + 1
        if x.sum() > 100:
            break
    return x


def counts_in_an_arm(x: Tensor) -> Tensor:
    values = itertools.count(1)
    if x.sum() > 0:
        x = x * next(values)
    return x + next(values)


def takes_in_an_expression(x: Tensor) -> Tensor:
    values = iter({1.0: None, 2.0: None})
    return x * (next(values) if x.sum() > 0 else 3.0) + next(values)


def takes_of_an_iterator_of_iterators(x: Tensor) -> Tensor:
    values = enumerate(map(float, zip_of_one(range(5))))
    if x.sum() > 0:
        x = x * next(values)[1]
    return x + next(values)[1]


def zip_of_one(values: Iterable[int]) -> Iterator[int]:
    return itertools.chain.from_iterable(zip(values))


def constants() -> Iterator[float]:
    yield 1.0
    yield 2.0
    yield 3.0


def powers() -> Iterator[float]:
    value = 1.0
    while True:
        value = value * 2
        yield value


def takes_of_a_generator(x: Tensor) -> Tensor:
    values = constants()
    if x.sum() > 0:
        x = x * next(values)
    return x + next(values)


def takes_of_an_endless_generator(x: Tensor) -> Tensor:
    values = powers()
    x = x + next(values)
    if x.sum() > 0:
        x = x * next(values)
    return x + next(values)


EXECUTED: dict[str, Any] = {}
exec("def without_source(x):\n    return x if x.sum() > 0 else -x\n", EXECUTED)

REFUSED = [
    (calls_itself, "calls itself where a tensor decides"),
    (goes_over_a_generator, "a generator cannot be converted"),
    (set_in_one_branch, "the variable 'y' is set in one branch only"),
    (read_before_it_is_set, "the variable 'last' has no value where a tensor decides, and is read there"),
    (set_in_a_loop, "the variable 'y' is set only inside a loop"),
    (two_dtypes, r"is a tensor bool\[6, 4\] on one path and a tensor float32\[6, 4\] on the other"),
    (two_ranks, r"is a tensor float32\[6, 4\] on one path and a tensor float32\[4\] on the other"),
    (returns_of_two_ranks, "the value that is returned is a tensor"),
    (two_structures, "is a tuple of 2 on one path and a list of 1 on the other"),
    (two_lengths_of_two_types, "holds more on one path than on the other where a tensor decides"),
    (a_tensor_or_none, r"is a tensor float32\[6, 4\] on one path and None on the other"),
    (
        another_rank_after_each_trip,
        r"float32\[6, 4\] before a trip of the loop and a tensor float32\[1, 6",
    ),
    (in_a_try, "a decision inside `try` cannot be converted"),
    (changes_an_object, "'counter.count' changes where a tensor decides"),
    (changes_an_object_with_slots, "'counter.count' changes where a tensor decides"),
    (changes_the_object_of_a_method, "'up.count' changes where a tensor decides"),
    (changes_a_closure, "'count of up' changes where a tensor decides"),
    (takes_from_a_list_in_a_loop, "'values' is advanced where a tensor decides"),
    (counts_in_an_arm, "'values' is advanced where a tensor decides"),
    (takes_in_an_expression, "'values' is advanced where a tensor decides"),
    (takes_of_an_iterator_of_iterators, "'values' is advanced where a tensor decides"),
    (takes_of_a_generator, "'values' is advanced where a tensor decides"),
    (takes_of_an_endless_generator, "'values' is advanced where a tensor decides"),
    (lambda x: EXECUTED["without_source"](x), "the function has no source"),
]


@pytest.mark.parametrize(("model", "words"), REFUSED, ids=lambda each: getattr(each, "__name__", ""))
def test_refused_with_the_line_and_the_way_out(model: Any, words: str) -> None:
    with pytest.raises(CaptureError, match=words) as caught:
        regraft.capture(model, (UP,))
    assert caught.value.location
    assert caught.value.hint or "; " in caught.value.message


def test_a_shape_that_differs_by_rank_names_both() -> None:
    with pytest.raises(CaptureError) as caught:
        regraft.capture(two_ranks, (UP,))
    assert caught.value.location == f"{__file__}:{two_ranks.__code__.co_firstlineno + 1}"
    assert caught.value.hint == "give both paths a tensor of one dtype and one number of dims"


# -- what works --------------------------------------------------------------------------------


def to_a_depth(x: Tensor, depth: int = 4) -> Tensor:
    """Calls itself as often as Python's numbers say."""
    if depth == 0 or x.abs().max() < 0.5:
        return x
    return to_a_depth(x * 0.5, depth - 1) + 1


def sizes_that_differ(x: Tensor) -> Tensor:
    y = x[1:] if x.sum() > 0 else x[:, :2].reshape(-1, 4)
    return y * 2


def two_lengths(x: Tensor) -> Tensor:
    outs = [x]
    if x.sum() > 0:
        outs.append(x * 2)
    if x[0, 0] > 0:
        outs.append(x * 3)
    return torch.cat(outs) * len(outs)


def writes_to_its_argument(x: Tensor) -> Tensor:
    if x.sum() > 0:
        x.mul_(2)
    else:
        x[0] = 0.0
    while x.abs().max() > 1:
        x *= 0.5
    return x + 1


def takes_outside_the_arms(x: Tensor) -> Tensor:
    """Closures, iterators and slots are in reach of both arms and change in none."""
    counter, values, more, seen = Slotted(), iter([1.0, 2.0, 3.0]), powers(), 0

    def scaled(y: Tensor) -> Tensor:
        return y * (counter.count + seen + 1)

    for _ in range(2):
        seen = counter.up()
        x = x + next(values) - next(more)
        if x.sum() > 0:
            x = scaled(x)
        else:
            inner = iter([3.0])
            x = x - next(inner)
    return x


def compares(x: Tensor) -> Tensor:
    """Conditions that are false, or true, of a number that is none."""
    top = x.max()
    y = x + 1 if top > 0 else x - 1
    y = y * 2 if not top < 1 else y
    y = y * max(0.0, top.item()) if top == top else y * min(2.0, top.item())
    while top > 4:
        top = top / 2
        y = y + 1
    return y * 3 if top else y


@pytest.mark.parametrize(
    "model",
    [to_a_depth, sizes_that_differ, two_lengths, writes_to_its_argument, takes_outside_the_arms],
)
def test_works(model: Any) -> None:
    check_calls(model, (UP,), [(x * scale,) for x in (UP, DOWN) for scale in (0.1, 1.0, 4.0)])


@pytest.mark.parametrize("backend", ["eager", "ort"])
def test_what_is_no_number_decides_as_in_eager(backend: str) -> None:
    made = compiled(compares, (UP,), backend)
    for value in (float("nan"), -float("inf"), 0.0, 0.3, 3.0, 40.0):
        x = UP.clone()
        x[2, 1] = value
        torch.testing.assert_close(made(x), compares(x), equal_nan=True)


def least_of_a_part(x: Tensor, n: Tensor) -> Tensor:
    return x[: int(n)].amin()


def two_parts(x: Tensor, n: Tensor) -> Tensor:
    return x[int(n) :] + x[: int(n)]


def test_sizes_that_do_not_fit_are_named_with_their_line() -> None:
    x = torch.arange(6.0)
    made = compiled(least_of_a_part, (x, torch.tensor(3)), "ort")
    line = least_of_a_part.__code__.co_firstlineno + 1
    words = rf"len0 >= 1 must hold, .*{HERE}:{line}: return x\[: int\(n\)\].amin"
    with pytest.raises(RegraftError, match=words):
        made(x, torch.tensor(0))
    checks = str(compiled(two_parts, (x, torch.tensor(3)), "ort").ir)
    assert "sizes that values decide do not fit: len0 == len1 must hold, " in checks
    assert "return x[int(n) :] + x[: int(n)]" in checks
    assert "Runtime assertion" not in checks
