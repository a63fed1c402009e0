"""Constants that are not finite once rewrites have merged them, though the model's own order may be.

Two layers in a row whose matrices overflow when they are multiplied, a divisor with 0 in it beside a layer:
as written the result is finite, or infinite in one place, and merged it is nan in many. Rewrites do not look
at values, so that a graph holds for any weights. What they made of constants is looked at when it is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from regraft.compiler.materialise import Store
from regraft.ir import Module, Op, Recipe, Region
from regraft.rewrites import FAMILIES

#: Families whose rewrites compute weights from weights. Masks of attention are infinite on purpose.
_MERGING = ("norm", "convolution", "linear", "ffn")


def overflowing(module: Module, store: Store) -> frozenset[str]:
    """The rewrites that made constants of ``module`` that are not finite.

    ``store`` evaluates the constants, which it would have to for a back end as well.
    """
    merging = {rewrite.name for family in _MERGING for rewrite in FAMILIES[family]}
    found: set[str] = set()
    seen: set[Recipe] = set()
    for function in module.functions.values():
        for op, recipe in _recipes(function.body):
            makers = merging & {*op.loc.made_by, *_makers(recipe.body)}
            if not makers or recipe in seen:
                continue
            seen.add(recipe)
            if not _is_finite(store.tensor(recipe)):
                found |= makers
    return frozenset(found)


def _recipes(region: Region) -> Iterator[tuple[Op, Recipe]]:
    for op in region.walk():
        if op.name == "rg.const" and isinstance(op.attr("value"), Recipe):
            yield op, op.attr("value")


def _makers(region: Region) -> set[str]:
    """The rewrites that had a hand in the ops of a recipe, and of the recipes that it reads."""
    inner = (_makers(recipe.body) for _, recipe in _recipes(region))
    return {name for op in region.walk() for name in op.loc.made_by}.union(*inner)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all of ``tensor`` is, in one pass and without a copy."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    least, most = torch.aminmax(tensor.detach())
    return bool(least.isfinite()) and bool(most.isfinite())
