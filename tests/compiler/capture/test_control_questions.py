"""Questions about whole tensors that torch answers with True or False, and sizes among the results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from regraft.errors import CaptureError
from tests.compiler.capture.running import check_calls, compiled, rows

UP = rows(6, shift=1.0)
WITH_NAN = UP.clone()
WITH_NAN[2, 1] = torch.nan
SHIFTS = [(rows(6, seed=i, shift=shift),) for i, shift in enumerate((-2.0, -0.2, 0.1, 2.0))]
CALLS = [*SHIFTS, (UP * 0,), (UP.abs(),), (-UP.abs(),), (WITH_NAN,), (UP * 1e-3,)]


def converges(x: Tensor) -> Tensor:
    for _ in range(6):
        after = x * 0.5
        if torch.allclose(after, x, atol=0.3):
            break
        x = after
    return x


def while_apart(x: Tensor) -> Any:
    before, steps = x + 1, 0
    while not x.allclose(before, rtol=0.0, atol=0.05) and steps < 20:
        before, x, steps = x, torch.tanh(x), steps + 1
    return x * steps


def nan_as_equal(x: Tensor) -> Tensor:
    if torch.allclose(x, x.clone(), equal_nan=True) and torch.allclose(x, x.clone()):
        return x + 1
    return x - 1


def one_row_beside_all(x: Tensor) -> Tensor:
    return x * 2 if torch.allclose(x, x[0]) else x * 3


def equal_parts(x: Tensor) -> Tensor:
    if torch.equal(x, x.abs()):
        return x + 1
    return x - 1 if (-x).equal(x.abs()) else x


def of_other_sizes(x: Tensor) -> Tensor:
    if torch.equal(x, x[:2]) or torch.equal(x, x[0]):
        x = x * 100
    return x + 1 if x.sum() > 0 else x


def kept_as_a_flag(x: Tensor) -> Tensor:
    is_same = torch.equal(x > 0, x > -0.1)
    flags = [is_same, torch.is_nonzero(x[0, 0] > 0)]
    return x * 2 if all(flags) else x * (1 + is_same)


def not_zero(x: Tensor) -> Tensor:
    if torch.is_nonzero(x[:1, 0]) and not x.sum().is_nonzero():
        return x + 1
    return x if (x > 1).any().is_nonzero() else x - 1


MODELS = (
    converges,
    while_apart,
    nan_as_equal,
    one_row_beside_all,
    equal_parts,
    of_other_sizes,
    kept_as_a_flag,
    not_zero,
)


@pytest.mark.parametrize("model", MODELS)
def test_values(model: Any) -> None:
    check_calls(model, (UP,), CALLS)


def test_other_types_and_sizes_are_refused() -> None:
    def types(x: Tensor) -> Tensor:
        return x + 1 if torch.equal(x, x.int()) else x

    def sizes(x: Tensor, y: Tensor) -> Tensor:
        return x + 1 if torch.equal(x, y) else x

    with pytest.raises(CaptureError, match=r"torch\.equal of torch\.float32 and torch\.int32"):
        compiled(types, (UP,), "ort")
    auto = torch.export.Dim.AUTO
    with pytest.raises(CaptureError, match="whose sizes are not known to be the same"):
        compiled(sizes, (UP, rows(5)), "ort", dynamic_shapes={"x": {0: auto}, "y": {0: auto}})


def test_more_than_one_element_is_an_error() -> None:
    def many(x: Tensor) -> Tensor:
        return x + 1 if torch.is_nonzero(x) else x

    with pytest.raises(CaptureError):
        compiled(many, (UP,), "ort")


# -- sizes as results --------------------------------------------------------------------------


def picked(x: Tensor) -> Any:
    part = x[x > 0]
    return {"sum": part.sum(), "count": part.numel(), "rows": part.shape[0] + 1, "many": part.shape[0] > 9}


def collected(x: Tensor) -> Any:
    sums = []
    for _ in range(5):
        x = x * 0.7
        sums.append(x.sum())
        if x.sum() < 1:
            break
    return torch.stack(sums), len(sums)


def shapes(x: Tensor) -> Any:
    return x.shape[0] * 2, x + 1, x.shape[1]


@pytest.mark.parametrize("model", [picked, collected, shapes])
def test_sizes_are_returned(model: Any) -> None:
    """As tensors where only a call knows them."""
    options = {"dynamic_shapes": {"x": {0: torch.export.Dim.AUTO}}} if model is shapes else {}
    made = compiled(model, (UP,), "ort", **options)
    calls = [x for (x,) in SHIFTS] + ([rows(9), rows(2)] if options else [])
    for x in calls:
        found, wanted = (pytree.tree_leaves(each(x)) for each in (made, model))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))
