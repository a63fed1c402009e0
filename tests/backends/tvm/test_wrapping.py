"""Integers that leave their type wrap around, also where the same kernel asks about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.backends import LowerOptions
from regraft.conformance import Case
from regraft.ir import DType, Value
from regraft.testing import GraphConstants

TYPES = {
    DType.I8: torch.int8,
    DType.U8: torch.uint8,
    DType.I16: torch.int16,
    DType.I32: torch.int32,
    DType.I64: torch.int64,
}

#: A number that may wrap, in the IR and in torch: of ``x`` and ``y``, of one shape, and ``w``, a matrix.
Make = tuple[Callable[..., Value], Callable[..., Tensor]]
#: The same of such a number ``m`` and another one.
Ask = tuple[Callable[..., Value], Callable[..., Tensor]]

MAKES: Mapping[str, Make] = {
    "x + y": (lambda aten, x, y, w: aten.add.Tensor(x, y), lambda x, y, w: x + y),
    "x - y": (lambda aten, x, y, w: aten.sub.Tensor(x, y), lambda x, y, w: x - y),
    "x * y": (lambda aten, x, y, w: aten.mul.Tensor(x, y), lambda x, y, w: x * y),
    "x + 1": (lambda aten, x, y, w: aten.add.Scalar(x, 1), lambda x, y, w: x + 1),
    "x - 3 y": (lambda aten, x, y, w: aten.sub.Tensor(x, y, alpha=3), lambda x, y, w: x - 3 * y),
    "2 x": (lambda aten, x, y, w: aten.mul.Scalar(x, 2), lambda x, y, w: x * 2),
    "64 x": (lambda aten, x, y, w: aten.mul.Scalar(x, 64), lambda x, y, w: x << 6),
    "-x": (lambda aten, x, y, w: aten.neg(x), lambda x, y, w: -x),
    "x ** 3": (lambda aten, x, y, w: aten.pow.Tensor_Scalar(x, 3), lambda x, y, w: x * x * x),
    "clamped * 4": (
        lambda aten, x, y, w: aten.mul.Scalar(aten.clamp(x, 40, 100), 4),
        lambda x, y, w: x.clamp(40, 100) * 4,
    ),
    "sum": (
        lambda aten, x, y, w: aten.sum.dim_IntList(x, (1,), True, dtype=x.tensor.dtype),
        lambda x, y, w: x.sum(1, True, dtype=x.dtype),
    ),
    "sum over rows": (
        lambda aten, x, y, w: aten.sum.dim_IntList(x, (0,), True, dtype=x.tensor.dtype),
        lambda x, y, w: x.sum(0, True, dtype=x.dtype),
    ),
    "prod": (
        lambda aten, x, y, w: aten.prod.dim_int(x, 1, True, dtype=x.tensor.dtype),
        lambda x, y, w: x.prod(1, True, dtype=x.dtype),
    ),
    "cumsum": (
        lambda aten, x, y, w: aten.cumsum(x, 1, dtype=x.tensor.dtype),
        lambda x, y, w: x.cumsum(1, dtype=x.dtype),
    ),
    "x @ w": (lambda aten, x, y, w: aten.matmul(x, w), lambda x, y, w: x @ w),
}


def _divided(mode: str, divisor: int) -> Ask:
    return (
        lambda aten, m, o: aten.div.Scalar_mode(m, divisor, rounding_mode=mode),
        lambda m, o: torch.div(m, divisor, rounding_mode=mode),
    )


def _cast(name: DType, dtype: torch.dtype) -> Ask:
    return lambda aten, m, o: aten._to_copy(m, dtype=name), lambda m, o: m.to(dtype)


ASKS: Mapping[str, Ask] = {
    "m < o": (lambda aten, m, o: aten.lt.Tensor(m, o), lambda m, o: m < o),
    "m >= o": (lambda aten, m, o: aten.ge.Tensor(m, o), lambda m, o: m >= o),
    "m == o": (lambda aten, m, o: aten.eq.Tensor(m, o), lambda m, o: m == o),
    "m > 0": (lambda aten, m, o: aten.gt.Scalar(m, 0), lambda m, o: m > 0),
    "m <= 100": (lambda aten, m, o: aten.le.Scalar(m, 100), lambda m, o: m <= 100),
    "m // 2": _divided("floor", 2),
    "m // 3": _divided("floor", 3),
    "m / 64": _divided("trunc", 64),
    "m % 2": (lambda aten, m, o: aten.remainder.Scalar(m, 2), lambda m, o: m % 2),
    "m % 100": (lambda aten, m, o: aten.remainder.Scalar(m, 100), lambda m, o: m % 100),
    "abs": (lambda aten, m, o: aten.abs(m), lambda m, o: m.abs()),
    "max": (lambda aten, m, o: aten.maximum(m, o), torch.maximum),
    "min": (lambda aten, m, o: aten.minimum(m, o), torch.minimum),
    "clamp": (lambda aten, m, o: aten.clamp(m, 3, 100), lambda m, o: m.clamp(3, 100)),
    "where": (
        lambda aten, m, o: aten.where.self(aten.gt.Tensor(m, o), m, o),
        lambda m, o: torch.where(m > o, m, o),
    ),
    "f32": _cast(DType.F32, torch.float32),
    "f64": _cast(DType.F64, torch.float64),
    "i64": _cast(DType.I64, torch.int64),
    "m.i64 > 0": (
        lambda aten, m, o: aten.gt.Scalar(aten._to_copy(m, dtype=DType.I64), 0),
        lambda m, o: m.long() > 0,
    ),
    "m.i8 > 0": (
        lambda aten, m, o: aten.gt.Scalar(aten._to_copy(m, dtype=DType.I8), 0),
        lambda m, o: m.to(torch.int8) > 0,
    ),
    "m.bool": _cast(DType.BOOL, torch.bool),
}


def edges(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of numbers near the ends of a type, its halves and 0, in rows; a matrix of such numbers."""
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    middle = [max(low, -100), max(low, -1), 0, 1, 2, 41]
    numbers = [low, low + 1, low // 2, *middle, high // 2 + 1, high - 1, high]
    pairs = torch.cartesian_prod(*[torch.tensor(numbers, dtype=dtype)] * 2)
    x, y = (column.reshape(4, 36) for column in pairs.T)
    return x.contiguous(), y.contiguous(), x.repeat(9, 1).T.contiguous()


@pytest.mark.conformance
@pytest.mark.parametrize("made", MAKES)
@pytest.mark.parametrize("name", TYPES, ids=lambda name: name.value)
def test_questions_about_numbers_that_wrap(tvm: Any, name: DType, made: str) -> None:
    """Each question is in a kernel with what it asks about."""
    x, y, w = edges(TYPES[name])
    make, wanted = MAKES[made]
    first = {"sum": 1, "prod": 1, "sum over rows": 0}.get(made)

    def build(op: Any, x: Value, y: Value, w: Value) -> tuple[Value, ...]:
        other = x if first is None else op.aten.slice.Tensor(x, first, 0, 1, 1)
        return tuple(ask(op.aten, make(op.aten, x, y, w), other) for ask, _ in ASKS.values())

    types = tuple(f"{name.value}[{', '.join(map(str, each.shape))}]" for each in (x, y, w))
    executable = tvm.lower(Case("", build, types).function(), GraphConstants(), LowerOptions())
    number = wanted(x, y, w)
    other = x if first is None else x.narrow(first, 0, 1)
    for (question, (_, answer)), found in zip(ASKS.items(), executable.run([x, y, w], {}), strict=True):
        assert torch.equal(found, answer(number, other)), question


class _Wrapping(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        total = x.sum()
        halves = (x * 2) // 2, (x << 3) // 8, (x + y) % 7
        return (*halves, x + 1 > x, (x - y).abs(), (total + 1 > total) | (x < y))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_compiled(tvm: Any, dtype: torch.dtype) -> None:
    model = _Wrapping().eval()
    high = torch.iinfo(dtype).max
    x = torch.tensor([high, high - 1, -high - 1, 5, 0, high // 2 + 1] * 6, dtype=dtype)
    y = x.flip(0).contiguous()
    compiled = regraft.compile(model, (x, y), backends=(tvm, "ort"), cache=False)
    for found, wanted in zip(compiled(x, y), model(x, y), strict=True):
        assert torch.equal(found, wanted)
