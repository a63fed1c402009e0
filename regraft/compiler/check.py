"""Comparing a compiled model with the original: the numerics rule on the example arguments."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from regraft.compiler.capture import Captured
from regraft.numerics import assert_close
from regraft.runtime import CompiledModel


def error_against_eager(
    model: Any, compiled: CompiledModel, captured: Captured, *, reassociates: bool
) -> float:
    """The error of ``compiled`` against ``model`` in fp64, on the arguments of the capture.

    A module is copied to fp64, which takes memory for two more sets of weights. A plain function may
    hold weights out of reach: its reference is eager as it is.

    Raises:
        NumericsMismatch: the error is beyond what the numerics rule allows.
    """
    actual = tensors_of(compiled(*captured.args, **captured.kwargs))
    eager, expected = references(model, captured.args, captured.kwargs)
    return assert_close(actual, expected, eager=eager, reassociates=reassociates)


def references(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The tensors that eager gives, and those that it gives in fp64; see ``error_against_eager``."""
    runner = runner_of(model)
    with torch.no_grad():
        eager = tensors_of(runner(*args, **kwargs))
        if not isinstance(runner, torch.nn.Module):
            return eager, [_to_double(leaf) for leaf in eager]
        wide_args, wide_kwargs = pytree.tree_map(_to_double, (tuple(args), dict(kwargs)))
        return eager, tensors_of(copy.deepcopy(runner).double()(*wide_args, **wide_kwargs))


def runner_of(model: Any) -> Any:
    """What runs ``model`` in eager torch."""
    return model.module() if isinstance(model, torch.export.ExportedProgram) else model


def tensors_of(result: Any) -> list[torch.Tensor]:
    """The tensors of a result, in order."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _to_double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf
