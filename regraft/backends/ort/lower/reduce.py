"""Reductions, scans and softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from regraft.backends.ort.dtypes import carrier
from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import dtype_of
from regraft.backends.ort.lower.empty import unless_empty
from regraft.ir import Dim, DType, Op, Value
from regraft.ir import dims as algebra


def axes_of(op: Op) -> tuple[int, ...]:
    """The axes that ``op`` reduces, non-negative."""
    rank = op.operand("self").tensor.rank
    dims = op.attrs.get("dim")
    if dims is None or dims == ():
        return tuple(range(rank))
    given = dims if isinstance(dims, tuple) else (dims,)
    return tuple(d % rank for d in given if isinstance(d, int)) if rank else ()


def reduced(
    e: Emitter, op_type: str, x: ir.Value, axes: Sequence[int], keepdim: bool, dtype: DType
) -> ir.Value:
    """``op_type`` over ``axes``; no axes leave ``x`` as it is (to ONNX they would mean all)."""
    if not axes:
        return x
    wide = e.wide(op_type, dtype)
    result = e.op(op_type, e.cast(x, dtype, wide), e.ints(*axes), keepdims=int(keepdim))
    return e.cast(result, wide, dtype)


def _accumulate(op_type: str) -> Lowering:
    """Sums and means, computed in the result's type."""

    def emit(e: Emitter, op: Op) -> ir.Value:
        to = carrier(op.result.tensor.dtype)
        x = e.cast(e.operand(op, "self"), dtype_of(op), to)
        keepdim, axes = bool(op.attrs.get("keepdim", False)), axes_of(op)
        shape = op.operand("self").tensor.shape
        count = algebra.product(shape[a] for a in axes)
        if op_type == "ReduceSum" or (algebra.bounds(count)[0] or 0) > 0:
            return reduced(e, op_type, x, axes, keepdim, to)
        # ONNX Runtime's mean of nothing is 0, torch's is nan.
        return e.op("Div", reduced(e, "ReduceSum", x, axes, keepdim, to), _degrees(e, count, 0, to))

    return Lowering(emit, (op_type,), "")


def _extremum(op_type: str) -> Lowering:
    def emit(e: Emitter, op: Op) -> ir.Value:
        x, axes, dtype = e.operand(op, "self"), axes_of(op), dtype_of(op)
        find = reduced if _is_nan_as_a_whole(op.operand("self"), axes) else _largest
        return find(e, op_type, x, axes, op.attr("keepdim"), dtype)

    return Lowering(emit, (op_type,))


def _largest(
    e: Emitter, op_type: str, x: ir.Value, axes: Sequence[int], keepdim: bool, dtype: DType
) -> ir.Value:
    """The extremum, nan where there is one: ONNX Runtime passes over nans."""
    found = reduced(e, op_type, x, axes, keepdim, dtype)
    if not dtype.is_float or not axes:
        return found
    nans = e.op("Greater", reduced(e, "ReduceMax", _nans(e, x), axes, keepdim, DType.F32), _zero(e))
    return e.op("Where", nans, e.scalar(math.nan, dtype), found)


def _is_nan_as_a_whole(value: Value, axes: Sequence[int]) -> bool:
    """Whether either all elements of ``value`` along ``axes`` are nan or none is.

    So it is along the axis of a softmax, whose sum is nan where one element is. Among nans alone ONNX
    Runtime's extremum is nan.
    """
    made, shape = value.op, value.tensor.shape
    if made is None or made.name != "aten.softmax.int" or not shape:
        return False
    axis = made.attr("dim") % len(shape)
    return axis in axes and all(shape[other] == 1 for other in axes if other != axis)


def _nans(e: Emitter, x: ir.Value) -> ir.Value:
    """1 for each nan, else 0."""
    return e.memoised(("nans", x), lambda: e.cast(e.op("IsNaN", x), DType.BOOL, DType.F32))


def _zero(e: Emitter) -> ir.Value:
    return e.scalar(0, DType.F32)


def _position(op_type: str) -> Lowering:
    def emit(e: Emitter, op: Op) -> ir.Value:
        x, rank, dtype = e.operand(op, "self"), op.operand("self").tensor.rank, dtype_of(op)
        if rank == 0:
            return e.scalar(0, DType.I64)
        if op.attr("dim") is not None:
            return _arg(e, op_type, x, op)
        numel, shape = op.operand("self").tensor.numel, op.result.tensor.shape

        def made() -> list[ir.Value]:
            flat = e.op("Reshape", x, e.ints(-1))
            return [e.reshape(_place(e, op_type, flat, 0, False, dtype), (), shape)]

        return unless_empty(e, numel, made, lambda: [_zeros(e, DType.I64, shape)])[0]

    return Lowering(emit, (op_type,))


def _arg(e: Emitter, op_type: str, x: ir.Value, op: Op) -> ir.Value:
    """The position of the extremum along the axis of ``op``; 0 where that is empty."""
    (axis,) = axes_of(op)
    (found,) = unless_empty(
        e,
        op.operand("self").tensor.shape[axis],
        lambda: [_place(e, op_type, x, axis, op.attr("keepdim"), dtype_of(op))],
        lambda: [_zeros(e, DType.I64, op.results[-1].tensor.shape)],
    )
    return found


def _zeros(e: Emitter, dtype: DType, shape: Sequence[Dim]) -> ir.Value:
    return e.op("Expand", e.scalar(0, dtype), e.shape(shape))


def _place(e: Emitter, op_type: str, x: ir.Value, axis: int, keepdim: bool, dtype: DType) -> ir.Value:
    """The position of the extremum; to torch a nan is beyond all numbers, either way."""
    attrs: dict[str, Any] = {"axis": axis, "keepdims": int(keepdim)}
    found = e.op(op_type, e.cast(x, dtype, e.wide(op_type, dtype)), **attrs)
    if not dtype.is_float:
        return found
    nans = _nans(e, x)
    some = e.op("Greater", reduced(e, "ReduceMax", nans, (axis,), keepdim, DType.F32), _zero(e))
    return e.op("Where", some, e.op("ArgMax", nans, **attrs), found)


def _extremum_and_position(value_op: str, position_op: str) -> Lowering:
    def emit(e: Emitter, op: Op) -> list[ir.Value]:
        x, dtype, keepdim = e.operand(op, "self"), dtype_of(op), op.attr("keepdim")
        axes = axes_of(op)
        if not axes:
            return [x, e.scalar(0, DType.I64)]
        return [
            _largest(e, value_op, x, axes, keepdim, dtype),
            _arg(e, position_op, x, op),
        ]

    return Lowering(emit, (value_op, position_op))


def _truth(op_type: str) -> Lowering:
    """``any`` and ``all`` count: the maximum of nothing is an error, its sum is 0."""

    def emit(e: Emitter, op: Op) -> ir.Value:
        x, dtype = e.operand(op, "self"), dtype_of(op)
        if dtype != DType.BOOL:
            x = e.op("Not", e.kernel("Equal", dtype, x, e.scalar(0, dtype), keep=False))
        if op_type == "all":
            x = e.op("Not", x)
        keepdim = bool(op.attrs.get("keepdim", False))
        count = reduced(e, "ReduceSum", e.cast(x, DType.BOOL, DType.I32), axes_of(op), keepdim, DType.I32)
        test = "Equal" if op_type == "all" else "Greater"
        found = e.op(test, count, e.scalar(0, DType.I32))
        return e.cast(found, DType.BOOL, op.result.tensor.dtype)  # of u8 the result is u8

    return Lowering(emit)


def _product(e: Emitter, op: Op) -> ir.Value:
    to = carrier(op.result.tensor.dtype)
    x = e.cast(e.operand(op, "self"), dtype_of(op), to)
    return reduced(e, "ReduceProd", x, axes_of(op), bool(op.attr("keepdim")), to)


def _variance(e: Emitter, op: Op) -> ir.Value:
    x, dtype, axes = e.operand(op, "self"), dtype_of(op), axes_of(op)
    correction = op.attr("correction")
    correction = 1 if correction is None else correction
    shape = op.operand("self").tensor.shape
    spread = e.op("Sub", x, reduced(e, "ReduceMean", x, axes, True, dtype))
    squares = e.op("Mul", spread, spread)
    total = reduced(e, "ReduceSum", squares, axes, op.attr("keepdim"), dtype)
    return e.op("Div", total, _degrees(e, algebra.product(shape[a] for a in axes), correction, dtype))


def _degrees(e: Emitter, count: Dim, correction: float, dtype: DType) -> ir.Value:
    """``max(count - correction, 0)``."""
    if isinstance(count, int):
        return e.scalar(max(count - correction, 0), dtype)
    if correction == int(correction):
        return e.cast(e.size_scalar(algebra.maximum(count - int(correction), 0)), DType.I64, dtype)
    left = e.op("Sub", e.cast(e.size_scalar(count), DType.I64, dtype), e.scalar(correction, dtype))
    return e.op("Max", left, e.scalar(0, dtype))


def _topk(e: Emitter, op: Op) -> Sequence[ir.Value]:
    """Zeros where the axis has too few elements."""
    x, dtype, shape = e.operand(op, "self"), dtype_of(op), op.operand("self").tensor.shape
    if not shape:
        return [x, e.scalar(0, DType.I64)]
    axis = op.attr("dim") % len(shape)
    wide = e.wide("TopK", dtype)
    attrs = {"axis": axis, "largest": int(op.attr("largest")), "sorted": int(op.attr("sorted"))}

    def made() -> list[ir.Value]:
        values, indices = e.ops("TopK", 2, e.cast(x, dtype, wide), e.size(op.attr("k")), **attrs)
        return [e.cast(values, wide, dtype), indices]

    found, spare = op.results[0].tensor.shape, algebra.maximum(shape[axis] - op.attr("k") + 1, 0)
    return unless_empty(e, spare, made, lambda: [_zeros(e, each, found) for each in (dtype, DType.I64)])


def _cumsum(e: Emitter, op: Op) -> ir.Value:
    to = carrier(op.result.tensor.dtype)
    x = e.cast(e.operand(op, "self"), dtype_of(op), to)
    rank = op.operand("self").tensor.rank
    if rank == 0:
        return x
    wide = e.wide("CumSum", to)
    summed = e.op("CumSum", e.cast(x, to, wide), e.scalar(op.attr("dim") % rank, DType.I64))
    return e.cast(summed, wide, to)


def softmax(e: Emitter, op: Op) -> ir.Value:
    to = carrier(op.result.tensor.dtype)
    x = e.cast(e.operand(op, "self"), dtype_of(op), to)
    rank = op.operand("self").tensor.rank
    op_type = "LogSoftmax" if op.name.startswith("aten.log") else "Softmax"
    if rank == 0:
        x = e.op("Reshape", x, e.ints(1))
        return e.op("Reshape", e.op(op_type, x, axis=0), e.ints())
    return e.op(op_type, x, axis=op.attr("dim") % rank)


LOWERINGS: dict[str, Lowering] = {
    "aten.sum.dim_IntList": _accumulate("ReduceSum"),
    "aten.mean.dim": _accumulate("ReduceMean"),
    "aten.amax": _extremum("ReduceMax"),
    "aten.amin": _extremum("ReduceMin"),
    "aten.argmax": _position("ArgMax"),
    "aten.argmin": _position("ArgMin"),
    "aten.max.dim": _extremum_and_position("ReduceMax", "ArgMax"),
    "aten.min.dim": _extremum_and_position("ReduceMin", "ArgMin"),
    "aten.any": _truth("any"),
    "aten.any.dim": _truth("any"),
    "aten.all": _truth("all"),
    "aten.all.dim": _truth("all"),
    "aten.any.dims": _truth("any"),
    "aten.all.dims": _truth("all"),
    "aten.prod.dim_int": Lowering(_product, ("ReduceProd",), ""),
    "aten.var.correction": Lowering(_variance),
    "aten.topk": Lowering(_topk, ("TopK",)),
    "aten.cumsum": Lowering(_cumsum, ("CumSum",), ""),
    "aten.softmax.int": Lowering(softmax, ("Softmax",), ""),
    "aten.log_softmax.int": Lowering(softmax, ("LogSoftmax",), ""),
}
