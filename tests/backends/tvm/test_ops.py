"""Every op that has a kernel, against eager torch in fp64; every op that has none says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regraft.backends import LowerOptions
from regraft.backends.tvm import LOWERINGS, TvmBackend
from regraft.conformance import BUILT_IN, Case, check_backend, check_case
from regraft.ir import OPS, DType, Function, Op, Value
from regraft.testing import GraphConstants, assert_close
from tests.backends.sample_cases import sample_cases

#: Why samples of ops that have kernels may be refused.
REASONS = (
    "no kernels for f16 tensors",
    "integers are divided by a number that may be zero",
    "an extremum of bools",
    "floats are divided by a number and rounded down",
    "an integer is raised to ",
    "a power of i64 tensors",
)

CASES = [(sample.name, case) for sample, case in sample_cases() if sample.name in TvmBackend.lowerings]


def op_of(function: Function) -> Op:
    return next(op for op in function.body.ops if op.name not in ("rg.const", "cf.yield"))


@pytest.mark.conformance
@pytest.mark.parametrize("case", [case for _, case in CASES], ids=lambda case: case.name)
def test_sample(tvm: Any, case: Case) -> None:
    reason = check_case(tvm, case)
    assert reason is None or reason.startswith(REASONS)


def test_every_lowering_has_samples(tvm: Any) -> None:
    """The table names ops that exist, and each runs on some sample; scans and conditions have own tests."""
    assert set(TvmBackend.lowerings) <= set(OPS)
    run = {name for name, case in CASES if tvm.supports(op_of(case.function())) is None}
    assert set(TvmBackend.lowerings) - run == {"rg.dim_value", "cf.scan", "cf.cond"}


def test_built_in_cases(tvm: Any) -> None:
    assert check_backend(tvm, BUILT_IN) == {}


def test_reasons_say_what_is_missing(tvm: Any) -> None:
    def reason(build: Any, *types: str) -> str | None:
        return tvm.supports(op_of(Case("", build, types).function()))

    assert reason(lambda op, x: op.aten.topk(x, 1), "f32[4]") == "there is no lowering to a kernel"
    assert reason(lambda op, x: op.aten.remainder.Tensor(x, x), "i64[4]") == (
        "integers are divided by a number that may be zero"
    )
    assert reason(lambda op, x: op.aten.remainder.Scalar(x, 3), "i64[4]") is None
    assert LOWERINGS.keys().isdisjoint({"cf.while", "rg.const"})


def run(tvm: Any, build: Any, x: torch.Tensor, type: str) -> list[torch.Tensor]:
    executable = tvm.lower(Case("", build, (type,)).function(), GraphConstants(), LowerOptions())
    return executable.run([x], {})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_integers_wrap_around(tvm: Any, dtype: torch.dtype) -> None:
    def build(op: Any, x: Value) -> tuple[Value, Value]:
        return op.aten.add.Scalar(x, -1), op.aten.mul.Scalar(x, 200)

    info = torch.iinfo(dtype)
    x = torch.tensor([info.min, 0, 1, 2, 100, info.max], dtype=dtype)
    less, more = run(tvm, build, x, "u8[6]" if dtype == torch.uint8 else "i8[6]")
    wide = x.long()
    assert torch.equal(less, (wide - 1).to(dtype))
    assert torch.equal(more, (wide * 200).to(dtype))


@pytest.mark.parametrize(
    ("build", "type", "reason"),
    [
        (lambda op, x: op.aten.lt.Scalar(x, 300), "u8[4]", "u8 is compared with 300"),
        (lambda op, x: op.aten.ge.Scalar(x, -1), "u8[4]", "u8 is compared with -1"),
        (lambda op, x: op.aten.eq.Scalar(x, 128), "i8[4]", "i8 is compared with 128"),
        (lambda op, x: op.aten.remainder.Scalar(x, 256), "u8[4]", "u8 is divided by 256, which is none"),
        (lambda op, x: op.aten.clamp(x, -1, 9), "u8[4]", "u8 is clamped at -1"),
        (lambda op, x: op.aten.clamp(x, -1, 9), "i8[4]", None),
        (lambda op, x: op.aten.eq.Scalar(x, -128), "i8[4]", None),
    ],
)
def test_numbers_that_a_type_has_not(tvm: Any, build: Any, type: str, reason: str | None) -> None:
    assert tvm.supports(op_of(Case("", build, (type,)).function())) == reason


def test_functions_of_functions_do_not_grow(tvm: Any) -> None:
    """What is computed once is not written out where it is used, and used there several times."""

    def build(op: Any, x: Value) -> Value:
        for name in ("exp", "log1p", "tanh", "exp", "sigmoid", "erf", "silu", "exp"):
            x = op.call(f"aten.{name}", (x,), {})
        return op.aten.gelu(x)

    x = torch.linspace(-2, 2, 37)
    (found,) = run(tvm, build, x, "f32[37]")
    inner = x.double().exp().log1p().tanh().exp().sigmoid().erf()
    assert_close([found], [nn.functional.gelu(nn.functional.silu(inner).exp())])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logarithms_near_one_keep_their_digits(tvm: Any, dtype: torch.dtype) -> None:
    """However small they are; and where there is none."""

    def build(op: Any, x: Value) -> tuple[Value, Value]:
        return op.aten.log1p(x), op.aten.softplus(x)

    name = "f32" if dtype == torch.float32 else "f64"
    small = torch.logspace(-30, 0, 61, dtype=torch.float64)
    x = torch.cat([-0.999 * small, small, torch.linspace(-85.5, 40, 126)]).to(dtype)
    logarithm, softplus = run(tvm, build, x, f"{name}[{len(x)}]")
    inside = x > -1
    ratios = (
        logarithm[inside] / x[inside].double().log1p(),
        softplus / nn.functional.softplus(x.double()),
    )
    assert_close([each.to(dtype) for each in ratios], [torch.ones_like(each) for each in ratios])
    odd = torch.tensor([-1.0, -1.5, torch.inf, -torch.inf, torch.nan] * 7, dtype=dtype)
    found, _ = run(tvm, build, odd, f"{name}[35]")
    torch.testing.assert_close(found, odd.log1p(), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "type"), [(torch.float32, "f32[40]"), (torch.float64, "f64[40]")])
def test_remainders_are_exact(tvm: Any, dtype: torch.dtype, type: str) -> None:
    """Quotients far beyond what a float has digits for."""
    x = torch.logspace(0, 30, 40, dtype=torch.float64).to(dtype)
    x = torch.where(torch.arange(40) % 2 == 0, x, -x)
    (found,) = run(tvm, lambda op, x: op.aten.remainder.Scalar(x, 0.7), x, type)
    assert torch.equal(found, x.remainder(0.7))


def test_bf16_is_rounded_as_by_torch(tvm: Any) -> None:
    """Halves, numbers beyond the largest one, and nan of any bits."""
    bits = torch.tensor(
        [0x7FFFFFFF, 0x7F800001, -1, 0x7F7FFFFF, 0x3F808000, 0x3F818000, 0x3F808001, 1, 0x18000]
    )
    x = torch.cat([bits.int().view(torch.float32), torch.randn(40) * 1e3, torch.tensor([float("inf"), -0.0])])

    def build(op: Any, x: Value) -> tuple[Value, Value]:
        half = op.aten._to_copy(x, dtype=DType.BF16)
        return half, op.aten._to_copy(op.aten.mul.Scalar(half, 1.0), dtype=DType.F32)

    stored, within = run(tvm, build, x, "f32[51]")
    expected = x.bfloat16()
    assert torch.equal(stored.isnan(), expected.isnan())
    assert torch.equal(stored.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(within.nan_to_num(7.0), expected.float().nan_to_num(7.0))


@pytest.mark.parametrize("name", ["round", "floor", "trunc", "exp2", "sin", "expm1", "erf", "sigmoid"])
def test_each_lane_has_a_value_of_its_own(tvm: Any, name: str) -> None:
    """What is used twice is bound, and lanes must not share it."""

    def build(op: Any, x: Value) -> Value:
        y = op.call(f"aten.{name}", (x,), {})
        return op.aten.add.Tensor(op.aten.mul.Tensor(y, x), y)

    x = torch.linspace(-3, 3, 35)
    (found,) = run(tvm, build, x, "f32[35]")
    y = getattr(torch, name)(x.double())
    assert_close([found], [y * x + y])


def test_what_is_padded_is_not_shared_by_lanes(tvm: Any) -> None:
    def build(op: Any, x: Value) -> tuple[Value, Value]:
        padded = op.aten.constant_pad_nd(x, (1, 3), 1.5)
        return op.aten.gelu(padded), op.aten._to_copy(op.aten.constant_pad_nd(x, (2, -2)), dtype=DType.BF16)

    x = torch.randn(5, 40)
    activated, half = run(tvm, build, x, "f32[5, 40]")
    padded = torch.nn.functional.pad(x.double(), (1, 3), value=1.5)
    assert_close([activated], [torch.nn.functional.gelu(padded)])
    assert torch.equal(half, torch.nn.functional.pad(x, (2, -2)).bfloat16())


@pytest.mark.parametrize(("dtype", "type"), [(torch.float32, "f32[36]"), (torch.float64, "f64[36]")])
def test_nan_is_no_number_s_equal(tvm: Any, dtype: torch.dtype, type: str) -> None:
    def build(op: Any, x: Value) -> tuple[Value, ...]:
        zero = op.aten.full((), 0.0, dtype=x.tensor.dtype)
        return (
            op.aten.ne.Tensor(x, x),
            op.aten.ne.Scalar(x, 1.0),
            op.aten.ne.Scalar(x, float("-inf")),
            op.aten.isnan(x),
            op.aten.maximum(zero, x),
            op.aten._to_copy(x, dtype=DType.BOOL),
        )

    x = torch.tensor([float("nan"), 1.0, 0.0, float("-inf")] * 9, dtype=dtype)
    different, not_one, not_least, is_nan, most, truth = run(tvm, build, x, type)
    assert torch.equal(different, x.isnan())
    assert torch.equal(not_one, x != 1)
    assert torch.equal(not_least, x != float("-inf"))
    assert torch.equal(is_nan, x.isnan())
    assert torch.equal(most.isnan(), x.isnan())
    assert torch.equal(truth, x.bool())


@pytest.mark.parametrize(("dtype", "type"), [(torch.float32, "f32[35]"), (torch.float64, "f64[35]")])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zeros_that_are_known(tvm: Any, dtype: torch.dtype, type: str, zero: float) -> None:
    """TVM refuses ``x / 0``, and makes 0 of ``x * 0`` and ``0 / x``, which are nan for some ``x``."""

    def build(op: Any, x: Value) -> tuple[Value, ...]:
        none = op.aten.full((), zero, dtype=x.tensor.dtype)
        product = op.aten.mul.Scalar(x, zero)
        return (
            op.aten.div.Scalar(x, zero),
            op.aten.div.Tensor(x, none),
            op.aten.div.Tensor(none, x),
            product,
            op.aten.mul.Tensor(none, x),
            op.aten.div.Tensor(x, product),
        )

    x = torch.tensor([float("nan"), float("inf"), 0.0, -1.5, 2.0] * 7, dtype=dtype)
    expected = (x / zero, x / zero, zero / x, x * zero, x * zero, x / (x * zero))
    for found, wanted in zip(run(tvm, build, x, type), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def test_the_variance_of_one_number_is_no_number(tvm: Any) -> None:
    (found,) = run(tvm, lambda op, x: op.aten.var.correction(x, (1,)), torch.randn(3, 1), "f32[3, 1]")
    assert found.isnan().all()
