"""Variables that inner functions and other functions read at any time, and that are assigned anew later."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compiler.capture.running import check_calls, rows

SHIFTS = [rows(6, seed=i, shift=shift) for i, shift in enumerate((-2.0, -0.2, 0.1, 0.4, 2.0))]
SCALE = 1.0


def of_an_inner_function(x: Tensor) -> Tensor:
    scale = 1.0

    def scaled() -> Tensor:
        return x * scale

    if x.sum() > 0:
        scale = 2.0
    y = scaled()
    scale = 0.0
    return y + scale


def of_a_lambda(x: Tensor) -> Tensor:
    scale = 1.0
    scaled = lambda value: value * scale  # noqa: E731
    if x.mean() > 0.3:
        scale = 3.0
    x = scaled(x)
    scale = 0.5
    return scaled(x)


def of_two_paths(x: Tensor) -> Tensor:
    """A class, a generator expression and an annotated assignment are no different."""
    shift = 1.0

    class Shifted:
        def of(self, value: Tensor) -> Tensor:
            return value + shift

    if x.sum() > 0:
        shift = -4.0
    y = Shifted().of(x)
    shift: float = 0.25
    return Shifted().of(y)


def of_a_trip(x: Tensor) -> Tensor:
    """Each trip puts back what it has changed."""
    shift = 0.0

    def shifted(value: Tensor) -> Tensor:
        return value + shift

    for limit in (1.0, 2.0, 3.0):
        if x.sum() > limit:
            shift = limit
        x = shifted(x)
        shift = 0.0
    return x


def of_the_target_of_a_loop(x: Tensor) -> Tensor:
    def stepped(value: Tensor) -> Tensor:
        return value * step

    step = 1.0
    for limit in (1.0, 2.0):
        if x.sum() > limit:
            step = 0.5
        x = stepped(x)
        for step in (1.5, 2.0):  # noqa: B007
            x = x + 1
    return stepped(x)


def times_scale(x: Tensor) -> Tensor:
    return x * SCALE


def of_the_module(x: Tensor) -> Tensor:
    global SCALE  # noqa: PLW0603
    if x.sum() > 0:
        SCALE = 2.0
    y = times_scale(x)
    SCALE = 1.0
    return y + SCALE


@pytest.mark.parametrize(
    "model",
    [
        of_an_inner_function,
        of_a_lambda,
        of_two_paths,
        of_a_trip,
        of_the_target_of_a_loop,
        of_the_module,
    ],
    ids=lambda model: model.__name__,
)
def test_what_an_arm_assigns_is_kept_for_those_who_read_at_any_time(model: Any) -> None:
    check_calls(model, (torch.ones(6, 4),), [(x,) for x in SHIFTS], backends=("ort",))


def test_functions_of_equal_code(tmp_path: Path) -> None:
    """A file that is imported under two names: Python takes the codes of its functions for equal."""
    file = tmp_path / "twin.py"
    file.write_text("def halved(x):\n    return x / 2 if x.sum() > 0 else x\n")
    first, second = (runpy.run_path(str(file), {"__name__": name})["halved"] for name in ("one", "other"))
    assert first.__code__ == second.__code__
    assert first.__code__ is not second.__code__

    def model(x: Tensor) -> Tensor:
        return second(first(x) - 2.0)

    check_calls(model, (rows(3),), [(rows(3, shift=8.0),), (rows(3, shift=2.0),)], backends=("eager",))
