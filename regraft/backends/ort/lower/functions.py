"""Mathematical functions. ONNX Runtime computes most of them in f32 only; in f64 they are spelled out."""

from __future__ import annotations

import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import UnaryRule, dtype_of, node, nonzero, second, unary
from regraft.ir import DType, Op


def _in_f32(op_type: str, spelled: UnaryRule) -> Lowering:
    """The kernel ``op_type`` in f32, else ``spelled``."""
    return unary(lambda e, x, t: e.op(op_type, x) if t == DType.F32 else spelled(e, x, t))


def _tan(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Div", e.op("Sin", x), e.op("Cos", x))


def _sinh(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Mul", e.op("Sub", e.op("Exp", x), e.op("Exp", e.op("Neg", x))), e.scalar(0.5, dtype))


def _cosh(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Mul", e.op("Add", e.op("Exp", x), e.op("Exp", e.op("Neg", x))), e.scalar(0.5, dtype))


def _asinh(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    """Of the magnitude: ``x + sqrt(x² + 1)`` cancels for a negative x."""
    size = e.op("Abs", x)
    root = e.op("Sqrt", e.op("Add", e.op("Mul", x, x), e.scalar(1, dtype)))
    return e.op("Mul", e.op("Sign", x), e.op("Log", e.op("Add", size, root)))


def _acosh(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    root = e.op("Sqrt", e.op("Sub", e.op("Mul", x, x), e.scalar(1, dtype)))
    return e.op("Log", e.op("Add", x, root))


def _atanh(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    one = e.scalar(1, dtype)
    ratio = e.op("Div", e.op("Add", one, x), e.op("Sub", one, x))
    return e.op("Mul", e.op("Log", ratio), e.scalar(0.5, dtype))


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
