"""Each of Python's functions on numbers and lists of a call is right, or refused by its line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.errors import CaptureError, RegraftError
from tests.compiler.capture.running import compiled
from tests.compiler.capture.test_control_builtins import CALLS, ROW, Model, positives, total, ups

HERE = Path(__file__).name


def method(kind: type, name: str) -> Any:
    def called(value: Any, *args: Any) -> Any:
        found = getattr(value, name)(*args)
        return value if found is None else found

    called.__name__ = f"{kind.__name__}.{name}"
    return called


def public(owner: Any) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_") and callable(getattr(owner, name))]


OF_NUMBERS: tuple[Any, ...] = (
    *(abs, ascii, bin, bool, chr, complex, divmod, float, format, hash, hex, int, max, min, oct, pow, range),
    *(repr, round, str),
    *(getattr(math, name) for name in public(math)),
    *(method(kind, name) for kind in (int, float) for name in public(kind)),
)
OF_LISTS: tuple[Any, ...] = (
    *(
        all,
        any,
        dict,
        enumerate,
        filter,
        frozenset,
        iter,
        len,
        list,
        map,
        max,
        min,
        next,
        range,
        reversed,
        repr,
    ),
    *(set, sorted, str, sum, tuple, zip, math.fsum, math.prod, math.dist),
    *(method(list, name) for name in public(list)),
)


def shown(x: Any, found: Any) -> Any:
    """A tensor that tells results from one another."""
    if isinstance(found, str):
        return x + len(found)
    if isinstance(found, (bool, int, float)):
        return x.double() + found
    y = x * 0
    for each in found:
        y = y * 2 + each
    return y


def of_a_float(function: Any) -> Model:
    return lambda x: shown(x, function(total(x)))


def of_an_integer(function: Any) -> Model:
    return lambda x: shown(x, function(ups(x)))


def of_two_floats(function: Any) -> Model:
    return lambda x: shown(x, function(total(x), x.max().item()))


def of_two_integers(function: Any) -> Model:
    return lambda x: shown(x, function(ups(x), ups(x) + 2))


def of_a_list(function: Any) -> Model:
    return lambda x: shown(x, function(positives(x)))


def of_two_lists(function: Any) -> Model:
    return lambda x: shown(x, function(positives(x), positives(x)))


def of_a_function(function: Any) -> Model:
    return lambda x: shown(x, function(abs, positives(x)))


def of_a_list_and_a_number(function: Any) -> Model:
    return lambda x: shown(x, function(positives(x), 1))


FORMS = {
    of_a_float: OF_NUMBERS,
    of_an_integer: OF_NUMBERS,
    of_two_floats: OF_NUMBERS,
    of_two_integers: OF_NUMBERS,
    of_a_list: OF_LISTS,
    of_two_lists: OF_LISTS,
    of_a_function: OF_LISTS,
    of_a_list_and_a_number: OF_LISTS,
}


def answers(model: Model, x: Tensor = ROW) -> bool:
    """Whether eager has an answer that ``shown`` can show."""
    try:
        return isinstance(model(x), Tensor)
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError):
        return False


EVERY = [
    pytest.param(form(function), id=f"{form.__name__}-{function.__name__}")
    for form, functions in FORMS.items()
    for function in functions
    if answers(form(function))
]


def refused_or_made(model: Model) -> tuple[CaptureError | None, Any]:
    try:
        return None, compiled(model, (ROW,), "eager")
    except CaptureError as error:
        return error, None


@pytest.mark.conformance
@pytest.mark.parametrize("model", EVERY)
def test_every_function_is_right_or_refused(model: Model) -> None:
    refusal, made = refused_or_made(model)
    if refusal is not None:
        assert HERE in str(refusal.location)
        assert refusal.hint or "; " in refusal.message
        return
    for (x,) in ((ROW,), CALLS[1], CALLS[2]):
        if not answers(model, x):
            with pytest.raises(RegraftError):
                made(x)
            continue
        torch.testing.assert_close(made(x).double(), model(x).double())


def test_there_are_functions() -> None:
    assert len(EVERY) > 100
