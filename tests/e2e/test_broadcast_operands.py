"""Operands that broadcast where most models have one of the result's own shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.checking import check, normal


class Formula(nn.Module):
    """A formula over ``x`` and parameters of given shapes."""

    def __init__(self, formula: Callable[..., Tensor], *shapes: Sequence[int]) -> None:
        super().__init__()
        self.formula = formula
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(tuple(shape))) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x, *self.weights)


def sliced(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, w, b)[..., 2:4]


def shifted(x: Tensor, w: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return F.linear(x + c, w, b)


def scaled(x: Tensor, w: Tensor, b: Tensor, s: Tensor) -> Tensor:
    return F.linear(x, w, b) * s


def merged(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    return F.linear(F.linear(x, w, b), v)


def feed_forward(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w, b), approximate="tanh"), v)


@pytest.mark.parametrize("bias", [(1,), (3, 6)], ids=str)
@pytest.mark.parametrize(
    ("formula", "rest"),
    [(sliced, ()), (shifted, ((8,),)), (scaled, ((6,),)), (merged, ((8, 6),)), (feed_forward, ((8, 6),))],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_bias_of_a_linear_layer(
    formula: Callable[..., Tensor], rest: tuple[tuple[int, ...], ...], bias: tuple[int, ...]
) -> None:
    check(Formula(formula, (6, 8), bias, *rest), (normal(3, 8),))


def test_a_bias_for_all_outputs_is_the_layers_own() -> None:
    check(Formula(feed_forward, (6, 8), (1,), (8, 6)), (normal(2, 3, 8),), rewrites={"PlainFFN": 1})


@pytest.mark.parametrize(("x", "factor"), [((3, 1), (8,)), ((8,), (1, 8))], ids=str)
def test_a_factor_that_enlarges_the_input(x: tuple[int, ...], factor: tuple[int, ...]) -> None:
    model = Formula(lambda x, s, w: F.linear(x * s, w), factor, (6, 8))
    check(model, (normal(*x),), rewrites={"ScaledInput": 0})


class Adapted(nn.Module):
    """A change of rank one that is spread over the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 64))

    def forward(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return x @ (self.weight + left @ right)


@pytest.mark.parametrize(("left", "right"), [((1, 1), (1, 64)), ((64, 1), (1, 1))], ids=str)
def test_a_change_that_is_spread_over_the_weight(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    check(Adapted(), (normal(5, 64), normal(*left), normal(*right)), rewrites={"LowRankEpilogue": 0})


class Recurrent(nn.Module):
    """A GRU's step with an update gate of ``gate`` numbers, or an RNN's with a bias of ``bias`` numbers."""

    def __init__(self, gate: int = 0, bias: int = 1) -> None:
        super().__init__()
        self.update = nn.Linear(7, gate) if gate else None
        self.given, self.own = nn.Linear(3, 4), nn.Linear(4, 4)
        self.reset, self.bias = nn.Linear(7, 4), nn.Parameter(torch.ones(bias))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[1], 4, dtype=x.dtype)
        for t in range(40):
            if self.update is None:
                h = torch.tanh(F.linear(x[t], self.given.weight) + F.linear(h, self.own.weight, self.bias))
            else:
                both = torch.cat([x[t], h], 1)
                z, r = torch.sigmoid(self.update(both)), torch.sigmoid(self.reset(both))
                h = (1 - z) * torch.tanh(self.given(x[t]) + r * self.own(h)) + z * h
        return h


@pytest.mark.parametrize(
    ("model", "hits"),
    [(Recurrent(gate=4), 1), (Recurrent(gate=1), 0), (Recurrent(bias=4), 1), (Recurrent(bias=1), 1)],
    ids=["gate", "narrow-gate", "bias", "narrow-bias"],
)
def test_gates_and_biases_narrower_than_the_state(model: nn.Module, hits: int) -> None:
    check(model, (normal(40, 2, 3),), rewrites={"RecurrentCell": hits})


def beside_state(x: Tensor, h: Tensor, w: Tensor) -> Tensor:
    return F.linear(torch.cat([h.expand(3, 4), torch.zeros(0, dtype=x.dtype), x], 1), w)


def test_an_empty_part_of_another_rank() -> None:
    """torch skips it, whatever the axis."""
    model = Formula(lambda x, w: torch.cat([x, torch.zeros(0, dtype=x.dtype), x * w], 1).sum(1), (3, 1))
    check(model, (normal(3, 1),), rewrites={"SummedStack": 1})
    model = Formula(beside_state, (1, 4), (5, 10))
    check(model, (normal(3, 6),), rewrites={"SplitConcatenation": 1})
