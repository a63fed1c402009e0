"""Mathematical functions of one or two values, most of them spellings over arithmetic."""

from __future__ import annotations

import math
from typing import Any

from regraft.ir.dtypes import DType
from regraft.ir.opdef import CallSite, InferRule, OpDef, Trait
from regraft.ir.ops.create import as_scalar, full
from regraft.ir.ops.elementwise import DIVIDES, binary, bits, floating, with_scalar
from regraft.ir.ops.rules import (
    ELEMENTWISE,
    broadcast_type,
    define,
    one,
    per_result,
    require,
    require_float,
    same_dtype,
    same_float_type,
    spelling,
)
from regraft.ir.types import TensorType

# -- type rules --------------------------------------------------------------------------------


def _to_bool(site: CallSite) -> TensorType:
    return site.type("self").with_dtype(DType.BOOL)


def _clamp_by_tensor(bound: str) -> InferRule:
    def infer(site: CallSite) -> TensorType:
        types = (site.type("self"), site.type(bound))
        return broadcast_type(site, types, same_dtype(site, types))

    return infer


def _prelu(site: CallSite) -> TensorType:
    types = (require_float(site, "self"), site.type("weight"))
    return broadcast_type(site, types, same_dtype(site, types))


def _shift(rule: InferRule) -> InferRule:
    def infer(site: CallSite) -> Any:
        require(site.type("self").dtype.is_integer, site, f"{site.type('self').dtype} cannot be shifted")
        return rule(site)

    return infer


# -- decompositions ----------------------------------------------------------------------------

#: The least number that is rounded to infinity in f16: halfway between 65504 and the next power of two.
_ROUNDED_TO_INFINITY = 65520.0


def _number(b: Any, value: Any, like: Any) -> Any:
    dtype = like.tensor.dtype
    return b.aten.full((), as_scalar(value, dtype), dtype=dtype)


def _sign_bit(b: Any, x: Any) -> Any:
    """Negative numbers and -0.0, whose reciprocal is -inf. A nan counts as positive."""
    if x.tensor.dtype == DType.BOOL:
        return b.aten.full(x.tensor.shape, False, dtype=DType.BOOL)
    negative = b.aten.lt.Scalar(x, 0)
    if not x.tensor.dtype.is_float:
        return negative
    return b.aten.bitwise_or.Tensor(negative, b.aten.eq.Scalar(b.aten.reciprocal(x), -math.inf))


def _is_infinite(b: Any, op: Any) -> Any:
    x = op.operand("self")
    if not x.tensor.dtype.is_float:
        return full(b, op, False)
    # A back end may compute f16 in f32: there, what f16 would round to an infinity still has a value.
    least = _ROUNDED_TO_INFINITY if x.tensor.dtype == DType.F16 else math.inf
    return b.aten.ge.Scalar(b.aten.abs(x), least)


def _copysign(b: Any, op: Any) -> Any:
    x = b.aten.abs(op.operand("self"))
    return b.aten.where.self(_sign_bit(b, op.operand("other")), b.aten.neg(x), x)


def _past_nans(name: str) -> Any:
    """The extremum of two values, where a nan gives way to a number."""

    def rule(b: Any, op: Any) -> Any:
        x, y = op.operand("self"), op.operand("other")
        found = b.call(name, (x, y), {})
        if not x.tensor.dtype.is_float:
            return found
        shape = found.tensor.shape
        found = b.aten.where.self(b.aten.isnan(y), b.aten.expand(x, shape), found)
        return b.aten.where.self(b.aten.isnan(x), b.aten.expand(y, shape), found)

    return one(rule)


def _hypot(b: Any, op: Any) -> Any:
    """``hi * sqrt(1 + (lo / hi)²)``, which does not overflow."""
    x, y = b.aten.abs(op.operand("self")), b.aten.abs(op.operand("other"))
    high, low = b.aten.maximum(x, y), b.aten.minimum(x, y)
    flat = b.aten.bitwise_or.Tensor(b.aten.eq.Scalar(high, 0), b.aten.eq.Scalar(high, math.inf))
    ratio = b.aten.div.Tensor(low, b.aten.where.self(flat, _number(b, 1, high), high))
    root = b.aten.sqrt(b.aten.add.Scalar(b.aten.mul.Tensor(ratio, ratio), 1))
    return b.aten.where.self(flat, high, b.aten.mul.Tensor(high, root))


def _round_decimals(b: Any, op: Any) -> Any:
    x, decimals = op.operand("self"), op.attr("decimals")
    if decimals == 0:
        return b.aten.round(x)
    factor = float(10 ** abs(decimals))
    first, last = (b.aten.mul, b.aten.div) if decimals > 0 else (b.aten.div, b.aten.mul)
    return last.Scalar(b.aten.round(first.Scalar(x, factor)), factor)


def _prelu_by_where(b: Any, op: Any) -> Any:
    x = op.operand("self")
    return b.aten.where.self(b.aten.gt.Scalar(x, 0), x, b.aten.mul.Tensor(x, op.operand("weight")))


def _two_to(b: Any, exponent: Any) -> Any:
    """2 to the power of integers below the number of bits, by their binary digits."""
    dtype = exponent.tensor.dtype
    power = _number(b, 1, exponent)
    digit = 1
    while digit < dtype.bits:
        factor = 1 << digit
        is_set = b.aten.ne.Scalar(b.aten.bitwise_and.Tensor(exponent, _number(b, digit, exponent)), 0)
        step = b.aten.where.self(is_set, _number(b, factor, exponent), _number(b, 1, exponent))
        power = b.aten.mul.Tensor(power, step)
        digit *= 2
    return power


def _shift_count(b: Any, op: Any) -> Any:
    return (
        op.operand("other") if "other" not in op.attrs else _number(b, op.attr("other"), op.operand("self"))
    )


def _in_range(b: Any, count: Any, last: int) -> Any:
    """Where ``0 <= count <= last``, and the counts with 0 elsewhere."""
    fits = b.aten.bitwise_and.Tensor(b.aten.ge.Scalar(count, 0), b.aten.le.Scalar(count, last))
    return fits, b.aten.where.self(fits, count, _number(b, 0, count))


def _left_shift(b: Any, op: Any) -> Any:
    x, count = op.operand("self"), _shift_count(b, op)
    fits, count = _in_range(b, count, x.tensor.dtype.bits - 1)
    return b.aten.where.self(fits, b.aten.mul.Tensor(x, _two_to(b, count)), _number(b, 0, x))


def _right_shift(b: Any, op: Any) -> Any:
    """Arithmetic: the sign fills up from the left."""
    x, count = op.operand("self"), _shift_count(b, op)
    signed = x.tensor.dtype.kind == "int"
    fits, count = _in_range(b, count, x.tensor.dtype.bits - (2 if signed else 1))
    shifted = b.aten.div.Tensor_mode(x, _two_to(b, count), rounding_mode="floor")
    filled = _number(b, 0, x)
    if signed:
        filled = b.aten.where.self(b.aten.lt.Scalar(x, 0), _number(b, -1, x), filled)
    return b.aten.where.self(fits, shifted, filled)


def _with_number(name: str) -> Any:
    """The op ``name`` of two tensors, the number as a tensor."""
    return one(
        lambda b, op: b.call(name, (op.operand("self"), _number(b, op.attr("other"), op.operand("self"))), {})
    )


def _complement(b: Any, op: Any) -> Any:
    return b.aten.add.Scalar(b.aten.neg(b.aten.erf(op.operand("self"))), 1)


# -- the table ---------------------------------------------------------------------------------


def _function(name: str, count: int = 1) -> OpDef:
    return define(f"aten.{name}(Tensor self)", same_float_type(), ELEMENTWISE, per_result(count))


def _spelled(schema: str, infer: InferRule, decompose: Any, traits: Trait = ELEMENTWISE) -> OpDef:
    return spelling(f"aten.{schema}", infer, decompose, traits)


_PAIR = "Tensor self, Tensor other"
_SCALAR = "Tensor self, Scalar other"
_FUNCTIONS = ("tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "log10")

OPS = (
    *(_function(name) for name in _FUNCTIONS),
    define(f"aten.fmod.Tensor({_PAIR})", binary(), DIVIDES, per_result()),
    define(f"aten.fmod.Scalar({_SCALAR})", with_scalar(), DIVIDES, per_result()),
    _spelled("erfc(Tensor self)", same_float_type(), one(_complement)),
    _spelled("signbit(Tensor self)", _to_bool, one(lambda b, op: _sign_bit(b, op.operand("self")))),
    _spelled("isinf(Tensor self)", _to_bool, one(_is_infinite)),
    _spelled(f"copysign.Tensor({_PAIR})", floating(binary()), one(_copysign)),
    _spelled(f"hypot({_PAIR})", floating(binary()), one(_hypot)),
    _spelled(f"fmax({_PAIR})", binary(), _past_nans("aten.maximum")),
    _spelled(f"fmin({_PAIR})", binary(), _past_nans("aten.minimum")),
    _spelled(f"max.other({_PAIR})", binary(), one(lambda b, op: b.aten.maximum(*op.operands))),
    _spelled(f"min.other({_PAIR})", binary(), one(lambda b, op: b.aten.minimum(*op.operands))),
    _spelled(
        "clamp_min.Tensor(Tensor self, Tensor min)",
        _clamp_by_tensor("min"),
        one(lambda b, op: b.aten.maximum(*op.operands)),
    ),
    _spelled(
        "clamp_max.Tensor(Tensor self, Tensor max)",
        _clamp_by_tensor("max"),
        one(lambda b, op: b.aten.minimum(*op.operands)),
    ),
    _spelled("round.decimals(Tensor self, *, int decimals)", same_float_type(), one(_round_decimals)),
    _spelled("_prelu_kernel(Tensor self, Tensor weight)", _prelu, one(_prelu_by_where)),
    _spelled(f"bitwise_left_shift.Tensor({_PAIR})", _shift(binary()), one(_left_shift)),
    _spelled(f"bitwise_right_shift.Tensor({_PAIR})", _shift(binary()), one(_right_shift)),
    *(
        _spelled(f"__{side}shift__.{kind}({params})", _shift(infer), one(rule))
        for side, rule in (("l", _left_shift), ("r", _right_shift))
        for kind, params, infer in (("Tensor", _PAIR, binary()), ("Scalar", _SCALAR, with_scalar()))
    ),
    *(
        _spelled(
            f"{name}.Scalar({_SCALAR})", bits(with_scalar()), _with_number(f"aten.bitwise_{kind}.Tensor")
        )
        for kind in ("and", "or", "xor")
        for name in (f"bitwise_{kind}", f"__{kind}__")
    ),
)
