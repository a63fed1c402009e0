"""What the tests of conditions and loops in captured graphs have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import regraft
from regraft.compiler import Captured, capture_model
from regraft.testing import assert_close

BACKENDS = ("eager", "ort")
AUTO = torch.export.Dim.AUTO

Inputs = tuple[Tensor, ...]


def compiled(model: Any, args: Inputs, backend: Any, **options: Any) -> Callable[..., Any]:
    options = {"cache": False} | options
    return regraft.compile(model, args, backends=(backend,), **options)


class Captures:
    """Captures a model for the first of several compiles, which no back end has a part in."""

    def __init__(self) -> None:
        self._found: Captured | None = None

    def __call__(self, *args: Any, **options: Any) -> Captured:
        if self._found is None:
            self._found = capture_model(*args, **options)
        return replace(self._found, module=self._found.module.clone())

    @property
    def has_state(self) -> bool:
        return self._found is not None and bool(self._found.module.main.state)

    @contextmanager
    def used(self) -> Generator[None]:
        with mock.patch("regraft.compiler.api.capture_model", self):
            yield


def check_calls(
    model: Any, args: Inputs, calls: Sequence[Inputs] = (), backends: Sequence[Any] = BACKENDS, **options: Any
) -> None:
    """Compile ``model`` on ``args`` and compare with eager there and at each of ``calls``.

    Results, arguments and buffers after each call are eager's, and the compile itself leaves no trace. A
    model that writes to nothing of its own is captured once for all ``backends``.
    """
    own, captures = copy.deepcopy(model), Captures()
    for backend in backends:
        if captures.has_state:
            own, captures = copy.deepcopy(model), Captures()
        eager, precise = copy.deepcopy(model), copy.deepcopy(model)
        if isinstance(precise, nn.Module):
            precise.double()
        with captures.used():
            made = compiled(own, copied(args), backend, **options)
        for given in (args, *calls):
            compare(made, eager, precise, given)
            if isinstance(own, nn.Module):
                assert_close(tensors(own.state_dict()), doubled(tensors(precise.state_dict())))


def compare(made: Callable[..., Any], model: Any, precise: Any, given: Inputs) -> None:
    """One call of the compiled model beside eager, ``precise`` being the model in fp64."""
    ours, eagers, wide = copied(given), copied(given), doubled(given)
    actual = made(*ours)
    with torch.no_grad():
        eager, expected = model(*eagers), precise(*wide)
    assert pytree.tree_structure(actual) == pytree.tree_structure(eager)
    assert [t.shape for t in tensors(actual)] == [t.shape for t in tensors(eager)]
    assert_close(tensors(actual), doubled(tensors(expected)), tensors(eager), reassociates=True)
    assert_close(list(ours), list(wide), list(eagers), reassociates=True)


def copied(args: Inputs) -> Inputs:
    return tuple(arg.clone() for arg in args)


def doubled(args: Sequence[Tensor]) -> Inputs:
    return tuple(arg.double() if arg.is_floating_point() else arg.clone() for arg in args)


def tensors(value: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def rows(count: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + shift
