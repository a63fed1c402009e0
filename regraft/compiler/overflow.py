"""Constants that overflow or vanish once rewrites have merged them, though the model's own order may not.

Two layers in a row whose matrices overflow when they are multiplied, or of which too little is left in f16, a
divisor with 0 in it beside a layer: as written the result is finite, or infinite in one place, and merged it
is nan in many, or 0. Rewrites do not look at values, so that a graph holds for any weights. What they made of
constants is looked at when it is chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from regraft.compiler.materialise import Store
from regraft.ir import Leaf, Module, Op, Recipe, Region
from regraft.rewrites import FAMILIES

#: Families whose rewrites compute weights from weights. Masks of attention are infinite on purpose.
_MERGING = ("norm", "convolution", "linear", "ffn")

#: Of weights that are spread normally the largest is about so many times as large as most. Where the largest
#: is less than so many times the smallest normal number, most have fewer digits than their dtype has; from
#: there on what they lack is no more, relative to the largest, than any rounding.
_SPREAD = 4


def harmful(module: Module, store: Store) -> frozenset[str]:
    """The rewrites that made constants of ``module`` that are not finite, or have lost their digits.

    ``store`` evaluates the constants, which it would have to for a back end as well.
    """
    merging = {rewrite.name for family in _MERGING for rewrite in FAMILIES[family]}
    found: set[str] = set()
    seen: set[Recipe] = set()
    with torch.no_grad():
        for function in module.functions.values():
            for op, recipe in _recipes(function.body):
                makers = merging & {*op.loc.made_by, *_makers(recipe.body)}
                if not makers or recipe in seen:
                    continue
                seen.add(recipe)
                if _overflows(module, recipe, store) or _vanishes(module, recipe, store):
                    found |= makers
    return frozenset(found)


def _constants(region: Region) -> Iterator[tuple[Op, object]]:
    for op in region.walk():
        if op.name == "rg.const":
            yield op, op.attr("value")


def _recipes(region: Region) -> Iterator[tuple[Op, Recipe]]:
    for op, value in _constants(region):
        if isinstance(value, Recipe):
            yield op, value


def _makers(region: Region) -> set[str]:
    """The rewrites that had a hand in the ops of a recipe, and of the recipes that it reads."""
    inner = (_makers(recipe.body) for _, recipe in _recipes(region))
    return {name for op in region.walk() for name in op.loc.made_by}.union(*inner)


def _leaves(region: Region) -> set[Leaf]:
    """The leaves that a recipe reads, and the recipes that it reads."""
    own = {value for _, value in _constants(region) if isinstance(value, Leaf)}
    return own.union(*(_leaves(recipe.body) for _, recipe in _recipes(region)))


def _overflows(module: Module, recipe: Recipe, store: Store) -> bool:
    """Whether the value of ``recipe`` is not finite, for another reason than that a weight is nan.

    A weight that is nan makes the same results nan in either order: the others must be finite without it.
    """
    if _largest(store.tensor(recipe)) < torch.inf:
        return False
    weights = {leaf: store.tensor(leaf) for leaf in _leaves(recipe.body)}
    nans = {leaf: tensor for leaf, tensor in weights.items() if _largest(tensor) != _largest(tensor)}
    without = {leaf: tensor.where(~tensor.isnan(), 1) for leaf, tensor in nans.items()}
    return not nans or not _largest(Store(module, {**weights, **without}).tensor(recipe)) < torch.inf


def _vanishes(module: Module, recipe: Recipe, store: Store) -> bool:
    """Whether the value of ``recipe`` has fewer digits than its dtype, and each weight in it has more.

    What is as small as one of the weights, or 0 since factors of it are, is so as written too. A weight that
    is 0 beside others, such as a bias, says nothing of their product: signs in place of weights, which are
    neither large nor small, tell whether it is 0.
    """
    value = store.tensor(recipe)
    largest = _largest(value)
    if (
        not value.is_floating_point()
        or not value.numel()
        or largest >= _SPREAD * torch.finfo(value.dtype).tiny
    ):
        return False
    weights = {leaf: store.tensor(leaf) for leaf in _leaves(recipe.body) if leaf.type.dtype.is_float}
    sizes = [size for size in map(_largest, weights.values()) if size > 0]
    if not sizes or not largest < min(sizes):
        return False
    signs = {leaf: tensor.sign() for leaf, tensor in weights.items()}
    return _largest(Store(module, signs).tensor(recipe)) > 0


def _largest(tensor: Tensor) -> float:
    """The largest magnitude in ``tensor``, in one pass and without a copy; nan where there is one."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    least, most = torch.aminmax(tensor.detach())
    return float(torch.maximum(-least, most))
