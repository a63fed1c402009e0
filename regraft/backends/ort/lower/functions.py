"""Mathematical functions. ONNX Runtime computes most of them in f32 only; in f64 they are spelled out."""

from __future__ import annotations

import math

import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import UnaryRule, dtype_of, log1p, node, nonzero, second, unary
from regraft.ir import DType, Op


def _in_f32(op_type: str, spelled: UnaryRule) -> Lowering:
    """The kernel ``op_type`` in f32, else ``spelled``."""
    return unary(lambda e, x, t: e.op(op_type, x) if t == DType.F32 else spelled(e, x, t))


def _tan(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Div", e.op("Sin", x), e.op("Cos", x))


def _sinh(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    """``2 sinh(x/2) cosh(x/2)`` by ``tanh(x/2)``: nothing cancels near zero, nor overflows before it must."""
    half = e.op("Mul", x, e.scalar(0.5, dtype))
    twice = e.op("Add", e.op("Exp", half), e.op("Exp", e.op("Neg", half)))
    return e.op("Mul", e.op("Mul", e.op("Tanh", half), e.op("Mul", twice, e.scalar(0.5, dtype))), twice)


def _cosh(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Mul", e.op("Add", e.op("Exp", x), e.op("Exp", e.op("Neg", x))), e.scalar(0.5, dtype))


#: Beyond, 1 is nothing beside the square of a number of f64, which overflows later on.
_LARGE = 2.0**28


def _asinh(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    """``log(|x| + sqrt(x² + 1))``, the sum as ``1 + (|x| + x² / (1 + sqrt(x² + 1)))``."""
    size, one = e.op("Abs", x), e.scalar(1, dtype)
    root = e.op("Sqrt", e.op("Add", e.op("Mul", x, x), one))
    rest = e.op("Mul", size, e.op("Div", size, e.op("Add", root, one)))
    usual = log1p(e, e.op("Add", size, rest), dtype)
    large = e.op("Add", e.op("Log", size), e.scalar(math.log(2), dtype))
    found = e.op("Where", e.op("Greater", size, e.scalar(_LARGE, dtype)), large, usual)
    return e.op("Mul", e.op("Sign", x), found)


def _acosh(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    root = e.op("Sqrt", e.op("Sub", e.op("Mul", x, x), e.scalar(1, dtype)))
    return e.op("Log", e.op("Add", x, root))


def _atanh(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    """``log((1 + |x|) / (1 - |x|)) / 2``, the quotient as ``1 + 2|x| / (1 - |x|)``."""
    size = e.op("Abs", x)
    rest = e.op("Div", e.op("Add", size, size), e.op("Sub", e.scalar(1, dtype), size))
    half = e.op("Mul", log1p(e, rest, dtype), e.scalar(0.5, dtype))
    return e.op("Mul", e.op("Sign", x), half)


def _log10(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Mul", e.op("Log", x), e.scalar(0.4342944819032518, dtype))


def _fmod(e: Emitter, op: Op) -> ir.Value:
    """The remainder with the dividend's sign."""
    a, b, dtype = e.get(op.operands[0]), second(e, op), dtype_of(op)
    return e.op("Mod", a, b if dtype.is_float else nonzero(e, op, b, dtype), fmod=1)


LOWERINGS: dict[str, Lowering] = {
    "aten.tan": _in_f32("Tan", _tan),
    "aten.sinh": _in_f32("Sinh", _sinh),
    "aten.cosh": _in_f32("Cosh", _cosh),
    "aten.asinh": _in_f32("Asinh", _asinh),
    "aten.acosh": _in_f32("Acosh", _acosh),
    "aten.atanh": _in_f32("Atanh", _atanh),
    "aten.asin": node("Asin"),
    "aten.acos": node("Acos"),
    "aten.atan": node("Atan"),
    "aten.log10": unary(_log10),
    "aten.fmod.Tensor": Lowering(_fmod),
    "aten.fmod.Scalar": Lowering(_fmod),
}
