"""Every op that has a kernel, against eager torch in fp64; every op that has none says why."""

from __future__ import annotations

from typing import Any

import pytest

from regraft.backends.tvm import LOWERINGS, TvmBackend
from regraft.conformance import BUILT_IN, Case, check_backend, check_case
from regraft.ir import OPS, Function, Op
from tests.backends.sample_cases import sample_cases

#: Why samples of ops that have kernels may be refused.
REASONS = (
    "no kernels for bf16 tensors",
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
    """The table names ops that exist, and each runs on some sample."""
    assert set(TvmBackend.lowerings) <= set(OPS)
    run = {name for name, case in CASES if tvm.supports(op_of(case.function())) is None}
    assert set(TvmBackend.lowerings) - run == {"rg.dim_value"}


def test_built_in_cases(tvm: Any) -> None:
    assert check_backend(tvm, BUILT_IN) == {
        "add bf16": "no kernels for bf16 tensors",
        "branch": "conditions and loops have no kernels",
    }


def test_reasons_say_what_is_missing(tvm: Any) -> None:
    def reason(build: Any, *types: str) -> str | None:
        return tvm.supports(op_of(Case("", build, types).function()))

    assert reason(lambda op, x: op.aten.topk(x, 1), "f32[4]") == "there is no lowering to a kernel"
    assert reason(lambda op, x: op.aten.remainder.Tensor(x, x), "i64[4]") == (
        "integers are divided by a number that may be zero"
    )
    assert reason(lambda op, x: op.aten.remainder.Scalar(x, 3), "i64[4]") is None
    assert LOWERINGS.keys().isdisjoint({"cf.cond", "rg.const"})
