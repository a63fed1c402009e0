"""Picking elements by index, and joining tensors."""

from __future__ import annotations

from typing import Any

from regraft.ir.dims import Dim
from regraft.ir.dtypes import DType
from regraft.ir.opdef import SAFE, CallSite, Trait
from regraft.ir.ops.rules import (
    Shape,
    axis_of,
    broadcast,
    define,
    one,
    refuse,
    replaced,
    require,
    require_equal,
    require_rank,
    same_dtype,
    spelling,
)
from regraft.ir.ops.views import take, view
from regraft.ir.types import TensorType

#: An index out of range raises.
CHECKED = Trait.PURE

_INDEX_TYPES = (DType.I64, DType.I32)


def require_index(site: CallSite, index: TensorType, types: tuple[DType, ...] = _INDEX_TYPES) -> None:
    if index.dtype not in types:
        refuse(site, f"an index is {index.dtype}, expected {' or '.join(t.value for t in types)}")


def _embedding(site: CallSite) -> TensorType:
    """``weight[V, E]``, ``indices[...]`` -> ``[..., E]``."""
    weight, indices = require_rank(site, "weight", 2), site.type("indices")
    require_index(site, indices)
    return weight.with_shape((*indices.shape, weight.shape[1]))


def _index(site: CallSite) -> TensorType:
    """Integer tensors for some axes, broadcast together; they come first unless they are neighbours."""
    tensor, given = site.type("self"), site.optional_list("indices")
    require(len(given) <= tensor.rank, site, f"{len(given)} indices for rank {tensor.rank}")
    axes = [i for i, index in enumerate(given) if index is not None]
    indices = [index for index in given if index is not None]
    require(bool(indices), site, "no index is given")
    for index in indices:
        require_index(site, index)
    picked = broadcast(site, [index.shape for index in indices])
    kept = tuple(d for i, d in enumerate(tensor.shape) if i not in axes)
    neighbours = axes == list(range(axes[0], axes[-1] + 1))
    at = axes[0] if neighbours else 0
    return tensor.with_shape((*kept[:at], *picked, *kept[at:]))


def _index_select(site: CallSite) -> TensorType:
    tensor, index = site.type("self"), require_rank(site, "index", 0, 1)
    require_index(site, index)
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    return tensor.with_shape(replaced(tensor.shape, axis, index.numel) if tensor.rank else ())


def _gather(site: CallSite) -> TensorType:
    tensor, index = site.type("self"), site.type("index")
    require_index(site, index, (DType.I64,))
    axis_of(site, site.attr("dim"), tensor.rank)
    if max(tensor.rank, 1) != max(index.rank, 1):
        refuse(site, f"the index has rank {index.rank}, expected {tensor.rank}")
    return tensor.with_shape(index.shape)


def _cat(site: CallSite) -> TensorType:
    """Tensors that agree but for one axis. Empty ones of rank 1 are left out, as torch does."""
    given = site.variadic("tensors")
    require(bool(given), site, "no tensors are given")
    dtype = same_dtype(site, given)
    tensors = [t for t in given if t.shape != (0,)] or [given[0]]
    first = tensors[0]
    require(first.rank > 0, site, "a tensor of rank 0 cannot be joined")
    require(all(t.rank == first.rank for t in tensors), site, "the tensors differ in rank")
    axis = axis_of(site, site.attr("dim"), first.rank)
    shape: Shape = first.shape
    total: Dim = first.shape[axis]
    for tensor in tensors[1:]:
        total = total + tensor.shape[axis]
        pairs = enumerate(zip(shape, tensor.shape, strict=True))
        shape = tuple(a if i == axis else require_equal(site, a, b, "sizes") for i, (a, b) in pairs)
    return TensorType(dtype, replaced(shape, axis, total), first.device)


def _stack(site: CallSite) -> TensorType:
    given = site.variadic("tensors")
    require(bool(given), site, "no tensors are given")
    dtype, first = same_dtype(site, given), given[0]
    require(all(t.rank == first.rank for t in given), site, "the tensors differ in rank")
    shape = first.shape
    for tensor in given[1:]:
        shape = tuple(require_equal(site, a, b, "sizes") for a, b in zip(shape, tensor.shape, strict=True))
    axis = axis_of(site, site.attr("dim"), first.rank + 1)
    return TensorType(dtype, (*shape[:axis], len(given), *shape[axis:]), first.device)


def _diff(site: CallSite) -> TensorType:
    tensor, order = site.type("self"), site.int("n")
    require(tensor.rank > 0, site, "the operand has rank 0")
    if tensor.dtype == DType.BOOL:
        refuse(site, "differences of bools are not typed")
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    parts = [t for t in (site.optional("prepend"), tensor, site.optional("append")) if t is not None]
    same_dtype(site, parts)
    require(all(t.rank == tensor.rank for t in parts), site, "the tensors differ in rank")
    if order == 0:  # torch then leaves out what would be put before and after, too.
        return tensor
    size: Dim = 0
    for part in parts:
        size = size + part.shape[axis]
    return tensor.with_shape(replaced(tensor.shape, axis, size - order))


def _triangle(site: CallSite) -> TensorType:
    tensor = site.type("self")
    require(tensor.rank >= 2, site, f"the operand has rank {tensor.rank}, expected at least 2")
    return tensor


# -- decompositions ----------------------------------------------------------------------------


def _stack_by_cat(b: Any, op: Any) -> Any:
    rank = op.result.tensor.rank
    axis = op.attr("dim") % rank
    values = op.variadic("tensors")
    unsqueezed = [view(b, v, (*v.tensor.shape[:axis], 1, *v.tensor.shape[axis:])) for v in values]
    return b.aten.cat(tuple(unsqueezed), axis)


def _of_one_rank(b: Any, op: Any) -> Any:
    """``cat`` without the empty parts of rank 1 that torch skips; None where all parts have one rank."""
    rank, given = op.result.tensor.rank, op.variadic("tensors")
    parts = tuple(part for part in given if part.tensor.rank == rank)
    if len(parts) == len(given):
        return None
    return (parts[0] if len(parts) == 1 else b.aten.cat(parts, op.attr("dim")),)


def _select_by_index(b: Any, op: Any) -> Any:
    x, index = op.operand("self"), op.operand("index")
    if x.tensor.rank == 0:
        return x
    axis = op.attr("dim") % x.tensor.rank
    return b.aten.index.Tensor(x, (*(None,) * axis, view(b, index, (index.tensor.numel,))))


def _diff_by_slices(b: Any, op: Any) -> Any:
    x = op.operand("self")
    if op.attr("n") == 0:
        return x
    axis = op.attr("dim") % x.tensor.rank
    parts = [v for v in (op.optional("prepend"), x, op.optional("append")) if v is not None]
    value = parts[0] if len(parts) == 1 else b.aten.cat(tuple(parts), axis)
    for _ in range(op.attr("n")):
        size = value.tensor.shape[axis] - 1
        value = b.aten.sub.Tensor(take(b, value, axis, 1, size), take(b, value, axis, 0, size))
    return value


# -- the table ---------------------------------------------------------------------------------

OPS = (
    define(
        "aten.embedding(Tensor weight, Tensor indices, SymInt padding_idx=-1, bool scale_grad_by_freq=False, "
        "bool sparse=False)",
        _embedding,
        CHECKED,
    ),
    define("aten.index.Tensor(Tensor self, Tensor?[] indices)", _index, CHECKED),
    define("aten.gather(Tensor self, int dim, Tensor index, *, bool sparse_grad=False)", _gather, CHECKED),
    define("aten.cat(Tensor[] tensors, int dim=0)", _cat, SAFE, decompose=_of_one_rank),
    define("aten.tril(Tensor self, SymInt diagonal=0)", _triangle, SAFE),
    define("aten.triu(Tensor self, SymInt diagonal=0)", _triangle, SAFE),
    spelling(
        "aten.index_select(Tensor self, int dim, Tensor index)", _index_select, one(_select_by_index), CHECKED
    ),
    spelling("aten.stack(Tensor[] tensors, int dim=0)", _stack, one(_stack_by_cat)),
    spelling(
        "aten.diff(Tensor self, int n=1, int dim=-1, Tensor? prepend=None, Tensor? append=None)",
        _diff,
        one(_diff_by_slices),
    ),
)
