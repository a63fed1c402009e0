"""Values that TVM's simplifier takes for others: nan, infinities, integers at the ends of their type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.backends import LowerOptions
from regraft.conformance import Case
from regraft.ir import Value
from regraft.testing import GraphConstants, assert_close

INF, NAN = float("inf"), float("nan")
FLOATS = [(torch.float32, "f32"), (torch.float64, "f64")]
INTEGERS = [(torch.int8, "i8"), (torch.int16, "i16"), (torch.int32, "i32"), (torch.int64, "i64")]


def run(tvm: Any, build: Callable[..., Any], *args: torch.Tensor, name: str) -> list[torch.Tensor]:
    function = Case("", build, tuple(f"{name}[{len(x)}]" for x in args)).function()
    return tvm.lower(function, GraphConstants(), LowerOptions()).run(list(args), {})


@pytest.mark.parametrize(("dtype", "name"), FLOATS)
def test_comparisons_of_nan(tvm: Any, dtype: torch.dtype, name: str) -> None:
    """Neither less, nor equal, nor more: also where questions are negated, joined and nested."""

    def build(op: Any, a: Value, b: Value) -> tuple[Value, ...]:
        aten = op.aten
        less, more = aten.lt.Tensor(a, b), aten.gt.Tensor(a, b)
        most, least = aten.le.Tensor(a, b), aten.ge.Tensor(a, b)
        one, two, three = (aten.full((), float(n), dtype=a.tensor.dtype) for n in (1, 2, 3))
        return (
            *(aten.bitwise_not(each) for each in (less, more, most, least)),
            aten.bitwise_or.Tensor(most, more),
            aten.bitwise_and.Tensor(most, least),
            aten.bitwise_not(aten.bitwise_or.Tensor(less, more)),
            aten.bitwise_xor.Tensor(less, least),
            aten.eq.Tensor(a, a),
            aten.ne.Tensor(a, a),
            aten.eq.Tensor(a, b),
            aten.where.self(less, one, aten.where.self(least, two, three)),
            aten.where.self(aten.bitwise_not(aten.gt.Scalar(a, 0.0)), one, a),
        )

    a = torch.tensor([NAN, 1.0, INF, -INF, -2.0, 0.0, NAN] * 5, dtype=dtype)
    b = torch.tensor([1.0, NAN, 2.0, -INF, -3.0, 0.0, NAN] * 5, dtype=dtype)
    one, two, three = (torch.tensor(float(n), dtype=dtype) for n in (1, 2, 3))
    expected = (
        *(~each for each in (a < b, a > b, a <= b, a >= b)),
        (a <= b) | (a > b),
        (a <= b) & (a >= b),
        ~((a < b) | (a > b)),
        (a < b) ^ (a >= b),
        a == a,
        a != a,
        a == b,
        torch.where(a < b, one, torch.where(a >= b, two, three)),
        torch.where(~(a > 0), one, a),
    )
    for place, (found, wanted) in enumerate(zip(run(tvm, build, a, b, name=name), expected, strict=True)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True, msg=f"result {place}")


@pytest.mark.parametrize(("dtype", "name"), FLOATS)
def test_differences_are_rounded(tvm: Any, dtype: torch.dtype, name: str) -> None:
    """What a sum has lost stays lost, and infinity less infinity is no number."""

    def build(op: Any, a: Value, b: Value) -> tuple[Value, ...]:
        aten = op.aten
        return (
            aten.sub.Tensor(a, a),
            aten.sub.Tensor(aten.mul.Tensor(a, b), aten.mul.Tensor(a, b)),
            aten.sub.Tensor(aten.add.Tensor(a, b), b),
            aten.add.Tensor(aten.sub.Tensor(a, b), b),
            aten.add.Scalar(aten.add.Scalar(a, 1e30), -1e30),
            aten.sub.Tensor(a, b),
            aten.div.Tensor(a, a),
        )

    a = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1e-9, 3.25] * 5, dtype=dtype)
    b = torch.tensor([1.0, INF, INF, 0.0, 0.0, 1e20, -7.0] * 5, dtype=dtype)
    expected = (a - a, a * b - a * b, a + b - b, a - b + b, a + 1e30 - 1e30, a - b, a / a)
    for place, (found, wanted) in enumerate(zip(run(tvm, build, a, b, name=name), expected, strict=True)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True, msg=f"result {place}")


@pytest.mark.parametrize(("dtype", "name"), INTEGERS)
def test_quotients_near_the_ends_of_a_type(tvm: Any, dtype: torch.dtype, name: str) -> None:
    info = torch.iinfo(dtype)
    divisors = (3, -3, 64, -1, 100, -100, info.max - 27, info.min)

    def build(op: Any, x: Value) -> tuple[Value, ...]:
        quotients = [
            op.aten.div.Scalar_mode(x, each, rounding_mode=mode)
            for mode in ("floor", "trunc")
            for each in divisors
        ]
        return (*quotients, *(op.aten.remainder.Scalar(x, each) for each in divisors))

    x = torch.cat([torch.arange(-128, 128) * (1 << (info.bits - 8)), torch.arange(-9, 10)]).to(dtype)

    def quotient(divisor: int, mode: str) -> torch.Tensor:  # by -1 of the least number eager ends the process
        return -x if divisor == -1 else torch.div(x, divisor, rounding_mode=mode)

    expected = [quotient(each, mode) for mode in ("floor", "trunc") for each in divisors]
    expected += [x - quotient(each, "floor") * each for each in divisors]
    found = run(tvm, build, x, name=name)
    wrong = [i for i, (one, two) in enumerate(zip(found, expected, strict=True)) if not torch.equal(one, two)]
    assert wrong == []


def test_functions_of_f64_near_zero(tvm: Any) -> None:
    def build(op: Any, x: Value) -> tuple[Value, ...]:
        aten = op.aten
        functions = (aten.tanh(x), aten.expm1(x), aten.elu(x, 1.7, 1.1), aten.gelu(x, approximate="tanh"))
        return (*functions, aten.add.Tensor(aten.mul.Tensor(functions[0], x), functions[0]))

    x = torch.cat([torch.logspace(-30, 1, 40, dtype=torch.float64), torch.tensor([INF, 0.0, -INF])])
    x = torch.cat([x, -x])
    found = run(tvm, build, x, name="f64")
    tanh = x.tanh()
    expected = (
        tanh, x.expm1(), torch.where(x > 0, 1.1 * x, 1.7 * 1.1 * x.expm1()),
        nn.functional.gelu(x, approximate="tanh"), tanh * x + tanh,
    )  # fmt: skip
    for one, two in zip(found, expected, strict=True):
        inside = x.isfinite() & (two != 0)
        assert_close([one[inside] / two[inside]], [torch.ones(int(inside.sum()), dtype=torch.float64)])
        torch.testing.assert_close(one[~inside], two[~inside], equal_nan=True)


def test_bounds_that_are_no_number(tvm: Any) -> None:
    function = Case("", lambda op, x: op.aten.clamp(x, NAN, 1.0), ("f32[4]",)).function()
    reasons = [tvm.supports(op) for op in function.body.ops if op.name == "aten.clamp"]
    assert reasons == ["f32 is clamped at nan"]


@pytest.mark.parametrize(("dtype", "name"), FLOATS)
def test_gelu_keeps_its_digits(tvm: Any, dtype: torch.dtype, name: str) -> None:
    """However little of the distribution is below a number, as a kernel of its own and behind a product."""

    def build(op: Any, x: Value) -> tuple[Value, ...]:
        forms = [op.aten.gelu(x, approximate=each) for each in ("none", "tanh")]
        return (*forms, op.aten.gelu(op.aten.mul.Scalar(x, 0.5)))

    x = torch.cat([torch.linspace(-13, 9, 2001), torch.logspace(-38, 0, 200), -torch.logspace(-38, 0, 200)])
    x = x.to(dtype)
    wide = x.double()
    bent = torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3))
    wanted = (wide * _share(wide), wide * bent, wide / 2 * _share(wide / 2))
    for found, value in zip(run(tvm, build, x, name=name), wanted, strict=True):
        inside = value.abs() > 1e-36
        ratio = (found[inside] / value[inside]).to(dtype)
        assert_close([ratio], [torch.ones_like(ratio).double()])
    odd = torch.tensor([INF, -INF, NAN, 0.0, -0.0, -40.0, -1e30, 1e30] * 5, dtype=dtype)
    expected = torch.tensor([INF, NAN, NAN, 0.0, -0.0, -0.0, -0.0, 1e30] * 5, dtype=dtype)
    for found in run(tvm, build, odd, name=name)[:2]:
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def _share(x: torch.Tensor) -> torch.Tensor:
    """How much of a normal distribution is below ``x``."""
    return 0.5 * torch.special.erfc(x * -(0.5**0.5))


def test_gelu_behind_a_product_keeps_its_digits(tvm: Any) -> None:
    weight, bias = torch.randn(64, 32) * 0.05, torch.linspace(-12, -5, 64)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 64)
            self.linear.load_state_dict({"weight": weight, "bias": bias})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.gelu(self.linear(x))

    x = torch.randn(24, 32)
    compiled = regraft.compile(Model().eval(), (x,), backends=(tvm,), cache=False)
    inner = x.double() @ weight.double().T + bias.double()
    assert_close([(compiled(x) / (inner * _share(inner))).float()], [torch.ones(24, 64).double()])
