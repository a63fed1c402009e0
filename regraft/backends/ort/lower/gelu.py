"""GELU, together with the bias in front of it: a pass less over what a layer makes."""

from __future__ import annotations

import math

import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering, constant_of
from regraft.backends.ort.lower.elementwise import dtype_of
from regraft.backends.ort.lower.matmul import linear
from regraft.ir import DType, Op, Value


def gelu(
    e: Emitter,
    x: ir.Value,
    dtype: DType,
    approximate: str,
    bias: ir.Value | None = None,
    is_scalar: bool = False,
) -> ir.Value:
    """GELU of ``x + bias``, for a bias of one axis, the last of ``x``; ``is_scalar``: x has no axes."""
    if takes_bias(e, dtype, approximate) and not is_scalar:
        return e.contrib("FastGelu", x, bias)
    if bias is not None:
        x = e.op("Add", x, bias)
    if dtype == DType.F32:
        return e.op("Gelu", x, approximate=approximate)
    assert approximate == "tanh", "supports() lets f64 pass for the tanh form only"
    cube = e.op("Mul", e.op("Mul", x, x), x)
    inner = e.op("Add", x, e.op("Mul", cube, e.scalar(0.044715, dtype)))
    bent = e.op("Tanh", e.op("Mul", inner, e.scalar(math.sqrt(2 / math.pi), dtype)))
    return e.op("Mul", e.op("Mul", x, e.scalar(0.5, dtype)), e.op("Add", bent, e.scalar(1, dtype)))


def takes_bias(e: Emitter, dtype: DType, approximate: str) -> bool:
    """Whether the kernel adds a bias as well. (``BiasGelu``, for the exact form, gains nothing.)"""
    return e.contrib_allowed and dtype == DType.F32 and approximate == "tanh"


def _gelu(e: Emitter, op: Op) -> ir.Value:
    value, dtype, approximate = op.operand("self"), dtype_of(op), op.attr("approximate")
    is_scalar = not value.tensor.rank
    if takes_bias(e, dtype, approximate) and len(value.uses) == 1 and not is_scalar:
        x, bias = _without_bias(e, value, dtype)
    else:
        x, bias = e.get(value), None
    return gelu(e, x, dtype, approximate, bias, is_scalar)


def _without_bias(e: Emitter, value: Value, dtype: DType) -> tuple[ir.Value, ir.Value | None]:
    """``(x, bias)`` of which ``value`` is the sum; ``value`` and None when it is no such sum."""
    made = value.op
    if made is not None and made.name == "aten.linear" and value.tensor.rank > 2:
        x, bias = made.operand("input"), e.optional(made, "bias")
        return linear(e, e.get(x), x.tensor.shape, made.operand("weight"), None, dtype), bias
    if made is not None and made.name == "aten.add.Tensor" and made.attr("alpha") == 1:
        for x, bias in (made.operands, reversed(made.operands)):
            width = value.tensor.shape[-1:]
            if constant_of(bias) and bias.tensor.shape == width == x.tensor.shape[-1:]:
                return e.get(x), e.get(bias)
    return e.get(value), None


def _check(op: Op) -> str | None:
    if dtype_of(op) == DType.F64 and op.attr("approximate") != "tanh":
        return "ONNX Runtime has no f64 kernel for Erf"
    return None


LOWERINGS: dict[str, Lowering] = {
    "aten.gelu": Lowering(_gelu, check=_check),
}
