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


def gate(function: str, bias: str | None = None, gate_bias: str | None = None) -> Step:
    """Joins two products: the activation of the second one times the first one.

    ``bias`` and ``gate_bias`` name vectors that are added to the first and the second one before.
    """
    assert function in ACTIVATIONS, function
    parts = {"first": bias, "second": gate_bias}
    biased = " ".join(part for part, name in parts.items() if name is not None)
    extras = tuple(Extra(name, ("columns",)) for name in parts.values() if name is not None)
    emit = partial(_gate, function, (bias is not None, gate_bias is not None))
    return Step(f"{function} gate" + (f" biased {biased}" if biased else ""), emit, extras)


def row_scale(name: str = "scale") -> Step:
    """Multiplies each row by a number, such as the reciprocal norm of a row of ``x``."""
    return Step("row scale", _multiply, (Extra(name, ("rows",)),))


def _add(math: Any, value: Any, other: Any) -> Any:
    return value + other


def _multiply(math: Any, value: Any, other: Any) -> Any:
    return value * other


def _activation(function: str, math: Any, value: Any) -> Any:
    return getattr(math, function)(value)


def _gate(function: str, biased: tuple[bool, bool], math: Any, up: Any, gate: Any, *biases: Any) -> Any:
    is_up_biased, is_gate_biased = biased
    up = up + biases[0] if is_up_biased else up
    gate = gate + biases[-1] if is_gate_biased else gate
    return getattr(math, function)(gate) * up
