"""Steps that many products share. Others are made by hand: any elementwise expression is one."""

from __future__ import annotations

from functools import partial
from typing import Any

from regraft.backends.tvm.templates.problem import Extra, Step

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")
"""The names that ``activation`` and ``gate`` take: functions of ``templates.functions``."""


def bias(name: str = "bias") -> Step:
    """Adds a vector with an element for each column."""
    return Step("bias", _add, (Extra(name, ("columns",)),))


def residual(name: str = "residual") -> Step:
    """Adds a matrix of the shape of the result."""
    return Step("residual", _add, (Extra(name, ("batch", "rows", "columns")),))


def activation(function: str) -> Step:
    """One of ``ACTIVATIONS``."""
    assert function in ACTIVATIONS, function
    return Step(function, partial(_activation, function))


def gate(function: str) -> Step:
    """Joins two products: the first one, the activation of the second one times it."""
    assert function in ACTIVATIONS, function
    return Step(f"{function} gate", partial(_gate, function))


def row_scale(name: str = "scale") -> Step:
    """Multiplies each row by a number, such as the reciprocal norm of a row of ``x``."""
    return Step("row scale", _multiply, (Extra(name, ("rows",)),))


def _add(math: Any, value: Any, other: Any) -> Any:
    return value + other


def _multiply(math: Any, value: Any, other: Any) -> Any:
    return value * other


def _activation(function: str, math: Any, value: Any) -> Any:
    return getattr(math, function)(value)


def _gate(function: str, math: Any, up: Any, gate: Any) -> Any:
    return getattr(math, function)(gate) * up
