"""Writing elements by index into a copy of a tensor.

``aten.scatter.src``, ``aten.scatter_reduce.two`` and ``aten.index_put`` are the forms that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir.dims import Dim, eq, maximum, minimum
from regraft.ir.dtypes import DType
from regraft.ir.opdef import SAFE, CallSite, InferRule
from regraft.ir.ops.create import as_scalar
from regraft.ir.ops.elementwise import cast
from regraft.ir.ops.indexing import CHECKED, require_index
from regraft.ir.ops.rules import (
    VIEW,
    Shape,
    axis_of,
    broadcast,
    define,
    one,
    per_element,
    refuse,
    replaced,
    require,
    require_scalar_fits,
    same_dtype,
    spelling,
    without,
)
from regraft.ir.ops.views import selected, sliced, take, view
from regraft.ir.types import TensorType

# -- along an axis -----------------------------------------------------------------------------


def _scatter(site: CallSite) -> TensorType:
    """``self``, ``index`` and a source of one rank; the index is no larger than the source."""
    tensor, index = site.type("self"), site.type("index")
    require_index(site, index, (DType.I64,))
    axis_of(site, site.attr("dim"), tensor.rank)
    if max(tensor.rank, 1) != max(index.rank, 1):
        refuse(site, f"the index has rank {index.rank}, expected {tensor.rank}")
    if any(o.name == "src" for o in site.definition.operands):
        source = site.type("src")
        same_dtype(site, (tensor, source))
        if max(source.rank, 1) != max(index.rank, 1):
            refuse(site, f"the source has rank {source.rank}, expected {index.rank}")
    else:
        require_scalar_fits(site, tensor.dtype, site.attr("value"))
    return tensor


def _scatter_reduce(site: CallSite) -> TensorType:
    known = ("sum", "prod", "mean", "amax", "amin")
    require(site.attr("reduce") in known, site, f"reduce is {site.attr('reduce')!r}, expected one of {known}")
    return _scatter(site)


_REDUCTIONS = {"add": "sum", "multiply": "prod"}


def _scatter_named(site: CallSite) -> TensorType:
    require(site.attr("reduce") in _REDUCTIONS, site, f"reduce is {site.attr('reduce')!r}")
    return _scatter(site)


def _source_of(b: Any, op: Any) -> Any:
    """The source, or the number as a tensor like the index."""
    if any(o.name == "src" for o in op.definition.operands):
        return op.operand("src")
    return filled(b, op.operand("index").tensor.shape, op.attr("value"), op.result.tensor.dtype)


def filled(b: Any, shape: Shape, value: Any, dtype: DType) -> Any:
    number = b.aten.full((), as_scalar(value, dtype), dtype=dtype)
    return b.aten.expand(number, shape) if shape else number


def _axis(op: Any) -> int:
    return axis_of(op.site, op.attr("dim"), op.operand("self").tensor.rank)


def _as_scatter(b: Any, op: Any) -> Any:
    return b.aten.scatter.src(op.operand("self"), _axis(op), op.operand("index"), _source_of(b, op))


def _as_reduction(b: Any, op: Any) -> Any:
    reduce = _REDUCTIONS[op.attrs.get("reduce", "add")]
    args = (op.operand("self"), _axis(op), op.operand("index"), _source_of(b, op), reduce)
    return b.aten.scatter_reduce.two(*args)


# -- at positions ------------------------------------------------------------------------------


def _index_put(site: CallSite) -> TensorType:
    """``self[indices] = values``: integer tensors for some axes, or one mask over neighbouring axes."""
    tensor, given, values = site.type("self"), site.optional_list("indices"), site.type("values")
    same_dtype(site, (tensor, values))
    present = [index for index in given if index is not None]
    require(bool(present), site, "no index is given")
    if any(index.dtype == DType.BOOL for index in present):
        return _masked_put(site, tensor, values, given)
    require(len(given) <= tensor.rank, site, f"{len(given)} indices for rank {tensor.rank}")
    for index in present:
        require_index(site, index)
    target = put_shape(site, tensor.shape, given)
    if len(broadcast(site, [target, values.shape])) != len(target):
        refuse(site, f"the values {values} have more axes than what they replace")
    return tensor


def put_shape(site: CallSite, shape: Shape, given: Sequence[TensorType | None]) -> Shape:
    """The shape of ``tensor[indices]``."""
    axes = [i for i, index in enumerate(given) if index is not None]
    picked = broadcast(site, [index.shape for index in given if index is not None])
    kept = without(shape, axes)
    neighbours = axes == list(range(axes[0], axes[-1] + 1))
    at = axes[0] if neighbours else 0
    return (*kept[:at], *picked, *kept[at:])


def _masked_put(
    site: CallSite, tensor: TensorType, values: TensorType, given: Sequence[TensorType | None]
) -> TensorType:
    """One mask; the values are the same for every element that it picks."""
    masks = [index for index in given if index is not None]
    require(len(masks) == 1, site, "a mask among other indices")
    (mask,) = masks
    first = len(given) - 1
    require(first + mask.rank <= tensor.rank, site, f"the mask {mask} has too many axes for {tensor}")
    for a, b in zip(tensor.shape[first:], mask.shape, strict=False):
        require(eq(a, b) is not False, site, f"the mask {mask} does not fit {tensor}")
    rest = tensor.shape[first + mask.rank :]
    if values.rank > len(rest) and values.numel != 1:
        refuse(site, f"the values {values} differ from element to element of the mask")
    if values.rank <= len(rest):
        broadcast(site, [rest, values.shape])
    return tensor


def _index_update(site: CallSite) -> TensorType:
    """``source`` has the shape of ``self`` with as many rows as ``index`` names."""
    tensor, index = site.type("self"), site.type("index")
    require_index(site, index)
    require(index.rank <= 1, site, f"the index has rank {index.rank}, expected 0 or 1")
    require(tensor.rank > 0, site, "the operand has rank 0")
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    if "value" in site.attrs:
        require_scalar_fits(site, tensor.dtype, site.attr("value"))
        return tensor
    name = "value" if any(o.name == "value" for o in site.definition.operands) else "source"
    source = site.type(name)
    same_dtype(site, (tensor, source))
    if name == "value":
        require(source.rank == 0, site, f"the value has rank {source.rank}, expected 0")
        return tensor
    rows = replaced(tensor.shape, axis, index.numel)
    found = source.shape if source.rank == tensor.rank else (1,) * tensor.rank
    if any(eq(a, b) is False for a, b in zip(rows, found, strict=True)):
        refuse(site, f"the source is {source}, expected the shape {list(rows)}")
    return tensor


def _put_rows(b: Any, op: Any) -> Any:
    """Along one axis, as ``index_put``."""
    args = op.arguments()
    index, dtype = op.operand("index"), op.result.tensor.dtype
    values = args["value"] if "value" in args else args["source"]
    if "value" in op.attrs:
        values = b.aten.full((), as_scalar(values, dtype), dtype=dtype)
    if args.get("alpha", 1) != 1:
        values = b.aten.mul.Scalar(values, args["alpha"])
    row = view(b, index, (index.tensor.numel,))
    add = op.name == "aten.index_add"
    return b.aten.index_put(op.operand("self"), (*(None,) * _axis(op), row), values, add)


# -- parts -------------------------------------------------------------------------------------


def _part(shape_of: Any) -> InferRule:
    """``src`` has the shape of the part of ``self`` that it replaces."""

    def infer(site: CallSite) -> TensorType:
        tensor, source = site.type("self"), site.type("src")
        same_dtype(site, (tensor, source))
        wanted = shape_of(site)
        same = len(wanted) == source.rank
        if not same or any(eq(a, b) is False for a, b in zip(wanted, source.shape, strict=True)):
            refuse(site, f"the source is {source}, expected the shape {[str(d) for d in wanted]}")
        return tensor

    return infer


def _slice_shape(site: CallSite) -> Shape:
    tensor = site.type("self")
    start, end, step = sliced(site)
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    return replaced(tensor.shape, axis, (end - start + step - 1) // step if step != 1 else end - start)


def _select_shape(site: CallSite) -> Shape:
    tensor = site.type("self")
    require(tensor.rank > 0, site, "a tensor of rank 0 has no elements to select")
    selected(site)
    return without(tensor.shape, (axis_of(site, site.attr("dim"), tensor.rank),))


def _replace_slice(b: Any, op: Any) -> Any:
    x, source, axis = op.operand("self"), op.operand("src"), _axis(op)
    start, end, step = sliced(op.site)
    if step != 1:
        rows = b.aten.arange.start_step(start, end, step, dtype=DType.I64)
        return b.aten.index_put(x, (*(None,) * axis, rows), source, False)
    return _between(b, x, source, axis, start, end)


def _between(b: Any, x: Any, source: Any, axis: int, start: Dim, end: Dim) -> Any:
    """``source`` in place of the elements from ``start`` to ``end``."""
    size = x.tensor.shape[axis]
    parts = [source]
    if start != 0:
        parts.insert(0, take(b, x, axis, 0, start))
    if eq(end, size) is not True:
        parts.append(take(b, x, axis, end, size - end))
    if len(parts) > 1:
        return b.aten.cat(tuple(parts), axis)
    return source if source.tensor.shape == x.tensor.shape else b.aten.expand(source, x.tensor.shape)


def _replace_element(b: Any, op: Any) -> Any:
    x, axis, index = op.operand("self"), _axis(op), selected(op.site)
    row = view(b, op.operand("src"), replaced(x.tensor.shape, axis, 1))
    return _between(b, x, row, axis, index, index + 1)


def diagonal_length(rows: Dim, columns: Dim, offset: int) -> Dim:
    """How many elements a diagonal has."""
    if offset >= 0:
        return maximum(minimum(rows, columns - offset), 0)
    return maximum(minimum(rows + offset, columns), 0)


def _diagonal_shape(site: CallSite) -> Shape:
    tensor = site.type("self")
    first, second = (axis_of(site, site.attr(name), tensor.rank) for name in ("dim1", "dim2"))
    require(first != second, site, "dim1 and dim2 are the same axis")
    length = diagonal_length(tensor.shape[first], tensor.shape[second], site.int("offset"))
    return (*without(tensor.shape, (first, second)), length)


def diagonal(site: CallSite) -> TensorType:
    return site.type("self").with_shape(_diagonal_shape(site))


def diagonal_places(b: Any, op: Any, length: Dim) -> dict[int, Any]:
    """Axis -> the indices along it of the diagonal's elements."""
    rank, offset = op.operand("self").tensor.rank, op.attr("offset")
    first, second = op.attr("dim1") % rank, op.attr("dim2") % rank
    low = b.aten.arange.start_step(0, length, 1, dtype=DType.I64)
    high = low if offset == 0 else b.aten.add.Scalar(low, abs(offset))
    return {first: low, second: high} if offset >= 0 else {first: high, second: low}


def _pick_diagonal(b: Any, op: Any) -> Any:
    x, shape = op.operand("self"), op.result.tensor.shape
    places = diagonal_places(b, op, shape[-1])
    first, second = sorted(places)
    order = (*(i for i in range(x.tensor.rank) if i not in places), first, second)
    moved = x if order == tuple(range(x.tensor.rank)) else b.aten.permute(x, order)
    return b.aten.index.Tensor(moved, (*(None,) * (x.tensor.rank - 2), places[first], places[second]))


def _replace_diagonal(b: Any, op: Any) -> Any:
    x, source = op.operand("self"), op.operand("src")
    places = diagonal_places(b, op, source.tensor.shape[-1])
    axes = sorted(places)
    neighbours = axes[1] == axes[0] + 1
    # index_put has the picked axis where the axes are when they are neighbours, else in front.
    at = axes[0] if neighbours else 0
    rank = source.tensor.rank
    order = (*range(at), rank - 1, *range(at, rank - 1))
    values = source if order == tuple(range(rank)) else b.aten.permute(source, order)
    indices = tuple(places.get(i) for i in range(axes[1] + 1))
    return b.aten.index_put(x, indices, values, False)


def _masked_scatter(site: CallSite) -> TensorType:
    tensor, mask, source = site.type("self"), site.type("mask"), site.type("source")
    require(mask.dtype == DType.BOOL, site, f"the mask is {mask.dtype}, expected bool")
    dtype = same_dtype(site, (tensor, source))
    return TensorType(dtype, broadcast(site, [tensor.shape, mask.shape]), tensor.device)


def _take_in_order(b: Any, op: Any) -> Any:
    """The n-th element that the mask picks is the n-th of the source."""
    shape, source = op.result.tensor.shape, op.operand("source")
    mask = b.aten.expand(op.operand("mask"), shape)
    x = b.aten.expand(op.operand("self"), shape)
    numel, count = op.result.tensor.numel, source.tensor.numel
    order = b.aten.cumsum(view(b, cast(b, mask, DType.I64), (numel,)), 0)
    order = b.aten.clamp(b.aten.add.Scalar(order, -1), min=0)
    places = view(b, order, shape)
    if count == 0:
        return x
    picked = b.aten.index.Tensor(view(b, source, (count,)), (places,))
    return b.aten.where.self(mask, picked, x)


# -- the table ---------------------------------------------------------------------------------

_PLACE = "Tensor self, int dim, Tensor index"

OPS = (
    define(f"aten.scatter.src({_PLACE}, Tensor src)", _scatter, CHECKED),
    define(
        f"aten.scatter_reduce.two({_PLACE}, Tensor src, str reduce, *, bool include_self=True)",
        _scatter_reduce,
        CHECKED,
        per_element("src"),
    ),
    define(
        "aten.index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False)",
        _index_put,
        CHECKED,
    ),
    spelling(f"aten.scatter.value({_PLACE}, Scalar value)", _scatter, one(_as_scatter), CHECKED),
    spelling(f"aten.scatter_add({_PLACE}, Tensor src)", _scatter, one(_as_reduction), CHECKED),
    spelling(
        f"aten.scatter.reduce({_PLACE}, Tensor src, *, str reduce)",
        _scatter_named,
        one(_as_reduction),
        CHECKED,
    ),
    spelling(
        f"aten.scatter.value_reduce({_PLACE}, Scalar value, *, str reduce)",
        _scatter_named,
        one(_as_reduction),
        CHECKED,
    ),
    spelling(
        f"aten.index_add({_PLACE}, Tensor source, *, Scalar alpha=1)", _index_update, one(_put_rows), CHECKED
    ),
    spelling(f"aten.index_copy({_PLACE}, Tensor source)", _index_update, one(_put_rows), CHECKED),
    spelling(f"aten.index_fill.int_Scalar({_PLACE}, Scalar value)", _index_update, one(_put_rows), CHECKED),
    spelling(f"aten.index_fill.int_Tensor({_PLACE}, Tensor value)", _index_update, one(_put_rows), CHECKED),
    spelling(
        "aten.slice_scatter(Tensor self, Tensor src, int dim=0, SymInt? start=None, SymInt? end=None, "
        "SymInt step=1)",
        _part(_slice_shape),
        one(_replace_slice),
    ),
    spelling(
        "aten.select_scatter(Tensor self, Tensor src, int dim, SymInt index)",
        _part(_select_shape),
        one(_replace_element),
    ),
    spelling(
        "aten.diagonal_scatter(Tensor self, Tensor src, int offset=0, int dim1=0, int dim2=1)",
        _part(_diagonal_shape),
        one(_replace_diagonal),
    ),
    *(
        spelling(
            f"aten.{name}(Tensor self, int offset=0, int dim1=0, int dim2=1)",
            diagonal,
            one(_pick_diagonal),
            traits,
        )
        for name, traits in (("diagonal", VIEW), ("diagonal_copy", SAFE))
    ),
    spelling(
        "aten.masked_scatter(Tensor self, Tensor mask, Tensor source)",
        _masked_scatter,
        one(_take_in_order),
        CHECKED,
    ),
)
