"""The types of matrix products of open sizes, without taking the products apart.

Asked for the type of ``matmul`` where a size is open, torch's tracers take it apart into eight ops, each of
which proves something about sizes: some 50 ms, in each pass over a graph. Where it is known which sizes are
equal, what the type is can be said without.
"""

# The tables of an op's Python kernels and decompositions have no public names.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp import decomposition_table
from torch._subclasses import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from regraft.compiler.capture.lengths import set_kernels

_MATMUL: Any = torch.ops.aten.matmul.default
_KEY = DispatchKey.CompositeImplicitAutograd
_Product = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def quick_products() -> Generator[None]:
    """In the block, tracing a product of open sizes is quicker, and gives what it gave.

    Only tracers look at the tables that it changes; these belong to the process: one block at a time.
    """
    kernels, decomposition = dict(_MATMUL.py_kernels), decomposition_table.get(_MATMUL)
    typed = _typed(kernels[_KEY])
    set_kernels(_MATMUL, {**kernels, _KEY: typed}, decomposition and typed)
    try:
        yield
    finally:
        set_kernels(_MATMUL, kernels, decomposition)


def _typed(product: _Product) -> _Product:
    """``product``, of fake tensors by their sizes where these say enough."""

    def typed(one: Tensor, other: Tensor) -> Tensor:
        sizes = _sizes(one, other) if _are_open(one, other) else None
        return product(one, other) if sizes is None else one.new_empty(sizes)

    return typed


def _are_open(one: Tensor, other: Tensor) -> bool:
    """Whether nothing but types is known of the two, and a size of one is open."""
    if type(one) is not FakeTensor or type(other) is not FakeTensor:
        return False
    if one.dtype != other.dtype or one.device != other.device or one.requires_grad or other.requires_grad:
        return False
    return any(isinstance(size, torch.SymInt) for size in (*one.shape, *other.shape))


def _sizes(one: Tensor, other: Tensor) -> list[Any] | None:
    """The sizes of a product of batches of matrices; None where it is not known that they fit."""
    if min(one.dim(), other.dim()) < 2 or max(one.dim(), other.dim()) < 3:
        return None
    if not statically_known_true(one.shape[-1] == other.shape[-2]):
        return None
    batch: list[Any] = []
    for first, second in zip_longest(reversed(one.shape[:-2]), reversed(other.shape[:-2]), fillvalue=1):
        if statically_known_true(first == second) or statically_known_true(second == 1):
            batch.insert(0, first)
        elif statically_known_true(first == 1):
            batch.insert(0, second)
        else:
            return None
    return [*batch, one.shape[-2], other.shape[-1]]
