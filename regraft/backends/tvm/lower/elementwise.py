"""Arithmetic, comparisons, logic, selection and casts. A function here has the scalars of one element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regraft.backends.tvm.lower.kinds import (
    Check,
    Expr,
    Index,
    Pointwise,
    accept,
    broadcast,
    highest,
    lowest,
)
from regraft.ir import DType, Op, dims
from regraft.ir import Expr as Expression

#: ``function(kernel, op, *elements)``.
Scalar = Callable[..., Expr]

FLOATS = (DType.F32, DType.F64)


def elementwise(function: Scalar, check: Check = accept) -> Pointwise:
    """An op whose element is ``function`` of the operands' elements."""

    def emit(k: Any, op: Op, index: Index) -> Expr:
        rank = op.result.tensor.rank
        return function(k, op, *[k.at(v, broadcast(index, v, rank)) for v in op.operands])

    return Pointwise(emit, check)


def _math(name: str) -> Pointwise:
    return elementwise(lambda k, op, x: getattr(k.math, name)(x))


def number(k: Any, op: Op, name: str) -> Expr:
    """The attribute ``name`` as a number of the first operand's type."""
    return k.number(op.attr(name), op.operands[0].tensor.dtype)


def _scaled(k: Any, op: Op, value: Expr) -> Expr:
    alpha = op.attr("alpha")
    return value if alpha == 1 else k.math.times(value, k.number(alpha, op.result.tensor.dtype))


def _added(k: Any, op: Op) -> Expr:
    other, alpha = op.attr("other"), op.attr("alpha")
    return number(k, op, "other") if alpha == 1 else k.number(other * alpha, op.result.tensor.dtype)


def _known_sum(op: Op) -> str | None:
    is_size = isinstance(op.attr("other"), Expression) and op.attr("alpha") != 1
    return "a size is scaled by alpha" if is_size else None


def _fits(value: object, dtype: DType) -> bool:
    """Whether the number ``value`` is one of ``dtype``; a size, any i64, is one of these."""
    if isinstance(value, Expression):
        return dtype.is_float or dtype == DType.I64
    return dtype.is_float or (isinstance(value, int) and lowest(dtype) <= value <= highest(dtype))


# -- integers ----------------------------------------------------------------------------------


def _no_zero_divisor(op: Op) -> str | None:
    """torch raises where an integer is divided by zero, and a kernel would end the process."""
    if op.result.tensor.dtype.is_float:
        return None
    divisor, dtype = op.attrs.get("other", 0), op.operands[0].tensor.dtype
    if not _fits(divisor, dtype):
        return f"{dtype} is divided by {divisor}, which is none"
    if isinstance(divisor, int) and divisor:
        return None
    if isinstance(divisor, Expression) and (dims.bounds(divisor)[0] or 0) > 0:
        return None
    return "integers are divided by a number that may be zero"


def _no_floored_number(op: Op) -> str | None:
    """TVM folds a question about numbers into a vector of bools, which it then refuses."""
    is_floored = op.result.tensor.dtype.is_float and op.attr("rounding_mode") == "floor"
    return "floats are divided by a number and rounded down" if is_floored else _no_zero_divisor(op)


def _remainder(k: Any, op: Op, x: Expr, y: Expr) -> Expr:
    """The remainder with the sign of the divisor."""
    if not op.result.tensor.dtype.is_float:
        return k.math.floormod(x, y)
    rest = k.math.fmod(x, y)
    zero = k.zero(rest)
    # The sum, were it always taken, would not be the remainder of an infinite divisor.
    wrong = k.math.both(k.math.differ(rest, zero), k.math.differ(rest < zero, y < zero))
    return k.math.select(wrong, rest + y, rest)


def _quotient(k: Any, op: Op, x: Expr, y: Expr) -> Expr:
    mode = op.attr("rounding_mode")
    if op.result.tensor.dtype.is_float:
        quotient = k.math.over(x, y)
        if mode == "trunc":
            return k.math.trunc(quotient)
        return quotient if mode is None or op.attrs.get("other") == 0 else _floored(k, op, x, y)
    return k.math.truncdiv(x, y) if mode == "trunc" else k.math.floordiv(x, y)


def _floored(k: Any, op: Op, x: Expr, y: Expr) -> Expr:
    """torch's ``x // y``: exact where the rounded quotient would already be the next integer."""
    m = k.math
    rest = k.bind(m.fmod(x, y))
    zero = k.zero(rest)
    exact = m.over(x - rest, y)
    wrong = m.both(m.differ(rest, zero), m.differ(rest < zero, y < zero))
    exact = k.bind(m.select(wrong, exact - k.one(rest), exact))
    down = k.bind(m.floor(exact))
    half = k.one(rest) / (k.one(rest) + k.one(rest))
    near = m.select(exact - down > half, down + k.one(rest), down)
    found = m.select(m.differ(exact, zero), near, zero)
    # Whether a number is zero is known here, and TVM cannot fold the question for vectors.
    return found if "other" in op.attrs else m.select(m.equal(y, zero), m.over(x, y), found)


# -- powers ------------------------------------------------------------------------------------


def _power(k: Any, op: Op, x: Expr) -> Expr:
    exponent = op.attr("exponent")
    if exponent == 1:
        return x
    if exponent == 2:
        return k.math.times(x, x)
    if exponent == 3:
        return k.math.times(k.math.times(x, x), x)
    if not op.result.tensor.dtype.is_float:
        return _integer_power(k, x, exponent)
    if exponent == 0.5:
        return k.math.sqrt(x)
    if exponent == -0.5:
        return k.math.over(k.one(x), k.math.sqrt(x))
    if exponent == -1:
        return k.math.over(k.one(x), x)
    return k.math.pow(x, number(k, op, "exponent"))


def _integer_power(k: Any, x: Expr, exponent: int) -> Expr:
    """By squaring: torch's integers wrap around, and so do these products."""
    result, square = k.one(x), x
    while exponent:
        if exponent & 1:
            result = k.bind(k.math.times(result, square))
        square = k.bind(k.math.times(square, square))
        exponent >>= 1
    return result


_MAX_INTEGER_POWER = 64


def _static_power(op: Op) -> str | None:
    exponent = op.attr("exponent")
    if op.result.tensor.dtype.is_float:
        return None
    fits = isinstance(exponent, int) and 0 <= exponent <= _MAX_INTEGER_POWER
    return None if fits else f"an integer is raised to {exponent}"


def _float_result(op: Op) -> str | None:
    return None if op.result.tensor.dtype.is_float else f"a power of {op.result.tensor.dtype} tensors"


# -- activations -------------------------------------------------------------------------------


def relu(k: Any, op: Op, x: Expr) -> Expr:
    return k.math.select(x < k.zero(x), k.zero(x), x)  # nan is no less than zero, and stays


def silu(k: Any, op: Op, x: Expr) -> Expr:
    return k.math.silu(x)


def gelu(k: Any, op: Op, x: Expr) -> Expr:
    return k.math.gelu_tanh(x) if op.attr("approximate") == "tanh" else k.math.gelu(x)


def _elu(k: Any, op: Op, x: Expr) -> Expr:
    alpha, scale, inner = (number(k, op, name) for name in ("alpha", "scale", "input_scale"))
    return k.math.select(x > k.zero(x), x * scale, k.math.expm1(x * inner) * (alpha * scale))


def _leaky(k: Any, op: Op, x: Expr) -> Expr:
    return k.math.select(x > k.zero(x), x, k.math.times(x, number(k, op, "negative_slope")))


def _softplus(k: Any, op: Op, x: Expr) -> Expr:
    beta, threshold = number(k, op, "beta"), number(k, op, "threshold")
    scaled = k.bind(x * beta)
    return k.math.select(scaled > threshold, x, k.math.log1p(k.math.exp(scaled)) / beta)


def _mish(k: Any, op: Op, x: Expr) -> Expr:
    """``x * tanh(log(1 + e^x))`` without the logarithm: ``tanh(log(t)) = (t² - 1) / (t² + 1)``.

    That is 1 to the last bit of f64 from 20 on.
    """
    m, one = k.math, k.one(x)
    capped = m.select(x > k.like(20.0, x), k.like(20.0, x), x)
    e = k.bind(m.exp(capped))
    squared = k.bind(e * (e + one + one))  # t² - 1 for t = 1 + e^x
    return x * (squared / (squared + one + one))


def _hard(k: Any, x: Expr) -> Expr:
    """``clamp(x + 3, 0, 6) / 6``."""
    shifted = k.bind(x + k.like(3.0, x))
    low = k.bind(k.math.select(shifted < k.zero(x), k.zero(x), shifted))
    return k.math.select(low > k.like(6.0, x), k.like(6.0, x), low) / k.like(6.0, x)


def _clamp(k: Any, op: Op, x: Expr) -> Expr:
    low, high = op.attr("min"), op.attr("max")
    dtype = op.result.tensor.dtype
    if low is not None:
        bound = k.number(low, dtype)
        x = k.bind(k.math.select(x < bound, bound, x))
    if high is not None:
        bound = k.number(high, dtype)
        x = k.math.select(x > bound, bound, x)
    return x


def _sign(k: Any, op: Op, x: Expr) -> Expr:
    m, zero, one = k.math, k.zero(x), k.one(x)
    minus = zero - one
    return m.select(x > zero, one, m.select(x < zero, minus, zero))


def _signed(op: Op) -> str | None:
    dtype = op.operands[0].tensor.dtype
    return f"the sign of {dtype}" if dtype in (DType.BOOL, DType.U8) else None


# -- extrema, logic, casts ---------------------------------------------------------------------


def larger(k: Any, x: Expr, y: Expr) -> Expr:
    """The larger one; nan if either is."""
    if k.math.is_bool(x):
        return k.math.either(x, y)
    return k.math.select(k.math.either(x > y, k.math.isnan(x)), x, y)


def smaller(k: Any, x: Expr, y: Expr) -> Expr:
    """The smaller one; nan if either is."""
    if k.math.is_bool(x):
        return k.math.both(x, y)
    return k.math.select(k.math.either(x < y, k.math.isnan(x)), x, y)


def _not(k: Any, op: Op, x: Expr) -> Expr:
    return k.math.negation(x)


def _cast(k: Any, op: Op, x: Expr) -> Expr:
    return k.cast(x, op.operands[0].tensor.dtype, op.result.tensor.dtype)


def _comparison(compare: Scalar) -> dict[str, Pointwise]:
    return {
        "Tensor": elementwise(lambda k, op, x, y: compare(k, x, y)),
        "Scalar": elementwise(lambda k, op, x: compare(k, x, number(k, op, "other")), _comparable),
    }


def _comparable(op: Op) -> str | None:
    """An integer is compared with a number as it is, not with what is left of it in the integer's type."""
    dtype, other = op.operands[0].tensor.dtype, op.attr("other")
    fits = _fits(other, dtype)
    return None if fits else f"{dtype} is compared with {other}"


def _bounded(op: Op) -> str | None:
    dtype = op.result.tensor.dtype
    given = [op.attr(name) for name in ("min", "max") if op.attr(name) is not None]
    wrong = [bound for bound in given if not _fits(bound, dtype) or bound != bound]
    return f"{dtype} is clamped at {wrong[0]}" if wrong else None


_COMPARISONS: dict[str, Scalar] = {
    "eq": lambda k, x, y: k.math.equal(x, y),
    "ne": lambda k, x, y: k.math.differ(x, y),
    "lt": lambda k, x, y: k.math.less(x, y),
    "le": lambda k, x, y: k.math.at_most(x, y),
    "gt": lambda k, x, y: k.math.less(y, x),
    "ge": lambda k, x, y: k.math.at_most(y, x),
}


def calls_library(op: Op) -> bool:
    """Whether an element is computed by itself: the C library's function, or TVM's, takes no vectors.

    Of those TVM would make one by one in a loop of lanes, and of a value that is bound there only the last.
    """
    if op.name == "aten.atan2":
        return True
    if op.name == "aten.round":
        return op.result.tensor.dtype.is_float
    is_floored = op.name.startswith("aten.div.") and op.attrs.get("rounding_mode") == "floor"
    if is_floored or op.name.startswith("aten.remainder."):
        return op.result.tensor.dtype.is_float
    return op.name in _OF_LIBRARY_IN_F64 and op.result.tensor.dtype == DType.F64


_OF_LIBRARY_IN_F64 = frozenset(
    f"aten.{name}" for name in ("elu", "erf", "expm1", "gelu", "log1p", "softplus", "tanh")
)


#: Functions of one float that ``scalars.py`` has under the name of the op.
# fmt: off
_BY_NAME = (
    "abs", "floor", "ceil", "round", "trunc", "isnan", "exp", "exp2", "expm1", "log", "log2", "log1p",
    "sqrt", "sin", "cos", "tanh", "erf", "sigmoid",
)
# fmt: on

LOWERINGS: dict[str, Pointwise] = {
    **{f"aten.{name}": _math(name) for name in _BY_NAME},
    **{
        f"aten.{name}.{kind}": lowering
        for name, compare in _COMPARISONS.items()
        for kind, lowering in _comparison(compare).items()
    },
    "aten.neg": elementwise(lambda k, op, x: k.math.negative(x)),
    "aten.sign": elementwise(_sign, _signed),
    "aten.relu": elementwise(relu),
    "aten.rsqrt": elementwise(lambda k, op, x: k.math.over(k.one(x), k.math.sqrt(x))),
    "aten.reciprocal": elementwise(lambda k, op, x: k.math.over(k.one(x), x)),
    "aten.silu": elementwise(silu),
    "aten.gelu": elementwise(gelu),
    "aten.mish": elementwise(_mish),
    "aten.hardswish": elementwise(lambda k, op, x: x * _hard(k, x)),
    "aten.hardsigmoid": elementwise(lambda k, op, x: _hard(k, x)),
    "aten.elu": elementwise(_elu),
    "aten.leaky_relu": elementwise(_leaky),
    "aten.softplus": elementwise(_softplus),
    "aten.clamp": elementwise(_clamp, _bounded),
    "aten.add.Tensor": elementwise(lambda k, op, x, y: k.math.plus(x, _scaled(k, op, y))),
    "aten.sub.Tensor": elementwise(lambda k, op, x, y: k.math.minus(x, _scaled(k, op, y))),
    "aten.mul.Tensor": elementwise(lambda k, op, x, y: k.math.times(x, y)),
    "aten.div.Tensor": elementwise(lambda k, op, x, y: k.math.over(x, y)),
    "aten.div.Tensor_mode": elementwise(_quotient, _no_zero_divisor),
    "aten.remainder.Tensor": elementwise(_remainder, _no_zero_divisor),
    "aten.maximum": elementwise(lambda k, op, x, y: larger(k, x, y)),
    "aten.minimum": elementwise(lambda k, op, x, y: smaller(k, x, y)),
    "aten.atan2": elementwise(lambda k, op, x, y: k.math.atan2(x, y)),
    "aten.add.Scalar": elementwise(lambda k, op, x: k.math.plus(x, _added(k, op)), _known_sum),
    "aten.mul.Scalar": elementwise(lambda k, op, x: k.math.times(x, number(k, op, "other"))),
    "aten.div.Scalar": elementwise(lambda k, op, x: k.math.over(x, number(k, op, "other"))),
    "aten.div.Scalar_mode": elementwise(
        lambda k, op, x: _quotient(k, op, x, number(k, op, "other")), _no_floored_number
    ),
    "aten.remainder.Scalar": elementwise(
        lambda k, op, x: _remainder(k, op, x, number(k, op, "other")), _no_zero_divisor
    ),
    "aten.pow.Tensor_Scalar": elementwise(_power, _static_power),
    "aten.pow.Tensor_Tensor": elementwise(lambda k, op, x, y: k.math.pow(x, y), _float_result),
    "aten.pow.Scalar": elementwise(lambda k, op, x: k.math.pow(number(k, op, "self"), x), _float_result),
    "aten.bitwise_not": elementwise(_not),
    "aten.bitwise_and.Tensor": elementwise(lambda k, op, x, y: k.math.both(x, y)),
    "aten.bitwise_or.Tensor": elementwise(lambda k, op, x, y: k.math.either(x, y)),
    "aten.bitwise_xor.Tensor": elementwise(lambda k, op, x, y: k.math.exclusive(x, y)),
    "aten.where.self": elementwise(lambda k, op, condition, x, y: k.math.select(condition, x, y)),
    "aten._to_copy": elementwise(_cast),
}
