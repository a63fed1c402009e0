"""Functions that ONNX Runtime has in f32 only: their digits, at every size of number."""

from __future__ import annotations

import math

import pytest
import torch

from regraft.backends import LowerOptions, backend
from regraft.conformance import Case
from regraft.testing import GraphConstants, assert_close

#: Name -> the power of ten up to which numbers are tried, and some near the end of its domain.
FUNCTIONS = {"sinh": (2.8, [88.0, 710.25]), "asinh": (300, [1e308]), "atanh": (-0.01, [0.999, 1 - 2.0**-24])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_digits_are_lost(name: str, dtype: torch.dtype) -> None:
    last, ends = FUNCTIONS[name]
    size = torch.cat([torch.logspace(-300, last, 600, dtype=torch.float64), torch.tensor(ends).double()])
    size = size[(size >= torch.finfo(dtype).tiny) & (size <= (88 if dtype == torch.float32 else 1e308))]
    x = torch.cat([size, -size]).to(dtype)
    wanted = [getattr(math, name)(each) for each in x.tolist()]  # torch's sinh is infinite from 709.8 on
    ratio = (run(name, x) / torch.tensor(wanted, dtype=torch.float64)).to(dtype)
    assert_close([ratio], [torch.ones_like(ratio).double()])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_odd_values_of_f64(name: str) -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.5, -1.5, torch.inf, -torch.inf, torch.nan], dtype=torch.float64)
    torch.testing.assert_close(run(name, x), getattr(x, name)(), equal_nan=True)


def run(name: str, x: torch.Tensor) -> torch.Tensor:
    kind = "f32" if x.dtype == torch.float32 else "f64"
    case = Case("", lambda op, x: op.call(f"aten.{name}", (x,), {}), (f"{kind}[{len(x)}]",))
    executable = backend("ort").lower(case.function(), GraphConstants(), LowerOptions(threads=1))
    (found,) = executable.run([x], {})
    return found
