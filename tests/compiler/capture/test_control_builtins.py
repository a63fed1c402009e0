"""Python's own functions and operators on numbers, lists and ranges that only a call knows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import regraft
from regraft.errors import CaptureError, RegraftError
from tests.compiler.capture.running import BACKENDS, Captures, check_calls, compiled

HERE = Path(__file__).name
ROW = torch.tensor([1.0, -2.0, 3.5, 4.0])
CALLS = [
    (torch.tensor(row),) for row in ([-1.0, -2.0, -3.0, -4.0], [0.5, 2.0, 3.0, 0.0], [5.0, -1.25, 4.0, -2.0])
]
Model = Callable[[Any], Any]


def total(x: Tensor) -> Any:
    return x.sum().item()


def ups(x: Tensor) -> Any:
    return (x > 0).sum().item()


def positives(x: Tensor) -> Any:
    return x[x > 0].tolist()


def whole(x: Tensor) -> Any:
    return x[x > 0].to(torch.int64).tolist()


def rows(x: Tensor) -> Any:
    return x[:, None][x > 0].tolist()


def doubled(value: Any) -> Any:
    return value * 2


def named(models: dict[str, Model]) -> list[Any]:
    return [pytest.param(model, id=name) for name, model in models.items()]


# -- some of each ------------------------------------------------------------------------------


def is_a_length(x: Any) -> Any:
    n = len(positives(x))
    return x * 2 if isinstance(n, int) and type(n) is int and not isinstance(n, float) else x


def test_a_length_is_an_integer() -> None:
    check_calls(is_a_length, (ROW,), CALLS, backends=("eager",))


def some_of_each(x: Any) -> Any:
    n, k, values = total(x), ups(x), positives(x)
    x = x + round(n) + divmod(k, 3)[1] + max(k, 2) + round(n, 1) + math.sqrt(abs(n)) + (k << 1)
    for i, value in enumerate(reversed(values or [0.5]), k):
        x = x + value * i
    return x + sum(values) + any(values) + sum(range(k)) + torch.tensor(k, dtype=torch.int8)


def test_some_of_each() -> None:
    check_calls(some_of_each, (ROW,), CALLS, backends=("ort",))


# -- numbers -----------------------------------------------------------------------------------

NUMBERS: dict[str, Model] = {
    "round": lambda x: x + round(total(x)) + 10 * round(total(x) / 2 + 0.25),
    "round_of_an_integer": lambda x: x + round(ups(x)) + round(ups(x), 2) + round(ups(x) > 1),
    "divmod": lambda x: x + divmod(ups(x) - 2, 3)[0] + 10 * divmod(7, 1 + ups(x))[1],
    "divmod_of_floats": lambda x: x + sum(divmod(total(x), 0.75)) + divmod(total(x), -2)[1],
    "floor_of_a_tenth": lambda x: x + ((x.sum() * 0 + 1).item() // 0.1),
    "abs": lambda x: x + abs(total(x)) + abs(ups(x) - 3) + abs(ups(x) > 9),
    "pow": lambda x: x + pow(total(x), 2) + pow(2.0, ups(x)) + 1.5 ** total(x) + ups(x) ** 2,
    "power_of_a_fraction": lambda x: x + abs(total(x)) ** 0.5 + (1 + abs(total(x))) ** -1.5,
    "power_of_two_unknowns": lambda x: x + (1.5 + abs(total(x))) ** total(x),
    "min_of_several": lambda x: x + min(ups(x), 2) + max(total(x), -1.0, 2.0) + max(3, ups(x), 4),
    "min_of_an_iterator": lambda x: x + min(v * 2 for v in (total(x), 1.0)),
    "max_of_values": lambda x: x + max({0: ups(x) + 1.5, 1: 2.0}.values()),
    "max_by_a_key": lambda x: x + max(range(4), key=lambda i: x[i].item()),
    "min_by_a_key": lambda x: x + min([total(x), 3.0, -0.5], key=abs),
    "int_and_float": lambda x: x + int(total(x)) + float(ups(x)) + int(x[2]) + float(x[0]) / 3,
    "shifts": lambda x: x + (ups(x) << 3) + (1 << ups(x)) + (-37 >> ups(x)) + (1 >> ups(x) + 70),
    "inverted": lambda x: x + ~ups(x) + (ups(x) ^ 6) + (5 & ups(x)) + (ups(x) | 8),
    "is_integer": lambda x: x + (2 if total(x).is_integer() else 3),
    "sorted": lambda x: x + sorted([total(x), 1.5, -3.0])[1] + sorted((ups(x), 2, 3), reverse=True)[0],
    "any_of_known": lambda x: x + any([ups(x) > 3, total(x) > 1]) + 2 * all([ups(x), total(x) - 6.5]),
    "sum_of_known": lambda x: x + sum([total(x), ups(x), 2]) + sum((x[0].item(), x[1]), 1.5),
}


@pytest.mark.conformance
@pytest.mark.parametrize("model", named(NUMBERS))
def test_numbers(model: Model) -> None:
    check_calls(model, (ROW,), CALLS)


TIES = [
    0.125,
    2.675,
    1.005,
    2.5,
    -2.5,
    -0.375,
    1.115,
    0.285,
    1e15 + 0.375,
    123456789012345.67,
    1e300,
    -1e-9,
    0.5,
]


def rounds_to(digits: int) -> Model:
    return lambda x: torch.tensor([round(each.item(), digits) for each in x], dtype=torch.float64)


@pytest.mark.parametrize("digits", [0, 2, 11])
def test_round_has_pythons_digits(digits: int) -> None:
    model, captures = rounds_to(digits), Captures()
    drawn = torch.randn(13, generator=torch.Generator().manual_seed(digits), dtype=torch.float64)
    near = (drawn * 10**digits).floor().add(0.5) / 10**digits
    ties = torch.tensor(TIES, dtype=torch.float64)
    for backend in BACKENDS:
        with captures.used():
            made = compiled(model, (ties,), backend)
        for x in (ties, drawn, near, near * 1e3, torch.full((13,), math.inf)):
            assert made(x.double()).tolist() == model(x.double()).tolist()


# -- math --------------------------------------------------------------------------------------

MATH: dict[str, Model] = {
    "roots": lambda x: x + math.sqrt(abs(total(x))) + math.hypot(total(x), 3) + math.fabs(total(x)),
    "exponentials": lambda x: x + math.exp(total(x)) + math.expm1(ups(x) / 9) + math.exp2(ups(x)),
    "logarithms": lambda x: x + math.log(1 + ups(x)) + math.log2(9.5 + total(x) / 9),
    "other_logarithms": lambda x: x + math.log10(3 + ups(x)) + math.log1p(ups(x)),
    "logarithm_to_a_base": lambda x: x + math.log(1 + ups(x), 3) + math.log(7, 2 + ups(x)),
    "angles": lambda x: x + math.sin(total(x)) + math.cos(ups(x)) + math.tan(total(x) / 9),
    "degrees": lambda x: x + math.radians(total(x)) + math.degrees(ups(x)),
    "hyperbolic": lambda x: x + math.tanh(total(x)) + math.sinh(ups(x) / 9) + math.cosh(ups(x) / 9),
    "whole": lambda x: x + math.floor(total(x)) + math.ceil(total(x) / 3) + math.trunc(-total(x)),
    "of_tensors": lambda x: x + math.floor(x[2]) + math.ceil(x.sum() / 3) + math.exp(x[1]),
    "tests": lambda x: x + math.isnan(total(x)) + 2 * math.isinf(total(x)) + 4 * math.isfinite(total(x)),
    "two": lambda x: x + math.fmod(total(x), 0.75) + math.copysign(2, total(x)) + math.pow(1.5, total(x)),
}


@pytest.mark.conformance
@pytest.mark.parametrize("model", named(MATH))
def test_math(model: Model) -> None:
    check_calls(model, (ROW,), CALLS)


def test_math_of_what_a_number_may_be() -> None:
    calls = [(torch.tensor([value, 1.0, 1.0, 1.0]),) for value in (math.inf, math.nan)]
    check_calls(MATH["tests"], (ROW,), calls)


# -- lists, ranges and sets --------------------------------------------------------------------

LISTS: dict[str, Model] = {
    "sum": lambda x: x + sum(positives(x)) + sum(whole(x), 3) + sum(positives(x), total(x)),
    "sum_of_truths": lambda x: x + sum((x[x > 0] > 2).tolist()),
    "sum_of_a_range": lambda x: x + sum(range(ups(x))) + sum(range(9, ups(x), -2)) + sum(set(whole(x))),
    "sum_of_tensors": lambda x: sum([row * 2 for row in x.view(2, 2) if row.sum() > 0], x[:2]),
    "sum_of_a_part": lambda x: sum(x[x > 0], x[0]),
    "sum_of_lists": lambda x: x + len(sum(rows(x), [])) + sum(sum(rows(x), [0.5])),  # noqa: RUF017
    "any": lambda x: x + any(whole(x)) + 2 * all(whole(x)) + 4 * any(range(ups(x))) + 8 * all(set(whole(x))),
    "any_of_tensors": lambda x: x + any([row > 3 for row in x if row != 0.5]),  # noqa: C419
    "all_of_a_part": lambda x: x + 2 * all(v - 4 for v in x[:2]) + all(x[x > 0] - 4),
    "truths_of_tensors": lambda x: x + all([row - 4 for row in x if row > 0]),  # noqa: C419
    "count": lambda x: x + whole(x).count(3) + 10 * positives(x).count(0.5),
    "default": lambda x: x + max(positives(x), default=-1.5) + min(whole(x), default=7),
    "sorted": lambda x: torch.tensor(sorted(positives(x), reverse=True) + sorted(positives(x)) + [0.0]),
    "min_of_a_range": lambda x: x + max(range(ups(x) + 1)) + min(set(whole(x)) | {5}),
    "a_list_of_a_reversed_range": lambda x: torch.tensor([7] + list(reversed(range(ups(x))))),  # noqa: RUF005
    "a_list_of_a_map": lambda x: x + sum(list(map(doubled, positives(x)))),
    "a_map_of_two": lambda x: x + sum(map(lambda v, w: v * w, positives(x), whole(x))),
    "a_map_of_conversions": lambda x: x + sum(map(int, x)) + sum(map(float, whole(x))),
}


@pytest.mark.conformance
@pytest.mark.parametrize("model", named(LISTS))
def test_lists(model: Model) -> None:
    check_calls(model, (ROW,), CALLS, backends=("ort",))


def goes_up_to_tensors(x: Any) -> Tensor:
    ups = (x > 0).sum().to(torch.int32)
    for i in range(ups):
        x = x * 0.5 + i
    for i in range(1, ups[None] + 2, 2):
        x = x - i
    return x


def as_many_rows_as_a_value_says(x: Any) -> Tensor:
    return torch.ones(12).view(ups(x) + 1, -1).sum(0).amax() + x


def goes_back(x: Any) -> Tensor:
    for i in reversed(range(1, ups(x) + 1)):
        x = x * 0.5 + i
    return x


def goes_back_over_a_list(x: Any) -> Tensor:
    y = x * 0
    for i, value in enumerate(reversed(positives(x)), ups(x)):
        y = y * 2 + value * i
    return y


def goes_back_over_tensors(x: Any) -> Tensor:
    y = x[0]
    for row in reversed([row + 1 for row in x if row > 0]):
        y = y * 2 + row
    return y


def counts_from(x: Any) -> Tensor:
    for i, value in enumerate([2.0, 3.0], ups(x)):
        x = x * value + i
    return x


def counts_from_over_a_part(x: Any) -> Tensor:
    y = x * 0
    for i, row in enumerate(x[x > 0], start=ups(x)):
        y = y + row * i
    return y


LOOPS = [
    as_many_rows_as_a_value_says,
    counts_from,
    counts_from_over_a_part,
    goes_back,
    goes_back_over_a_list,
    goes_back_over_tensors,
    goes_up_to_tensors,
]


@pytest.mark.conformance
@pytest.mark.parametrize("model", LOOPS, ids=lambda model: model.__name__)
def test_loops(model: Model) -> None:
    check_calls(model, (ROW,), CALLS)


# -- and, or, not ------------------------------------------------------------------------------


def or_a_list(x: Any) -> Tensor:
    values = positives(x) or [5.0, 6.0]
    return x + len(values) + torch.tensor(values).sum() + values[0]


def or_another_list(x: Any) -> Tensor:
    values = positives(x - 3) or positives(x) or [0.5]
    return x * len(values)


def or_a_list_that_grows(x: Any) -> Any:
    values = positives(x) or [1.0]
    values.append(2.0)
    return x + len(values) + values[-1]


def or_a_set(x: Any) -> Tensor:
    return x + len(set(whole(x)) or {3, 4})


def and_more(x: Any) -> Tensor:
    if positives(x) and whole(x)[0] > 0:
        x = x * 3
    return x - 1 if not positives(x) else x * 2


def and_a_list(x: Any) -> Tensor:
    values = positives(x) and positives(-x)
    return x + len(values)


@pytest.mark.parametrize(
    "model",
    [or_a_list, or_another_list, or_a_list_that_grows, or_a_set, and_more, and_a_list],
    ids=lambda model: model.__name__,
)
def test_operands_that_are_containers(model: Model) -> None:
    check_calls(model, (ROW,), CALLS)


# -- what raises -------------------------------------------------------------------------------

RAISING: dict[str, tuple[Model, Any, str]] = {
    "round_of_nan": (lambda x: x + round(total(x)), [math.nan], "ValueError: cannot convert float NaN"),
    "int_of_inf": (lambda x: x + int(total(x)), [math.inf], "OverflowError: cannot convert float inf"),
    "floor_of_nan": (lambda x: x + math.floor(total(x)), [math.nan], "ValueError: cannot convert float NaN"),
    "divmod_by_zero": (lambda x: x + divmod(7, ups(x))[0], [-1.0], "ZeroDivisionError"),
    "a_root": (lambda x: x + math.sqrt(total(x)), [-1.0], "ValueError: math domain error"),
    "a_logarithm": (lambda x: x + math.log(total(x)), [0.0], "ValueError: math domain error"),
    "a_large_power": (lambda x: x + math.exp(total(x)), [1000.0], "OverflowError: math range error"),
    "a_power_of_zero": (lambda x: x + total(x) ** -2, [0.0], "ZeroDivisionError: 0.0 cannot be raised"),
    "math_pow_of_zero": (lambda x: x + math.pow(total(x), -2), [0.0], "math domain error|0.0 cannot be"),
    "a_power_beyond": (lambda x: x + total(x) ** 200, [1e30], "OverflowError"),
    "a_shift": (lambda x: x + (1 << ups(x) - 1), [-1.0], "ValueError: negative shift count"),
    "the_least_of_none": (lambda x: x + min(positives(x)), [-1.0], r"ValueError: min\(\)"),
}


@pytest.mark.conformance
@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize(("model", "row", "words"), RAISING.values(), ids=RAISING)
def test_what_raises(model: Model, row: Any, words: str, backend: str) -> None:
    x = torch.tensor(row)
    made = compiled(model, (torch.ones(1),), backend)
    torch.testing.assert_close(made(torch.ones(1)), model(torch.ones(1)))
    with pytest.raises((ArithmeticError, ValueError)):
        model(x)
    with pytest.raises(RegraftError, match=words):
        made(x)


def test_a_negative_number_to_a_fraction_is_an_error() -> None:
    made = compiled(lambda x: x + total(x) ** 0.5, (ROW,), "ort")
    with pytest.raises(RegraftError, match="is complex"):
        made(-ROW)


def test_a_sum_of_no_tensors_is_an_error() -> None:
    def model(x: Any) -> Any:
        return sum([row * 2 for row in x if row > 0])

    check_calls(model, (ROW,), CALLS[1:], backends=("ort",))
    with pytest.raises(RegraftError, match="give sum"):
        compiled(model, (ROW,), "ort")(-ROW.abs())


# -- tensors of numbers ------------------------------------------------------------------------


def writes_a_number(x: Any) -> Any:
    found, n = torch.zeros(4, dtype=torch.int8), int(total(x))
    found[n % 3] = n
    found[3] = n - 1
    return found


CONVERTED: dict[str, tuple[Model, Any, Any]] = {
    "i32": (
        lambda x: torch.tensor(total(x) * 2**20, dtype=torch.int32),
        [2047.0, -2048.0],
        [2048.0, -2049.0],
    ),
    "i16": (
        lambda x: torch.tensor(int(total(x)), dtype=torch.int16),
        [32767.0, -32768.0],
        [32768.0, -32769.0],
    ),
    "i8": (lambda x: torch.as_tensor([int(total(x)), 1], dtype=torch.int8), [127.0, -128.0], [128.0, -129.0]),
    "u8": (lambda x: torch.tensor(int(total(x)), dtype=torch.uint8), [255.0, -3.0, -255.0], [256.0, -256.0]),
    "u8_of_floats": (
        lambda x: torch.tensor([total(x)], dtype=torch.uint8),
        [255.0, 0.5],
        [255.5, -1.0, math.nan],
    ),
    "i32_of_floats": (
        lambda x: torch.tensor([[total(x)]], dtype=torch.int32),
        [2.75, -2.75],
        [math.inf, math.nan],
    ),
    "i64_of_floats": (
        lambda x: torch.tensor(total(x), dtype=torch.int64),
        [2.75, 1e18],
        [math.inf, math.nan, 1e19],
    ),
    "bools": (lambda x: torch.tensor([total(x) > 1, True], dtype=torch.int8), [2.0, 0.0], []),
    "a_list": (lambda x: torch.tensor((x[x > 2] * 2).tolist(), dtype=torch.int8), [63.5, 7.0], [64.0]),
    "parts_that_are_tensors": (
        lambda x: torch.tensor([x.sum().long(), 1], dtype=torch.int8),
        [127.0, 1.5],
        [128.0],
    ),
    "full": (lambda x: torch.full((2,), int(total(x)), dtype=torch.int8), [127.0, -128.0], [128.0]),
    "full_of_floats": (lambda x: torch.full_like(x, total(x) * total(x)), [1e15, math.inf], [1e30]),
    "masked_fill": (lambda x: (x > 9).char().masked_fill(x > 0, int(total(x))), [127.0], [128.0]),
    "written": (writes_a_number, [127.0, 3.0], [128.0]),
    "wraps": (lambda x: (x > 9).char() + int(total(x)), [127.0, 128.0, 300.0], []),
    "a_cast": (lambda x: torch.as_tensor(x.sum().to(torch.int64), dtype=torch.int8), [127.0, 128.0], []),
}


@pytest.mark.conformance
@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize(("model", "given", "refused"), CONVERTED.values(), ids=CONVERTED)
def test_a_number_that_a_dtype_does_not_hold(model: Model, given: Any, refused: Any, backend: str) -> None:
    made = compiled(model, (torch.tensor([4.0]),), backend)
    for value in given:
        x = torch.tensor([value], dtype=torch.float32)
        torch.testing.assert_close(made(x), model(x), rtol=0, atol=0)
    for value in refused:
        x = torch.tensor([value], dtype=torch.float32)
        with pytest.raises(RuntimeError, match="cannot be converted"):
            model(x)
        with pytest.raises(RegraftError, match="RuntimeError: value cannot be converted to type"):
            made(x)


# -- what is refused ---------------------------------------------------------------------------


def appends_to_what_or_has_chosen(x: Any) -> Any:
    first = positives(x)
    values = first or [1.0]
    values.append(2.0)
    return x + len(values)


def appends_to_what_or_may_have_chosen(x: Any) -> Any:
    first = positives(x)
    values = first or [1.0]
    first.append(2.0)
    return x + len(values)


def changes_a_shared_set(x: Any) -> Any:
    found = {9}
    same = found
    found |= set(whole(x))
    return x * len(same)


def joined_to(found: Any, more: Any) -> Any:
    found |= more
    return found


def changes_a_shared_set_elsewhere(x: Any) -> Any:
    found = {9}
    joined_to(found, set(whole(x)))
    return x * len(found)


REFUSED: dict[str, tuple[Model, str]] = {
    "digits": (lambda x: x + round(total(x), ups(x)), "as a number of digits"),
    "tens": (lambda x: x + round(ups(x), -1), "rounded to tens"),
    "many_digits": (lambda x: x + round(total(x), 12), "rounded to 12 digits"),
    "integers": (lambda x: x + 2 ** ups(x), "a base or an exponent of integers"),
    "a_modulus": (lambda x: x + pow(ups(x), 2, 5), "a power with a modulus"),
    "an_attribute": (lambda x: x + ups(x).bit_length(), "what has 'bit_length'"),
    "math_without_a_form": (lambda x: x + math.gamma(total(x)), "a float in code that is not converted"),
    "math_of_integers": (lambda x: x + math.gcd(ups(x), 6), "an index of Python's own sequences"),
    "a_repeated_list": (lambda x: x + len(positives(x) * 2), "the length is repeated"),
    "text": (lambda x: x + len(f"{positives(x)}"), "is used as text"),
    "a_key": (lambda x: x + max(positives(x), key=lambda v: -v), "taken by a key"),
    "truths_of_rows": (lambda x: x + any([row for row in x.view(2, 2) if row.sum() > 0]), "truth of each"),  # noqa: C419
    "an_order": (lambda x: x + sorted([ups(x), 1], reverse=total(x) > 0)[0], "order that only a call knows"),
    "a_list_and_a_number": (lambda x: x + (positives(x) and positives(x)[0]), "a list of unknown length on"),
    "appends_to_what_or_has_chosen": (appends_to_what_or_has_chosen, "whether it is another one"),
    "appends_to_what_or_may_have_chosen": (appends_to_what_or_may_have_chosen, "whether it is another one"),
    "changes_a_shared_set": (changes_a_shared_set, "is changed in place"),
    "changes_a_shared_set_elsewhere": (changes_a_shared_set_elsewhere, "is changed in place"),
}


@pytest.mark.parametrize(("model", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(model: Model, words: str) -> None:
    with pytest.raises(CaptureError, match=words) as caught:
        regraft.capture(model, (ROW,))
    assert HERE in str(caught.value.location)
    assert caught.value.hint
