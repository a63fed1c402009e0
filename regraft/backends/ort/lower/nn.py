"""Norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import dtype_of
from regraft.ir import Dim, DType, Op
from regraft.ir import dims as algebra

#: What torch takes for an rms_norm without an epsilon: for 16 bits it computes in f32.
_EPSILON = {DType.F64: 2.0**-52} | dict.fromkeys((DType.F32, DType.BF16, DType.F16), 2.0**-23)


def filled(e: Emitter, value: float, shape: Sequence[Dim], dtype: DType) -> ir.Value:
    return e.expand(e.scalar(value, dtype), (), tuple(shape))


def _layer_norm(e: Emitter, op: Op) -> ir.Value:
    dtype, shape = dtype_of(op), op.attr("normalized_shape")
    scale = e.optional(op, "weight")
    x, bias = e.operand(op, "input"), e.optional(op, "bias")
    if dtype == DType.F64:  # an attribute holds only f32
        result = _standardised(e, x, op.attr("eps"), dtype, range(-len(shape), 0))
        result = result if scale is None else e.op("Mul", result, scale)
        return result if bias is None else e.op("Add", result, bias)
    scale = filled(e, 1, shape, dtype) if scale is None else scale
    return e.op("LayerNormalization", x, scale, bias, axis=-len(shape), epsilon=float(op.attr("eps")))


def _rms_norm(e: Emitter, op: Op) -> ir.Value:
    dtype, shape = dtype_of(op), op.attr("normalized_shape")
    x, weight = e.operand(op, "input"), e.optional(op, "weight")
    eps = op.attr("eps")
    eps = _EPSILON[op.operand("input").tensor.dtype] if eps is None else eps
    if e.target.opset >= 23 and dtype != DType.F64:
        scale = filled(e, 1, shape, dtype) if weight is None else weight
        return e.op("RMSNormalization", x, scale, axis=-len(shape), epsilon=float(eps))
    axes = e.ints(*range(-len(shape), 0))
    square = e.op("ReduceMean", e.op("Mul", x, x), axes, keepdims=1)
    result = e.op("Div", x, e.op("Sqrt", e.op("Add", square, e.scalar(eps, dtype))))
    return result if weight is None else e.op("Mul", result, weight)


def _group_norm(e: Emitter, op: Op) -> ir.Value:
    x, dtype, groups = e.operand(op, "input"), dtype_of(op), op.attr("num_groups")
    shape = op.operand("input").tensor.shape
    flat_shape = (shape[0], groups, algebra.floordiv(algebra.product(shape[1:]), groups))
    flat = e.reshape(x, shape, flat_shape)
    if dtype == DType.F32:
        one, zero = (e.array(np.full(groups, v, np.float32)) for v in (1, 0))
        flat = e.op("InstanceNormalization", flat, one, zero, epsilon=float(op.attr("eps")))
    else:
        flat = _standardised(e, flat, op.attr("eps"), dtype)
    result = e.reshape(flat, flat_shape, shape)
    return _per_channel(e, op, result, len(shape))


def _standardised(e: Emitter, x: ir.Value, eps: float, dtype: DType, axes: Sequence[int] = (-1,)) -> ir.Value:
    """``x`` with mean 0 and variance 1 along ``axes``."""
    last = e.ints(*axes)
    centred = e.op("Sub", x, e.op("ReduceMean", x, last, keepdims=1))
    variance = e.op("ReduceMean", e.op("Mul", centred, centred), last, keepdims=1)
    return e.op("Div", centred, e.op("Sqrt", e.op("Add", variance, e.scalar(eps, dtype))))


def _per_channel(e: Emitter, op: Op, x: ir.Value, rank: int) -> ir.Value:
    """Weight and bias along axis 1."""
    for name, op_type in (("weight", "Mul"), ("bias", "Add")):
        parameter = e.optional(op, name)
        if parameter is not None:
            x = e.op(op_type, x, e.op("Reshape", parameter, e.ints(-1, *[1] * (rank - 2))))
    return x


def _batch_norm(e: Emitter, op: Op) -> ir.Value:
    x, dtype = e.operand(op, "input"), dtype_of(op)
    channels = (op.operand("input").tensor.shape[1],)
    if dtype == DType.F64:  # an attribute holds only f32
        return _batch_norm_by_parts(e, op, x, dtype)
    defaults = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
    parameters = {name: e.optional(op, name) for name in defaults}
    given = [filled(e, defaults[n], channels, dtype) if p is None else p for n, p in parameters.items()]
    return e.op("BatchNormalization", x, *given, epsilon=float(op.attr("eps")))


def _batch_norm_by_parts(e: Emitter, op: Op, x: ir.Value, dtype: DType) -> ir.Value:
    rank = op.operand("input").tensor.rank

    def along(name: str) -> ir.Value | None:
        found = e.optional(op, name)
        return None if found is None else e.op("Reshape", found, e.ints(-1, *[1] * (rank - 2)))

    mean, variance = along("running_mean"), along("running_var")
    x = x if mean is None else e.op("Sub", x, mean)
    variance = e.scalar(1, dtype) if variance is None else variance
    x = e.op("Div", x, e.op("Sqrt", e.op("Add", variance, e.scalar(op.attr("eps"), dtype))))
    return _per_channel(e, op, x, rank)


LOWERINGS: dict[str, Lowering] = {
    "aten.layer_norm": Lowering(_layer_norm, ("LayerNormalization",)),
    "aten.rms_norm": Lowering(_rms_norm),
    "aten.group_norm": Lowering(_group_norm),
    "aten.batch_norm": Lowering(_batch_norm, ("BatchNormalization",)),
}
