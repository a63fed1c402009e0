"""Writing by index, sorting, and results as long as the values say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import dtype_of, select
from regraft.backends.ort.lower.indexing import common_shape, joined, placed
from regraft.backends.ort.lower.views import permuted, sliced
from regraft.ir import Dim, DType, Op, Value
from regraft.ir import dims as algebra

Shape = tuple[Dim, ...]

_REDUCTIONS = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}


def _vector(e: Emitter, op: Op, name: str) -> ir.Value:
    """The operand, a number as a vector of one."""
    x = e.operand(op, name)
    return x if op.operand(name).tensor.rank else e.op("Reshape", x, e.ints(1))


def _source(e: Emitter, op: Op) -> ir.Value:
    """The part of the source that the index covers."""
    source = _vector(e, op, "src")
    index = op.operand("index").tensor.shape
    for axis, (size, wanted) in enumerate(zip(op.operand("src").tensor.shape, index, strict=False)):
        source = sliced(e, source, axis, size, 0, wanted)
    return source


def _scattered(e: Emitter, op: Op, x: ir.Value, source: ir.Value, reduction: str) -> ir.Value:
    axis = op.attr("dim") % max(op.operand("self").tensor.rank, 1)
    return e.op("ScatterElements", x, _vector(e, op, "index"), source, axis=axis, reduction=reduction)


def _finished(e: Emitter, op: Op, result: ir.Value) -> ir.Value:
    return result if op.operand("self").tensor.rank else e.op("Squeeze", result, e.ints(0))


def _scatter(e: Emitter, op: Op) -> ir.Value:
    return _finished(e, op, _scattered(e, op, _vector(e, op, "self"), _source(e, op), "none"))


def _scatter_reduce(e: Emitter, op: Op) -> ir.Value:
    """Where the old value has no part in it, it is overwritten by what changes nothing first."""
    x, source, dtype, reduce = _vector(e, op, "self"), _source(e, op), dtype_of(op), op.attr("reduce")
    shape = op.operand("index").tensor.shape or (1,)
    base = x
    if not op.attr("include_self"):
        base = _scattered(e, op, x, e.expand(e.scalar(_neutral(reduce, dtype), dtype), (), shape), "none")
    found = _scattered(e, op, base, source, _REDUCTIONS[reduce])
    if reduce == "mean":
        ones = e.expand(e.scalar(1, dtype), (), op.operand("self").tensor.shape or (1,))
        if not op.attr("include_self"):
            ones = _scattered(e, op, ones, e.expand(e.scalar(0, dtype), (), shape), "none")
        counts = _scattered(e, op, ones, e.expand(e.scalar(1, dtype), (), shape), "add")
        found = e.op("Div", found, counts)
    return _finished(e, op, found)


def _neutral(reduce: str, dtype: DType) -> float | int:
    if reduce in ("sum", "mean", "prod"):
        return 1 if reduce == "prod" else 0
    if dtype.is_float:
        return float("-inf") if reduce == "amax" else float("inf")
    least = 0 if dtype.kind == "uint" else -(1 << (dtype.bits - 1))
    return least if reduce == "amax" else least + (1 << dtype.bits) - 1


def _reduce_check(op: Op) -> str | None:
    if op.operand("self").tensor.dtype == DType.BOOL:
        return "a reduction of bools"
    if op.attr("reduce") == "mean" and not op.operand("self").tensor.dtype.is_float:
        return "a mean of integers"
    return None


# -- index_put ---------------------------------------------------------------------------------


def _index_put(e: Emitter, op: Op) -> ir.Value:
    given = op.optional_list("indices")
    present = [index for index in given if index is not None]
    if present[0].tensor.dtype == DType.BOOL:
        return _put_by_mask(e, op, present[0], len(given) - 1)
    axes = [i for i, index in enumerate(given) if index is not None]
    x, shape = e.operand(op, "self"), op.operand("self").tensor.shape
    kept = [i for i in range(len(shape)) if i not in axes]
    order = (*axes, *kept)
    picked = common_shape(present)
    neighbours = axes == list(range(axes[0], axes[-1] + 1))
    place = placed(len(picked), len(kept), axes[0] if neighbours else 0)
    front = (*picked, *(shape[i] for i in kept))
    values = e.expand(e.operand(op, "values"), op.operand("values").tensor.shape, [front[i] for i in place])
    values = permuted(e, values, inverse(place))
    front_first, turned = tuple(shape[i] for i in order), permuted(e, x, order)
    if op.attr("accumulate"):
        made = _added(e, turned, front_first, present, picked, values)
    else:
        made = e.op("ScatterND", turned, joined(e, present, picked), values)
    return permuted(e, made, inverse(order))


def _added(
    e: Emitter, x: ir.Value, shape: Shape, indices: Sequence[Value], picked: Shape, values: ir.Value
) -> ir.Value:
    """``x`` with ``values[*picked, *rest]`` added where the indices of its first axes say.

    Not by ``ScatterND``, whose threads lose what goes to one place (onnxruntime 1.32); ``ScatterElements``
    has one thread.
    """
    first, rest = shape[: len(indices)], shape[len(indices) :]
    width, count = algebra.product(rest), algebra.product(picked)
    places: ir.Value | None = None
    for axis, index in enumerate(indices):
        stride, size = algebra.maximum(1, algebra.product(first[axis + 1 :])), first[axis]
        bounds = (0, size * stride, stride)
        # Reading from a table of places takes negative indices, and raises on one out of range.
        table = e.op("Range", *(e.size_scalar(bound) for bound in bounds))
        column = e.cast(e.get(index), index.tensor.dtype, DType.I64)
        place = e.op("Gather", table, e.expand(column, index.tensor.shape, picked), axis=0)
        places = place if places is None else e.op("Add", places, place)
    assert places is not None, "the verifier has seen an index"
    each = e.expand(e.reshape(places, picked, (count, 1)), (count, 1), (count, width))
    flat = e.reshape(x, shape, (algebra.product(first), width))
    added = e.reshape(values, (*picked, *rest), (count, width))
    made = e.op("ScatterElements", flat, each, added, axis=0, reduction="add")
    return e.reshape(made, (algebra.product(first), width), shape)


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=lambda i: order[i]))


def _put_by_mask(e: Emitter, op: Op, mask: Value, first: int) -> ir.Value:
    x, values, dtype = e.operand(op, "self"), e.operand(op, "values"), dtype_of(op)
    rest = op.operand("self").tensor.rank - first - mask.tensor.rank
    wide = e.op("Unsqueeze", e.get(mask), e.ints(*range(-rest, 0))) if rest else e.get(mask)
    if op.operand("values").tensor.rank > rest:
        values = e.op("Reshape", values, e.ints())
    if op.attr("accumulate"):
        values = e.kernel("Add", dtype, x, values)
    return select(e, wide, values, x, dtype)


def _put_check(op: Op) -> str | None:
    if op.attr("accumulate") and op.operand("self").tensor.dtype == DType.BOOL:
        return "a sum of bools"
    return None


# -- sorting -----------------------------------------------------------------------------------


def _sort(e: Emitter, op: Op) -> list[ir.Value]:
    """All elements as the top ones: equal ones stay in order."""
    x, dtype, shape = e.operand(op, "self"), dtype_of(op), op.operand("self").tensor.shape
    if not shape:
        return [x, e.scalar(0, DType.I64)]
    axis = op.attr("dim") % len(shape)
    wide = e.wide("TopK", dtype)
    attrs = {"axis": axis, "largest": int(op.attr("descending")), "sorted": 1}
    values, indices = e.ops("TopK", 2, e.cast(x, dtype, wide), e.size(shape[axis]), **attrs)
    return [e.cast(values, wide, dtype), indices]


# -- results as long as the values say ---------------------------------------------------------


def _nonzero(e: Emitter, op: Op) -> ir.Value:
    """ONNX has an axis a row, torch an axis a column."""
    x, dtype = e.operand(op, "self"), dtype_of(op)
    if dtype != DType.BOOL:
        x = e.op("Not", e.kernel("Equal", dtype, x, e.scalar(0, dtype), keep=False))
    if op.operand("self").tensor.rank == 0:  # one place that has no index, or none
        places = e.op("Transpose", e.op("NonZero", e.op("Reshape", x, e.ints(1))), perm=[1, 0])
        return e.op("Slice", places, e.ints(0), e.ints(0), e.ints(1))
    return e.op("Transpose", e.op("NonZero", x), perm=[1, 0])


def _unique(e: Emitter, op: Op) -> list[ir.Value]:
    x, dtype = e.operand(op, "self"), dtype_of(op)
    wide = e.wide("Unique", dtype)
    values, _, inverse, counts = e.ops("Unique", 4, e.cast(x, dtype, wide), sorted=1)
    shapes = [result.tensor.shape for result in op.results]
    empty = e.cast_array(np.zeros(0), DType.I64)
    given = shapes[1] != (0,) or op.attr("return_inverse")
    inverse = e.reshape(inverse, (-1,), shapes[1]) if given else empty
    return [e.cast(values, wide, dtype), inverse, counts if op.attr("return_counts") else empty]


LOWERINGS: dict[str, Lowering] = {
    "aten.nonzero": Lowering(_nonzero),
    "aten._unique2": Lowering(_unique, ("Unique",)),
    "aten.scatter.src": Lowering(_scatter, ("ScatterElements",)),
    "aten.scatter_reduce.two": Lowering(_scatter_reduce, ("ScatterElements",), check=_reduce_check),
    "aten.index_put": Lowering(_index_put, ("ScatterND",), check=_put_check),
    "aten.sort.stable": Lowering(_sort, ("TopK",)),
}
