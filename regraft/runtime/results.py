"""From flat results to the user's value, without the detour through a general tree where it is flat."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from regraft.runtime.structures import is_output_class

Build = Callable[[Sequence[Any]], Any]


def result_builder(leaves: Sequence[int | None], values: Sequence[Any], structure: pytree.TreeSpec) -> Build:
    """How the result is put together.

    Args:
        leaves: for each leaf of ``structure``, the index of a flat result; None for a fixed value.
        values: for each leaf its fixed value, where it is one.
    """
    if structure.is_leaf() and tuple(leaves) == (0,):
        return operator.itemgetter(0)
    plain = tuple(leaves) == tuple(range(len(leaves)))

    def all_leaves(results: Sequence[Tensor]) -> list[Any]:
        return [
            value if index is None else results[index] for index, value in zip(leaves, values, strict=True)
        ]

    build = _of_leaves(structure)
    return build if plain else lambda results: build(all_leaves(results))


def _of_leaves(structure: pytree.TreeSpec) -> Build:
    """From all the leaves of ``structure`` to the value."""
    node = pytree.SUPPORTED_NODES.get(structure.type)
    if node is None or not all(child.is_leaf() for child in structure.children()):
        return lambda leaves: pytree.tree_unflatten(leaves, structure)
    construct, context = node.unflatten_fn, structure.context
    if is_output_class(structure.type):
        return _Outputs(structure.type, lambda leaves: construct(leaves, context))
    return lambda leaves: construct(leaves, context)


class _Outputs:
    """Builds one kind of transformers' outputs: dataclasses that are dicts of those fields that are not None.

    Their constructor looks each field up by reflection, which takes longer than a small model. What it does
    depends on which fields there are and not on the values. So the first one is constructed, and later ones
    are made as that one is, provided that it is nothing but its items and attributes.
    """

    def __init__(self, kind: type[Any], construct: Build) -> None:
        self._kind = kind
        self._construct = construct
        self._names: tuple[str, ...] | None = None
        self._attributes: dict[str, Any] = {}
        self._is_alike = True

    def __call__(self, leaves: Sequence[Any]) -> Any:
        names = self._names
        if names is None:
            return self._first(leaves)
        made = OrderedDict.__new__(self._kind)
        attributes = made.__dict__
        attributes.update(self._attributes)
        for name, leaf in zip(names, leaves, strict=True):
            OrderedDict.__setitem__(made, name, leaf)
            attributes[name] = leaf
        return made

    def _first(self, leaves: Sequence[Any]) -> Any:
        """One from the constructor; what it looks like is remembered when all others will look so."""
        made = self._construct(leaves)
        if not self._is_alike:
            return made
        items, attributes = list(OrderedDict.items(made)), dict(vars(made))
        rest = {name: value for name, value in attributes.items() if name not in dict(items)}
        self._is_alike = (
            all(value is leaf for (_, value), leaf in zip(items, leaves, strict=False))
            and len(items) == len(leaves)
            and all(attributes.get(name) is value for name, value in items)
            and all(value is None for value in rest.values())
            and all(leaf is not None for leaf in leaves)
        )
        if self._is_alike:
            self._attributes, self._names = attributes | dict.fromkeys(attributes), tuple(n for n, _ in items)
        return made
