"""Arithmetic, comparisons, logic, selection and casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from regraft.backends.ort.dtypes import carrier
from regraft.backends.ort.emit import Emit, Emitter, Lowering
from regraft.ir import DType, Op

#: ``rule(e, x, dtype)``: the op on one value of type ``dtype`` (a carrier).
UnaryRule = Callable[[Emitter, ir.Value, DType], ir.Value]


def dtype_of(op: Op, index: int = 0) -> DType:
    """The type in which the operand ``index`` travels."""
    return carrier(op.operands[index].tensor.dtype)


def unary(rule: UnaryRule, *kernels: str) -> Lowering:
    return Lowering(lambda e, op: rule(e, e.get(op.operands[0]), dtype_of(op)), kernels)


def node(op_type: str, **attrs: Any) -> Lowering:
    """The op is the ONNX op ``op_type``."""
    return unary(lambda e, x, t: e.kernel(op_type, t, x, **attrs), op_type)


def rounding(op_type: str) -> Lowering:
    """Rounds floats; integers are round already."""
    return unary(lambda e, x, t: e.kernel(op_type, t, x) if t.is_float else x)


# -- functions of one value --------------------------------------------------------------------


def expm1(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    """``tanh(x/2) * (exp(x) + 1)``, which keeps its digits near zero."""
    half = e.kernel("Tanh", dtype, e.op("Mul", x, e.scalar(0.5, dtype)))
    return e.op("Mul", half, e.op("Add", e.op("Exp", x), e.scalar(1, dtype)))


def softplus(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    """``log(1 + exp(x))`` without overflow, and with its digits where it is small."""
    if dtype == DType.F32:
        return e.op("Softplus", x)
    small = e.op("Exp", e.op("Neg", e.op("Abs", x)))
    return e.op("Add", e.op("Max", x, e.scalar(0, dtype)), log1p(e, small, dtype))


def silu(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    if e.contrib_allowed and dtype == DType.F32:
        return e.contrib("QuickGelu", x, alpha=1.0)
    return e.op("Mul", x, e.op("Sigmoid", x))


def relu(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Relu", x) if dtype.is_float else e.kernel("Max", dtype, x, e.scalar(0, dtype))


def trunc(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    if not dtype.is_float:
        return x
    negative = e.op("Less", x, e.scalar(0, dtype))
    return e.op("Where", negative, e.op("Ceil", x), e.op("Floor", x))


def _hard_gate(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    """``clip(x + 3, 0, 6) / 6``."""
    if dtype == DType.F32:
        return e.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    shifted = e.op("Add", x, e.scalar(3, dtype))
    return e.op("Div", e.op("Clip", shifted, e.scalar(0, dtype), e.scalar(6, dtype)), e.scalar(6, dtype))


def _isnan(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    if dtype.is_float:
        return e.op("IsNaN", x)
    return e.op("Not", e.kernel("Equal", dtype, x, x, keep=False))


def _not(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Not" if dtype == DType.BOOL else "BitwiseNot", x)


def _sign(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    if dtype == DType.BOOL:
        return x
    sign = e.op("Sign", x)
    if not dtype.is_float:
        return sign
    return e.op("Where", e.op("IsNaN", x), e.scalar(0, dtype), sign)  # ONNX Runtime's is 1


def _rsqrt(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Reciprocal", e.op("Sqrt", x))


def _mish(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Mul", x, e.op("Tanh", softplus(e, x, dtype)))


def _log2(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    return e.op("Mul", e.op("Log", x), e.scalar(1 / math.log(2), dtype))


def log1p(e: Emitter, x: ir.Value, dtype: DType) -> ir.Value:
    """``log(u) * (x / (u - 1))`` for ``u = 1 + x``: the rounding of ``u`` cancels."""
    one = e.scalar(1, dtype)
    u = e.op("Add", x, one)
    rest = e.op("Sub", u, one)
    exact = e.op("Or", e.op("Equal", rest, e.scalar(0, dtype)), e.op("IsInf", u))
    found = e.op("Mul", e.op("Log", u), e.op("Div", x, rest))
    return e.op("Where", exact, x, found)


# -- with attributes ---------------------------------------------------------------------------


def _elu(e: Emitter, op: Op) -> ir.Value:
    x, dtype = e.operand(op, "self"), dtype_of(op)
    alpha, scale, inner = op.attr("alpha"), op.attr("scale"), op.attr("input_scale")
    bent = expm1(e, _times(e, x, inner, dtype), dtype)
    positive = e.op("Greater", x, e.scalar(0, dtype))
    return e.op("Where", positive, _times(e, x, scale, dtype), _times(e, bent, alpha * scale, dtype))


def _times(e: Emitter, x: ir.Value, factor: Any, dtype: DType) -> ir.Value:
    return x if factor == 1 else e.op("Mul", x, e.scalar(factor, dtype))


def _leaky_relu(e: Emitter, op: Op) -> ir.Value:
    x, dtype, slope = e.operand(op, "self"), dtype_of(op), op.attr("negative_slope")
    if dtype == DType.F32:
        return e.op("LeakyRelu", x, alpha=float(slope))
    return e.op("Where", e.op("Less", x, e.scalar(0, dtype)), e.op("Mul", x, e.scalar(slope, dtype)), x)


#: In f32, x + log(1 + exp(-x)) is x from here on, and from somewhat earlier.
_BENT = 18


def _softplus(e: Emitter, op: Op) -> ir.Value:
    x, dtype, beta, threshold = e.operand(op, "self"), dtype_of(op), op.attr("beta"), op.attr("threshold")
    scaled = _times(e, x, beta, dtype)
    bent = _times(e, softplus(e, scaled, dtype), 1 / beta, dtype)
    if dtype == DType.F32 and e.target.shared and beta == 1 and threshold >= _BENT:
        return bent  # beyond the threshold ONNX Runtime's kernel gives x itself
    return e.op("Where", e.op("Greater", scaled, e.scalar(threshold, dtype)), x, bent)


def _clamp(e: Emitter, op: Op) -> ir.Value:
    x, dtype = e.operand(op, "self"), dtype_of(op)
    low, high = op.attr("min"), op.attr("max")
    if dtype == DType.F32:  # one pass, which a convolution before it takes in
        bounds = [None if bound is None else e.scalar(bound, dtype) for bound in (low, high)]
        return e.op("Clip", x, *bounds)
    if low is not None:
        x = e.kernel("Max", dtype, x, e.scalar(low, dtype))
    # min after max: where the two cross, torch gives max.
    return x if high is None else e.kernel("Min", dtype, x, e.scalar(high, dtype))


# -- two values --------------------------------------------------------------------------------


def binary(op_type: str, on_bool: str = "") -> Lowering:
    """The ONNX op ``op_type`` of two values, ``on_bool`` for bools."""

    def emit(e: Emitter, op: Op) -> ir.Value:
        a, b = (e.get(v) for v in op.operands)
        return arithmetic(e, op_type, on_bool, a, b, dtype_of(op))

    return Lowering(emit)


def with_scalar(op_type: str, on_bool: str = "", attr: str = "other") -> Lowering:
    """The same with a scalar attribute as second value."""

    def emit(e: Emitter, op: Op) -> ir.Value:
        dtype = dtype_of(op)
        return arithmetic(e, op_type, on_bool, e.get(op.operands[0]), e.scalar(op.attr(attr), dtype), dtype)

    return Lowering(emit)


def arithmetic(e: Emitter, op_type: str, on_bool: str, a: ir.Value, b: ir.Value, dtype: DType) -> ir.Value:
    if dtype == DType.BOOL and on_bool:
        return e.op(on_bool, a, b)
    return e.kernel(op_type, dtype, a, b)


def _alpha(op_type: str, on_bool: str = "") -> Emit:
    """``self op alpha * other``."""

    def emit(e: Emitter, op: Op) -> ir.Value:
        dtype = dtype_of(op)
        a = e.get(op.operands[0])
        alpha = op.attr("alpha")
        if len(op.operands) == 2:
            b = e.get(op.operands[1])
            b = b if alpha == 1 else e.kernel("Mul", dtype, b, e.scalar(alpha, dtype))
        else:
            b = e.scalar(op.attr("other") * alpha, dtype)
        return arithmetic(e, op_type, on_bool, a, b, dtype)

    return emit


def second(e: Emitter, op: Op) -> ir.Value:
    """The second value of an op with a tensor or a scalar there."""
    return e.get(op.operands[1]) if len(op.operands) == 2 else e.scalar(op.attr("other"), dtype_of(op))


def _division(e: Emitter, op: Op) -> ir.Value:
    a, b, dtype = e.get(op.operands[0]), second(e, op), dtype_of(op)
    mode = op.attrs.get("rounding_mode")
    if mode is None:
        return e.op("Div", a, b)
    if dtype.is_float:
        quotient = e.op("Div", a, b)
        return trunc(e, quotient, dtype) if mode == "trunc" else _floor_quotient(e, op, a, b)
    b = nonzero(e, op, b, dtype)
    return _floor_division(e, a, b, dtype) if mode == "floor" else e.kernel("Div", dtype, a, b)


def _floor_division(e: Emitter, a: ir.Value, b: ir.Value, dtype: DType) -> ir.Value:
    """The quotient of integers: what is left without the remainder may be beyond the least of few bits."""
    wide = DType.I64 if dtype.kind == "int" else dtype
    a, b = e.cast(a, dtype, wide), e.cast(b, dtype, wide)
    quotient = e.kernel("Div", wide, e.kernel("Sub", wide, a, e.op("Mod", a, b)), b)
    return e.cast(quotient, wide, dtype)


def nonzero(e: Emitter, op: Op, divisor: ir.Value, dtype: DType) -> ir.Value:
    """``divisor`` with zeros replaced: an integer division by zero kills the process."""
    if len(op.operands) == 1 and op.attr("other") != 0:
        return divisor
    zero = e.kernel("Equal", dtype, divisor, e.scalar(0, dtype), keep=False)
    return select(e, zero, e.scalar(1, dtype), divisor, dtype)


def _floor_quotient(e: Emitter, op: Op, a: ir.Value, b: ir.Value) -> ir.Value:
    """``floor(a / b)`` from the exact remainder: the quotient alone may round up to the next integer."""
    dtype = dtype_of(op)
    rest, wrong = _truncated_mod(e, a, b, dtype)
    whole = e.op("Round", e.op("Div", e.op("Sub", a, rest), b))
    whole = e.op("Where", wrong, e.op("Sub", whole, e.scalar(1, dtype)), whole)
    if len(op.operands) == 1 and op.attr("other") != 0:
        return whole
    return e.op("Where", e.op("Equal", b, e.scalar(0, dtype)), e.op("Div", a, b), whole)


def _truncated_mod(e: Emitter, a: ir.Value, b: ir.Value, dtype: DType) -> tuple[ir.Value, ir.Value]:
    """The remainder with the dividend's sign, and where that is not the divisor's."""
    rest = e.op("Mod", a, b, fmod=1)
    zero = e.scalar(0, dtype)
    differ = e.op("Xor", e.op("Less", rest, zero), e.op("Less", b, zero))
    return rest, e.op("And", differ, e.op("Not", e.op("Equal", rest, zero)))


def _float_mod(e: Emitter, a: ir.Value, b: ir.Value, dtype: DType) -> ir.Value:
    """The remainder with the divisor's sign; ONNX has only the dividend's for floats."""
    rest, wrong = _truncated_mod(e, a, b, dtype)
    return e.op("Where", wrong, e.op("Add", rest, b), rest)


def _remainder(e: Emitter, op: Op) -> ir.Value:
    a, b, dtype = e.get(op.operands[0]), second(e, op), dtype_of(op)
    if dtype.is_float:
        return _float_mod(e, a, b, dtype)
    return e.op("Mod", a, nonzero(e, op, b, dtype))


def _power(e: Emitter, op: Op) -> ir.Value:
    x, dtype, exponent = e.operand(op, "self"), dtype_of(op), op.attr("exponent")
    if exponent in (2, 3):
        square = e.kernel("Mul", dtype, x, x)
        return square if exponent == 2 else e.kernel("Mul", dtype, square, x)
    if exponent == 1:
        return x
    if not dtype.is_float and exponent > 0:
        return _integer_power(e, x, int(exponent), dtype)
    if dtype.is_float and exponent in (0.5, -0.5, -1):
        root = x if exponent == -1 else e.op("Sqrt", x)
        return root if exponent == 0.5 else e.op("Reciprocal", root)
    return e.kernel("Pow", dtype, x, e.scalar(exponent, dtype))


def _integer_power(e: Emitter, x: ir.Value, exponent: int, dtype: DType) -> ir.Value:
    """By squaring: ONNX Runtime's own power of integers goes through f64 and loses digits."""
    result: ir.Value | None = None
    while True:
        if exponent % 2:
            result = x if result is None else e.kernel("Mul", dtype, result, x)
        exponent //= 2
        if not exponent:
            assert result is not None, "the exponent is positive"
            return result
        x = e.kernel("Mul", dtype, x, x)


def _power_check(op: Op) -> str | None:
    return "ONNX Runtime computes powers of i64 in f64" if dtype_of(op) == DType.I64 else None


def _power_of_scalar(e: Emitter, op: Op) -> ir.Value:
    dtype = dtype_of(op)
    return e.kernel("Pow", dtype, e.scalar(op.attr("self"), dtype), e.operand(op, "exponent"))


def _atan2(e: Emitter, op: Op) -> ir.Value:
    y, x = e.inputs_of(op)
    dtype = dtype_of(op)
    zero, pi, right = (e.scalar(v, dtype) for v in (0, math.pi, math.pi / 2))
    below = e.op("Less", y, zero)
    left = e.op("Where", below, e.op("Neg", pi), pi)
    angle = e.op("Atan", e.op("Div", y, x))
    angle = e.op("Where", e.op("Less", x, zero), e.op("Add", angle, left), angle)
    upright = e.op("Where", below, e.op("Neg", right), e.op("Where", e.op("Equal", y, zero), zero, right))
    on_axis = e.op("And", e.op("Equal", x, zero), e.op("Not", e.op("IsNaN", y)))
    return e.op("Where", on_axis, upright, angle)


# -- comparisons, logic, selection -------------------------------------------------------------


def comparison(op_type: str, negate: bool = False) -> Lowering:
    def emit(e: Emitter, op: Op) -> ir.Value:
        found = e.kernel(op_type, dtype_of(op), e.get(op.operands[0]), second(e, op), keep=False)
        return e.op("Not", found) if negate else found

    return Lowering(emit, (op_type,))


def bitwise(name: str) -> Lowering:
    def emit(e: Emitter, op: Op) -> ir.Value:
        a, b = e.inputs_of(op)
        return e.op(name if dtype_of(op) == DType.BOOL else f"Bitwise{name}", a, b)

    return Lowering(emit)


def select(e: Emitter, condition: ir.Value, a: ir.Value, b: ir.Value, dtype: DType) -> ir.Value:
    """``a`` where ``condition`` holds, else ``b``."""
    wide = e.wide("Where", dtype)
    chosen = e.op("Where", condition, e.cast(a, dtype, wide), e.cast(b, dtype, wide))
    return e.cast(chosen, wide, dtype)


def _where(e: Emitter, op: Op) -> ir.Value:
    condition, a, b = e.inputs_of(op)
    return select(e, condition, a, b, dtype_of(op, 1))


def _to_copy(e: Emitter, op: Op) -> ir.Value:
    source, to = dtype_of(op), carrier(op.result.tensor.dtype)
    x = e.operand(op, "self")
    if to == DType.BOOL and source.is_float:  # ONNX Runtime's own cast calls nan false
        return e.op("Not", e.op("Equal", x, e.scalar(0, source)))
    if _rounds(op.operand("self").tensor.dtype, op.result.tensor.dtype):
        return e.cast(e.cast(x, source, op.result.tensor.dtype), op.result.tensor.dtype, to)
    return e.cast(x, source, to)


def _rounds(source: DType, to: DType) -> bool:
    """Whether ``to``, of 16 bits, lacks values of ``source``: in its carrier they would survive."""
    exact = (to, DType.BOOL, DType.U8, DType.I8)
    return to in (DType.F16, DType.BF16) and source not in exact


_COMPARISONS = {
    "eq": comparison("Equal"),
    "ne": comparison("Equal", negate=True),
    "lt": comparison("Less"),
    "le": comparison("LessOrEqual"),
    "gt": comparison("Greater"),
    "ge": comparison("GreaterOrEqual"),
}

_NODES = {"abs": "Abs", "neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos"}

LOWERINGS: dict[str, Lowering] = {
    **{f"aten.{name}": node(op_type) for name, op_type in _NODES.items()},
    "aten.tanh": node("Tanh"),
    "aten.sigmoid": node("Sigmoid"),
    "aten.reciprocal": node("Reciprocal"),
    "aten.erf": node("Erf"),
    "aten.sign": unary(_sign),
    "aten.relu": unary(relu),
    "aten.floor": rounding("Floor"),
    "aten.ceil": rounding("Ceil"),
    "aten.round": rounding("Round"),
    "aten.trunc": unary(trunc),
    "aten.isnan": unary(_isnan),
    "aten.bitwise_not": unary(_not),
    "aten.exp2": unary(lambda e, x, t: e.op("Pow", e.scalar(2, t), x)),
    "aten.expm1": unary(expm1),
    "aten.log2": unary(_log2),
    "aten.log1p": unary(log1p),
    "aten.rsqrt": unary(_rsqrt),
    "aten.silu": unary(silu),
    "aten.mish": unary(_mish),
    "aten.hardsigmoid": unary(_hard_gate),
    "aten.hardswish": unary(lambda e, x, t: e.op("Mul", x, _hard_gate(e, x, t))),
    "aten.elu": Lowering(_elu),
    "aten.leaky_relu": Lowering(_leaky_relu),
    "aten.softplus": Lowering(_softplus),
    "aten.clamp": Lowering(_clamp),
    "aten.add.Tensor": Lowering(_alpha("Add", "Or")),
    "aten.add.Scalar": Lowering(_alpha("Add", "Or")),
    "aten.sub.Tensor": Lowering(_alpha("Sub")),
    "aten.mul.Tensor": binary("Mul", "And"),
    "aten.mul.Scalar": with_scalar("Mul", "And"),
    "aten.div.Tensor": Lowering(_division),
    "aten.div.Scalar": Lowering(_division),
    "aten.div.Tensor_mode": Lowering(_division),
    "aten.div.Scalar_mode": Lowering(_division),
    "aten.remainder.Tensor": Lowering(_remainder),
    "aten.remainder.Scalar": Lowering(_remainder),
    "aten.maximum": binary("Max", "Or"),
    "aten.minimum": binary("Min", "And"),
    "aten.pow.Tensor_Scalar": Lowering(_power, ("Pow",)),
    "aten.pow.Tensor_Tensor": Lowering(binary("Pow").emit, ("Pow",), check=_power_check),
    "aten.pow.Scalar": Lowering(_power_of_scalar, ("Pow",), check=_power_check),
    "aten.atan2": Lowering(_atan2, ("Atan",)),
    **{f"aten.{name}.{kind}": rule for name, rule in _COMPARISONS.items() for kind in ("Tensor", "Scalar")},
    "aten.bitwise_and.Tensor": bitwise("And"),
    "aten.bitwise_or.Tensor": bitwise("Or"),
    "aten.bitwise_xor.Tensor": bitwise("Xor"),
    "aten.where.self": Lowering(_where),
    "aten._to_copy": Lowering(_to_copy),
}
