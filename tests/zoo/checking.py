"""What every module of the zoo is put through."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import regraft
from regraft.testing import assert_close, randomise

Arguments = tuple[Any, ...]


def check(
    model: nn.Module,
    *examples: Arguments,
    rewrites: Mapping[str, int] | None = None,
    dynamic_shapes: Any = None,
    seed: int = 0,
) -> Any:
    """Compile ``model`` for the first of ``examples`` and compare it with eager on all of them.

    ``rewrites`` are those that must fire, with their hits. Returns the compiled model.
    """
    model = randomise(model.eval(), seed)
    compiled = regraft.compile(model, examples[0], dynamic_shapes=dynamic_shapes)
    report = compiled.report.to_dict()
    assert list(report["executors"]) == ["ort"]
    hits = {name: entry["hits"] for name, entry in report["rewrites"].items()}
    assert {name: hits.get(name, 0) for name in rewrites or {}} == dict(rewrites or {})
    for arguments in examples:
        compare(model, compiled, arguments)
    return compiled


def compare(model: nn.Module, compiled: Any, arguments: Arguments) -> None:
    """The numerics rule, and the same structure of results as eager's."""
    before = copy.deepcopy(arguments)
    actual = compiled(*arguments)
    with torch.no_grad():
        eager = model(*arguments)
        expected = copy.deepcopy(model).double()(*pytree.tree_map(_double, arguments))
    assert pytree.tree_structure(actual) == pytree.tree_structure(eager)
    assert_close(actual, expected, eager, reassociates=True)
    for mine, theirs in zip(pytree.tree_leaves(arguments), pytree.tree_leaves(before), strict=True):
        assert not isinstance(mine, Tensor) or torch.equal(mine, theirs), "an argument was written to"


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def at_sizes(shape: Sequence[int | str], sizes: Sequence[Mapping[str, int]]) -> list[Arguments]:
    """One tensor argument for each of ``sizes``, ``shape`` holding numbers and names of sizes."""
    return [(normal(*(s if isinstance(s, int) else each[s] for s in shape)),) for each in sizes]
