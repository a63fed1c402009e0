"""Buffers that are assigned to while something else holds the tensor that they were.

Eager leaves that tensor as it is; a compiled model writes the new values to it, so nobody else may read it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError
from tests.e2e.mutating import check

X = torch.tensor([[1.0, -0.5], [0.25, 2.0]])


class Part(nn.Module):
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.ones(2))


class Assigning(nn.Module):
    """Assigns to the buffer ``path`` and reads what else holds tensors, in an arm where ``decides``."""

    cache: Tensor

    def __init__(self, path: str, *, decides: bool = False, reads: bool = True) -> None:
        super().__init__()
        self.register_buffer("cache", torch.ones(2))
        self.inner, self.other = Part(), Part()
        self.alias = torch.ones(2)
        self.kept = [torch.ones(2)]
        self.is_nested, self.decides, self.reads = "." in path, decides, reads

    def forward(self, x: Tensor) -> Tensor:
        owner: Any = self.inner if self.is_nested else self
        if self.decides:
            if x.sum() > 0:
                owner.cache = owner.cache + x.mean(0)
        else:
            owner.cache = owner.cache + x.mean(0)
        if not self.reads:
            return x * owner.cache
        return self.alias.sum() * 2 + self.kept[0].sum() + self.other.cache.sum()


def alias(model: Any, tensor: Tensor) -> None:
    model.alias = tensor


def view(model: Any, tensor: Tensor) -> None:
    model.alias = tensor[1:]


def listed(model: Any, tensor: Tensor) -> None:
    model.kept = [tensor]


def buffer(model: Any, tensor: Tensor) -> None:
    model.other.cache = tensor


def parameter(model: Any, tensor: Tensor) -> None:
    del model.other.cache
    model.other.cache = nn.Parameter(tensor, requires_grad=False)


HOLDERS = [
    (alias, "'alias'"),
    (view, "'alias'"),
    (listed, "container"),
    (buffer, "'other.cache'"),
    (parameter, "'other.cache'"),
]


@pytest.mark.parametrize(("hold", "held"), HOLDERS)
@pytest.mark.parametrize(
    ("path", "decides"), [("cache", False), ("inner.cache", False), ("inner.cache", True)]
)
def test_the_earlier_tensor_is_read_by_another_way(
    path: str, decides: bool, hold: Callable[[Any, Tensor], None], held: str
) -> None:
    model = Assigning(path, decides=decides).eval()
    hold(model, model.get_buffer(path))
    with pytest.raises(CaptureError, match=f"assigns to its buffer '{path}'.*{held}"):
        regraft.compile(model, (X,), cache=False)


@pytest.mark.parametrize("path", ["cache", "inner.cache"])
def test_another_buffer_is_that_tensor_and_nobody_reads_it(path: str) -> None:
    """It would have the new values too, and another state after the call than eager's."""
    model: Any = Assigning(path, reads=False).eval()
    buffer(model, model.get_buffer(path))
    with pytest.raises(CaptureError, match=f"assigns to its buffer '{path}'.* 'other.cache'"):
        regraft.compile(model, (X,), cache=False)


@pytest.mark.parametrize("path", ["cache", "inner.cache"])
def test_what_holds_another_buffer_is_free(path: str) -> None:
    model: Any = Assigning(path).eval()
    model.alias = model.other.cache
    check(model, X)


@pytest.mark.parametrize("path", ["cache", "inner.cache"])
def test_an_attribute_that_nobody_reads_is_free(path: str) -> None:
    model: Any = Assigning(path, reads=False).eval()
    alias(model, model.get_buffer(path))
    check(model, X)
