"""Products of open sizes: where it is known that they fit, their types are said at once."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._decomp import decompositions

import regraft
from regraft.errors import CaptureError
from tests.compiler.capture.running import AUTO, check_calls

CONSTANT = torch.arange(12.0).reshape(4, 3) / 7


def batches(x: Tensor, y: Tensor) -> Any:
    return x @ y, (y.mT @ x.mT).sum(-1), x[:, None] @ y[:1, None], x[None] @ y


def matrices(x: Tensor, y: Tensor) -> Any:
    constant = CONSTANT.to(x)
    return x @ y[0], y[0].mT @ x[0].mT, x @ constant, constant.mT @ x.mT, y.mT @ x[0].mT


def vectors(x: Tensor, y: Tensor) -> Any:
    constant = CONSTANT.to(x)
    return x @ constant[:, 0], x[0, 0] @ y, constant[:, 1] @ constant, x[0] @ y[0, :, 0]


def of_constants(x: Tensor, y: Tensor) -> Any:
    return x * (CONSTANT.mT @ CONSTANT).sum() + (CONSTANT[None].mT @ CONSTANT[None]).sum(), y


def laid_out(x: Tensor, y: Tensor) -> Any:
    """What a product is laid out as decides whether it can be viewed as another shape."""
    found = x.transpose(0, 1) @ y[0]
    return found.view(-1), (x @ y).view(x.shape[0], -1), (y.mT @ x.mT).flatten(1)


@pytest.mark.parametrize(
    "model", [batches, matrices, vectors, of_constants, laid_out], ids=lambda f: f.__name__
)
def test_products_of_open_sizes(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    args, *calls = (
        (torch.randn(b, n, 4, generator=generator), torch.randn(b, 4, m, generator=generator))
        for b, n, m in ((2, 5, 3), (3, 7, 3), (1, 2, 3), (4, 1, 3))
    )
    shapes = {"x": {0: AUTO, 1: AUTO}, "y": {0: AUTO}}
    check_calls(model, args, calls, ("ort",), dynamic_shapes=shapes)


def test_those_that_do_not_fit_are_refused() -> None:
    x, y = torch.randn(2, 5, 4), torch.randn(2, 3, 6)
    with pytest.raises(CaptureError, match=r"@|size|shape"):
        regraft.capture(lambda x, y: x @ y, (x, y), dynamic_shapes={"x": {1: AUTO}, "y": None})


def by_itself(x: Tensor, y: Tensor) -> Any:
    return x @ x.mT, (x.mT @ x) @ x.mT, y


@pytest.mark.parametrize(("model", "taken_apart"), [(by_itself, 0), (batches, 1)], ids=["known", "unknown"])
def test_a_product_is_taken_apart_only_to_find_that_it_fits(model: Any, taken_apart: int) -> None:
    """That the batches of two arguments are equal, the first of their products finds."""
    x, y = torch.randn(2, 5, 4), torch.randn(2, 4, 3)
    shapes = {"x": {0: AUTO, 1: AUTO}, "y": {0: AUTO}}
    with mock.patch.object(decompositions, "should_fold", wraps=decompositions.should_fold) as should_fold:
        regraft.capture(model, (x, y), dynamic_shapes=shapes)
    assert should_fold.call_count == taken_apart
