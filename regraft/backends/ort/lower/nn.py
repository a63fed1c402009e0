"""Norms, convolutions, pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


# -- convolution and pooling -------------------------------------------------------------------


def _spread(value: tuple[int, ...], count: int) -> list[int]:
    return list(value) * count if len(value) == 1 else list(value)


def _batched(e: Emitter, x: ir.Value, rank: int, full: int) -> ir.Value:
    """``x`` with a batch axis."""
    return x if rank == full else e.op("Unsqueeze", x, e.ints(0))


def _unbatched(e: Emitter, x: ir.Value, rank: int, full: int) -> ir.Value:
    return x if rank == full else e.op("Squeeze", x, e.ints(0))


def _conv(e: Emitter, op: Op) -> ir.Value:
    rank, full = op.operand("input").tensor.rank, op.operand("weight").tensor.rank
    count = full - 2
    pads = _spread(op.attr("padding"), count)
    x = _batched(e, e.operand(op, "input"), rank, full)
    result = e.op(
        "Conv",
        x,
        e.operand(op, "weight"),
        e.optional(op, "bias"),
        strides=_spread(op.attr("stride"), count),
        dilations=_spread(op.attr("dilation"), count),
        pads=[*pads, *pads],
        group=op.attr("groups"),
    )
    return _unbatched(e, result, rank, full)


def _pool(op_type: str) -> Lowering:
    def emit(e: Emitter, op: Op) -> ir.Value:
        rank, kernel, pads = op.operand("self").tensor.rank, *_window(op)
        attrs = {
            "kernel_shape": kernel,
            "strides": _spread(op.attr("stride"), 2) if op.attr("stride") else kernel,
            "pads": [*pads, *pads],
            "ceil_mode": int(op.attr("ceil_mode")),
        }
        override: Any = op.attrs.get("divisor_override")
        if "dilation" in op.attrs:
            attrs["dilations"] = _spread(op.attr("dilation"), 2)
        else:
            attrs["count_include_pad"] = int(op.attr("count_include_pad") or override is not None)
        result = e.op(op_type, _batched(e, e.operand(op, "self"), rank, 4), **attrs)
        if override is not None:
            result = e.op("Mul", result, e.scalar(kernel[0] * kernel[1] / override, dtype_of(op)))
        return _unbatched(e, result, rank, 4)

    return Lowering(emit, (op_type,), check=_pool_check)


def _window(op: Op) -> tuple[list[int], list[int]]:
    return _spread(op.attr("kernel_size"), 2), _spread(op.attr("padding"), 2)


def _pool_check(op: Op) -> str | None:
    # A divisor of one's own counts clipped windows whole; ONNX Runtime clips what ceil_mode adds.
    if op.attr("ceil_mode") and op.attrs.get("divisor_override") is not None:
        return "divisor_override together with ceil_mode"
    return None


def _adaptive_pool(e: Emitter, op: Op) -> ir.Value:
    """A mean where the output is 1, else a product with a matrix of weights for each axis."""
    x, dtype = e.operand(op, "self"), dtype_of(op)
    shape, sizes = op.operand("self").tensor.shape, op.result.tensor.shape[-2:]
    if sizes == (1, 1):
        return e.op("ReduceMean", x, e.ints(-2, -1), keepdims=1)
    kind = np.float64 if dtype == DType.F64 else np.float32
    rows, columns = (_bins(i, o).astype(kind) for i, o in zip(shape[-2:], sizes, strict=True))
    return e.op("MatMul", e.op("MatMul", e.array(rows), x), e.array(columns.T))


def _bins(size: Dim, count: Dim) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Row i averages torch's i-th bin of ``size`` elements."""
    assert isinstance(size, int), "supports() checks it"
    assert isinstance(count, int), "supports() checks it"
    matrix = np.zeros((count, size))
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def _adaptive_check(op: Op) -> str | None:
    sizes = (*op.operand("self").tensor.shape[-2:], *op.result.tensor.shape[-2:])
    if op.result.tensor.shape[-2:] != (1, 1) and not all(isinstance(s, int) for s in sizes):
        return "an adaptive pool of symbolic sizes"
    return None


LOWERINGS: dict[str, Lowering] = {
    "aten.layer_norm": Lowering(_layer_norm, ("LayerNormalization",)),
    "aten.rms_norm": Lowering(_rms_norm),
    "aten.group_norm": Lowering(_group_norm),
    "aten.batch_norm": Lowering(_batch_norm, ("BatchNormalization",)),
    "aten.conv1d": Lowering(_conv, ("Conv",)),
    "aten.conv2d": Lowering(_conv, ("Conv",)),
    "aten.max_pool2d": _pool("MaxPool"),
    "aten.avg_pool2d": _pool("AveragePool"),
    "aten.adaptive_avg_pool2d": Lowering(_adaptive_pool, check=_adaptive_check),
}
