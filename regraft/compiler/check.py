"""Comparing a compiled model with the original: the numerics rule on the example arguments."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.utils import _pytree as pytree

from regraft.compiler.capture import Captured
from regraft.runtime import CompiledModel
from regraft.testing import assert_close


def error_against_eager(
    model: Any, compiled: CompiledModel, captured: Captured, *, reassociates: bool
) -> float:
    """The error of ``compiled`` against ``model`` in fp64, on the arguments of the capture.

    A module is copied to fp64, which takes memory for two more sets of weights. A plain function may
    hold weights out of reach: its reference is eager as it is.

    Raises:
        NumericsMismatch: the error is beyond what the numerics rule allows.
    """
    actual = _tensors(compiled(*captured.args, **captured.kwargs))
    runner = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    with torch.no_grad():
        eager = _tensors(runner(*captured.args, **captured.kwargs))
        if isinstance(runner, torch.nn.Module):
            args, kwargs = pytree.tree_map(_to_double, (captured.args, captured.kwargs))
            expected = _tensors(copy.deepcopy(runner).double()(*args, **kwargs))
        else:
            expected = [_to_double(leaf) for leaf in eager]
    return assert_close(actual, expected, eager=eager, reassociates=reassociates)


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _to_double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf
