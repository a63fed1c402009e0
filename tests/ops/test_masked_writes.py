"""Writes to the elements that a mask picks, and to diagonals, from capture to ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import regraft
from regraft.errors import RegraftError, UnsupportedOpError
from regraft.testing import assert_close

Model = Callable[[Tensor], Tensor]


def scaled(x: Tensor) -> Tensor:
    x = x.clone()
    x[x > 0] *= 2
    return x


def added(x: Tensor) -> Tensor:
    y, mask = x.clone(), x > 0
    y[mask] += x.abs()[mask] + 1
    return y


def computed_anew(x: Tensor) -> Tensor:
    x = x.clone()
    x[(x > 0) & (x < 1)] = torch.tanh(x[(x > 0) & (x < 1)] * 3) - 1
    return x


def rows(x: Tensor) -> Tensor:
    x, mask = x.clone(), x[:, 0] > 0
    x[mask] = x[mask] * torch.arange(4.0, dtype=x.dtype) + x[0]
    return x


def columns(x: Tensor) -> Tensor:
    x, mask = x.clone(), x[0] > 0
    x[:, mask] = -x[:, mask]
    return x


def of_one_column(x: Tensor) -> Tensor:
    x = x.clone()
    x[x[:, 0] > 0, 1] += 1
    return x


def filled(x: Tensor) -> Tensor:
    x, mask = x.clone(), x > 0
    x[mask] = torch.ones_like(x[mask]) * 2
    return x


def a_number(x: Tensor) -> Tensor:
    x = x.clone()
    x[x > 0] = 3
    x[x[:, 1] < 0] = torch.arange(4.0, dtype=x.dtype)
    return x


def of_all_picked(x: Tensor) -> Tensor:
    x, mask = x.clone(), x > 0
    x[mask] = torch.softmax(x[mask], 0)
    return x


def in_order(x: Tensor) -> Tensor:
    x, mask = x.clone(), x > 0
    x[mask] = torch.cumsum(x[mask], 0).flip(0)
    return x


def of_another_mask(x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0] = x[-x < 0] * 2
    return y


def rows_in_order(x: Tensor) -> Tensor:
    x, mask = x.clone(), x[:, 0] > 0
    x[mask] = x[mask].cumsum(0)
    return x


def reused(x: Tensor) -> Tensor:
    y, mask = x.clone(), x > 0
    picked = x[mask] * 2
    y[mask] = picked
    return y + picked.sum()


ONE_BY_ONE: list[Model] = [scaled, added, computed_anew, rows, columns, of_one_column, filled, a_number]
TOGETHER: list[Model] = [of_all_picked, in_order, of_another_mask, rows_in_order, reused]


def inputs(count: int, seed: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def check(compiled: Any, model: Model, *counts: int) -> None:
    for seed in range(3):
        for count in counts:
            for x in (inputs(count, seed), inputs(count, seed).abs(), -inputs(count, seed).abs()):
                assert_close(compiled(x), model(x.double()), model(x))


@pytest.mark.parametrize("model", [*ONE_BY_ONE, *TOGETHER])
@pytest.mark.parametrize("backend", ["ort", "eager"])
def test_any_number_is_written_to(model: Model, backend: str) -> None:
    shapes = ({0: Dim("rows", min=1)},)
    compiled = regraft.compile(
        model, (inputs(3, 0),), dynamic_shapes=shapes, backends=(backend,), cache=False
    )
    check(compiled, model, 1, 3, 7)


@pytest.mark.parametrize("model", ONE_BY_ONE)
def test_what_is_computed_one_by_one_is_a_selection(model: Model, tvm: Any) -> None:
    """So kernels that know nothing of sizes that values decide take it."""
    compiled = regraft.compile(model, (inputs(3, 0),), backends=(tvm,), cache=False)
    assert compiled.report.rewrites["MaskedWrite"].hits
    assert "nonzero" not in compiled.ir
    check(compiled, model, 3)


def test_for_each_sample() -> None:
    def model(x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = scaled(x)
        return x

    compiled = regraft.compile(model, (inputs(1, 0),), batch="per_sample", cache=False)
    x = inputs(9, 3)
    assert_close(compiled(x), torch.cat([model(each) for each in x.double().split(1)]))


def test_as_many_values_as_places() -> None:
    def model(x: Tensor, values: Tensor) -> Tensor:
        x = x.clone()
        x[x > 0] = values
        return x

    x, values = torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([5.0, 6.0])
    compiled = regraft.compile(model, (x, values), cache=False)
    assert compiled(x, values).tolist() == [[5.0, -1.0, 6.0]]
    with pytest.raises(RegraftError, match="2 values are written to the places that a mask picks"):
        compiled(-x, values)
    one = regraft.compile(model, (x, values[:1]), cache=False)
    assert one(x, values[:1]).tolist() == [[5.0, -1.0, 5.0]]


def test_a_mask_among_other_indices_is_refused_with_the_reason() -> None:
    def model(x: Tensor, index: Tensor) -> Tensor:
        x = x.clone()
        x[x[:, 0] > 0, index] = 1
        return x

    with pytest.raises(UnsupportedOpError, match="a mask among other indices") as caught:
        regraft.compile(model, (torch.ones(2, 4), torch.tensor([1, 2])), cache=False)
    assert "test_masked_writes.py" in str(caught.value)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (9, 3), (4, 4), (3, 3, 3), (2, 2, 2, 2)])
def test_diagonals_are_filled(shape: tuple[int, ...], wrap: bool) -> None:
    def model(x: Tensor) -> Tensor:
        y = x * 2
        y.fill_diagonal_(7.0, wrap)
        return y

    x = torch.randn(shape)
    compiled = regraft.compile(model, (x,), cache=False)
    assert set(compiled.report.to_dict()["executors"]) == {"ort"}
    assert_close(compiled(x), model(x.double()))


def test_diagonals_of_any_size_and_of_arguments() -> None:
    def model(x: Tensor) -> Tensor:
        x.fill_diagonal_(0)
        return x + 1

    compiled = regraft.compile(
        model, (torch.randn(3, 4),), dynamic_shapes=({0: Dim("rows", min=1)},), cache=False
    )
    for count in (1, 3, 6):
        ours, theirs = torch.ones(count, 4), torch.ones(count, 4)
        assert torch.equal(compiled(ours), model(theirs))
        assert torch.equal(ours, theirs)
