"""Tensors from sizes and scalars, and sizes as values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from regraft.backends.ort.dtypes import carrier
from regraft.backends.ort.emit import Emitter, Lowering
from regraft.ir import DType, Expr, Op, dims

#: Ranges up to this long are written out.
_SHORT = 256


def _full(e: Emitter, op: Op) -> ir.Value:
    dtype = carrier(op.result.tensor.dtype)
    return e.expand(_number(e, op.attr("fill_value"), dtype), (), op.result.tensor.shape)


def _arange(e: Emitter, op: Op) -> ir.Value:
    dtype = carrier(op.result.tensor.dtype)
    start, end, step = (op.attr(name) for name in ("start", "end", "step"))
    (length,) = op.result.tensor.shape
    if not any(isinstance(v, Expr) for v in (start, end, step)):
        assert isinstance(length, int)
        # torch computes start + i * step; adding up steps would drift.
        values = np.arange(length, dtype=np.float64 if dtype.is_float else np.int64) * step + start
        if length <= _SHORT:
            return e.cast_array(values, dtype)
        counted = e.op("Range", *(e.scalar(v, DType.I64) for v in (0, length, 1)))
        return _affine(e, counted, start, step, dtype)
    # ONNX Runtime makes a Slice of a Gather at a Range, where negative bounds count from the end.
    if dtype in (DType.I64, DType.I32) and step > 0 and dims.le(0, start) is True:
        bounds = [_number(e, v, dtype) for v in (start, end, step)]
        return e.op("Range", *bounds)
    counted = e.op("Range", e.scalar(0, DType.I64), e.size_scalar(length), e.scalar(1, DType.I64))
    return _affine(e, counted, start, step, dtype)


def _number(e: Emitter, value: Any, dtype: DType) -> ir.Value:
    if isinstance(value, Expr):
        return e.cast(e.size_scalar(value), DType.I64, dtype)
    return e.scalar(value, dtype)


def _affine(e: Emitter, counted: ir.Value, start: Any, step: Any, dtype: DType) -> ir.Value:
    """``start + counted * step`` in ``dtype``."""
    if not dtype.is_float:
        dtype_wide = DType.I64
    else:
        dtype_wide = dtype
    x = e.cast(counted, DType.I64, dtype_wide)
    x = x if step == 1 else e.op("Mul", x, _number(e, step, dtype_wide))
    x = x if start == 0 else e.op("Add", x, _number(e, start, dtype_wide))
    return e.cast(x, dtype_wide, dtype)


def _dim_value(e: Emitter, op: Op) -> ir.Value:
    return e.size_scalar(op.attr("value"))


def _bind_dim(e: Emitter, op: Op) -> list[ir.Value]:
    (symbol,) = op.symbols
    e.define_size(symbol, e.operand(op, "x"))
    return []


LOWERINGS: dict[str, Lowering] = {
    "aten.full": Lowering(_full),
    "aten.arange.start_step": Lowering(_arange),
    "rg.dim_value": Lowering(_dim_value),
    "rg.bind_dim": Lowering(_bind_dim),
}
