"""What the tests of models that write have in common."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import regraft
from regraft.testing import assert_close


def rows(count: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def same(actual: Any, expected: Any) -> None:
    """By the numerics rule, eager's own values being the reference."""
    assert_close(
        actual, pytree.tree_map(lambda v: v.double() if v.is_floating_point() else v, tensors(expected))
    )


def tensors(value: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def check(model: Any, *args: Tensor, **options: Any) -> Any:
    """Compile ``model`` and call it three times beside eager: results, arguments and state are equal.

    Arguments go on from call to call, as caches do. The compile itself leaves no trace.
    """
    reference = copy.deepcopy(model)
    given = [arg.clone() for arg in args]
    compiled = regraft.compile(model, args, **options)
    assert_equal_state(model, reference)
    assert all(torch.equal(a, b) for a, b in zip(args, given, strict=True))
    own = [arg.clone() for arg in args]
    for _ in range(3):
        with torch.no_grad():
            expected = reference(*own)
        results = compiled(*given)
        same(results, expected)
        same(given, own)
        assert_equal_state(model, reference)
    return compiled


def assert_equal_state(model: Any, reference: Any) -> None:
    if isinstance(model, nn.Module):
        same(dict(model.named_buffers()), dict(reference.named_buffers()))
        same(dict(model.named_parameters()), dict(reference.named_parameters()))
