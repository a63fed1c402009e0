"""Functions of floats as TIR expressions, for scalars and for vectors. Imports TVM.

LLVM has no vector forms of ``exp``, ``log1p``, ``erf`` and ``tanh``: it would call the C library once a lane.
The approximations of f32 here are of the rounding error's order, give inf and 0 where torch does, pass nan
on. Sources: Cephes (``expf``, ``logf``), Kahan (``log1p`` by ``log``), Eigen (rational minimax forms of
``erf`` and ``tanh``), fits by Lawson's weights for the least relative error (``_EXP2``, ``_TAIL``). Those of
f64 are the C library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

Value = Any
"""A TIR expression of f32 or f64, a scalar or a vector."""

_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
#: The bits of the root of 1/2, from which a power of two is taken apart from what is left.
_HALF_ROOT_BITS = 0x3F3504F3
#: 1.5 * 2**23: a whole number of moderate size added to it is found in its lowest bits.
_SHIFTER, _SHIFTER_BITS = 12582912.0, 0x4B400000
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
_TANH_P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
#: ``2**x`` for |x| up to 1/2, to 9e-8 of it.
_EXP2 = (
    0.0013264727123238136,
    0.009671512644850423,
    0.05550733743498247,
    0.24022242085261655,
    0.6931469775989914,
    1.0,
)
#: ``_normal_tail(x) exp(x² / 2)`` for x from 0 to 13.3, to 4e-7 of it.
_TAIL_P = (0.398890916, 2.80898565, 8.52991694, 11.8268909)
_TAIL_Q = (1.0, 7.0360001, 22.4643103, 35.9324122, 23.6537902)
#: The factor of ``gelu_tanh``.
_GELU_SCALE = (2 / math.pi) ** 0.5
#: Beyond, the share of a normal distribution is less than any normal number.
_TAIL_END = 13.0


def bound(value: Value, body: Callable[[Value], Value]) -> Value:
    """``body(value)`` with ``value`` computed once: an expression is a tree, and uses are copies of it."""
    if isinstance(value, tirx.Var):
        return body(value)
    name = tirx.Var("v", value.ty)
    return tirx.Let(name, value, body(name))


def constant(number: float, like: Value) -> Value:
    """``number`` in the type and the lanes of ``like``."""
    return widened(tirx.FloatImm(scalar_type(like), number), lanes_of(like))


def select(condition: Value, yes: Value, no: Value) -> Value:
    """``yes`` where ``condition`` holds; both are computed."""
    lanes = max(lanes_of(each) for each in (condition, yes, no))
    return tirx.Select(*(widened(each, lanes) for each in (condition, yes, no)))


def maximum(a: Value, b: Value) -> Value:
    """The larger number; nan when ``a`` is."""
    return select(a < b, b, a)


def relu(x: Value) -> Value:
    return bound(x, lambda x: maximum(x, constant(0.0, x)))


def exp(x: Value) -> Value:
    if is_double(x):
        return tirx.exp(x)

    def reduced(x: Value) -> Value:
        # Every f32 result is 0 or inf beyond these.
        return bound(_clamped(x, 104.0), lambda c: bound(_rounded(c * constant(_LOG2_E, c)), _power(c)))

    return bound(x, reduced)


def _power(x: Value) -> Callable[[Value], Value]:
    """``exp(x)``, given the whole number nearest to ``x / ln 2``."""

    def scaled(whole: Value) -> Value:
        rest = x - whole * constant(_LN2_HIGH, x) - whole * constant(_LN2_LOW, x)
        # In two steps, so that results from the smallest subnormal to inf come out.
        low, high = (_two_to(half) for half in _halves(whole))
        return bound(rest, _exp_of_rest) * low * high

    return scaled


def _exp_of_rest(r: Value) -> Value:
    return _polynomial(_EXP, r) * r * r + r + constant(1.0, r)


def _rounded(x: Value) -> Value:
    return tirx.floor(x + constant(0.5, x))


def _halves(whole: Value) -> tuple[Value, Value]:
    """Two integers that add up to the whole number ``whole``."""
    dtype = retyped(whole, "int32")
    bits = tirx.reinterpret(dtype, whole + constant(_SHIFTER, whole))
    number = bits - _integer(_SHIFTER_BITS, whole)
    low = number >> _integer(1, whole)
    return low, number - low


def _two_to(power: Value) -> Value:
    """2**power for a power that is an exponent of f32."""
    bits = (power + _integer(127, power)) << _integer(23, power)
    return tirx.reinterpret(retyped(power, "float32"), bits)


def log1p(x: Value) -> Value:
    """``log(1 + x)``: of the rounded sum, and what the sum has lost."""
    if is_double(x):
        return tirx.call_pure_extern("float64", "log1p", x)

    def of_sum(x: Value, total: Value) -> Value:
        zero, infinity = constant(0.0, x), widened(tirx.infinity("float32"), lanes_of(x))
        lost = x - (total - constant(1.0, x))
        usual = _log_of_normal(total) + lost / total
        # Of the sums that are left, inf and nan stay.
        unusual = select(
            total < zero, constant(math.nan, x), select(total < infinity, zero - infinity, total)
        )
        return select(tirx.And(total > zero, total < infinity), usual, unusual)

    return bound(x, lambda x: bound(x + constant(1.0, x), lambda total: of_sum(x, total)))


def _log_of_normal(x: Value) -> Value:
    """The logarithm of a positive number that is not subnormal, and finite."""

    def apart(bits: Value) -> Value:
        power = (bits - _integer(_HALF_ROOT_BITS, x)) >> _integer(23, x)
        rest = tirx.reinterpret(retyped(x, "float32"), bits - (power << _integer(23, x)))
        return bound(
            power.astype(retyped(x, "float32")), lambda e: bound(rest - constant(1.0, x), _joined(e))
        )

    return bound(tirx.reinterpret(retyped(x, "int32"), x), apart)


def _joined(power: Value) -> Callable[[Value], Value]:
    """``log(2**power * (1 + f))`` of the ``f`` that it is called with."""

    def of_rest(f: Value) -> Value:
        small = _polynomial(_LOG, f) * f * f * f + power * constant(_LN2_LOW, f) - constant(0.5, f) * f * f
        return f + small + power * constant(_LN2_HIGH, f)

    return of_rest


def erf(x: Value) -> Value:
    if is_double(x):
        return tirx.call_pure_extern("float64", "erf", x)

    def ratio(x: Value) -> Value:
        return bound(x * x, lambda s: x * _polynomial(_ERF_P, s) / _polynomial(_ERF_Q, s))

    return bound(_clamped(x, 4.0), ratio)


def tanh(x: Value) -> Value:
    if is_double(x):
        return tirx.call_pure_extern("float64", "tanh", x)  # TVM's own, of exponentials, loses digits near 0

    def ratio(x: Value) -> Value:
        return bound(x * x, lambda s: x * _polynomial(_TANH_P, s) / _polynomial(_TANH_Q, s))

    return bound(_clamped(x, 9.0), ratio)


def sigmoid(x: Value) -> Value:
    return bound(x, lambda x: constant(1.0, x) / (constant(1.0, x) + exp(constant(0.0, x) - x)))


def silu(x: Value) -> Value:
    return bound(x, lambda x: x / (constant(1.0, x) + exp(constant(0.0, x) - x)))


def gelu(x: Value) -> Value:
    """``x`` times the share of a normal distribution below it, which keeps its digits however small it is."""
    if is_double(x):

        def share(x: Value) -> Value:
            return tirx.call_pure_extern("float64", "erfc", x * constant(-(0.5**0.5), x))

        return bound(x, lambda x: constant(0.5, x) * x * share(x))
    return bound(x, lambda x: x * bound(_normal_tail(x), _below(x)))


def _below(x: Value) -> Callable[[Value], Value]:
    """The share below ``x``, given that beyond ``|x|``."""
    return lambda tail: select(x < constant(0.0, x), tail, constant(1.0, x) - tail)


def _normal_tail(x: Value) -> Value:
    """The share of a normal distribution beyond ``|x|``, 0 from ``_TAIL_END`` on.

    The rounding of x² costs 1e-7 x² of it.
    """

    def of_size(size: Value) -> Value:
        power = _exp2_below_zero(x * x * constant(-0.5 * _LOG2_E, x))
        share = power * _polynomial(_TAIL_P, size) / _polynomial(_TAIL_Q, size)
        return select(size > constant(_TAIL_END, x), constant(0.0, x), share)

    return bound(tirx.abs(x), of_size)


def _exp2_below_zero(x: Value) -> Value:
    """``2**x`` of a number from -126 up to 0; below, anything."""

    def apart(x: Value, bits: Value) -> Value:
        rest = x - (tirx.reinterpret(retyped(x, "float32"), bits) - constant(_SHIFTER, x))
        mantissa = tirx.reinterpret(retyped(x, "int32"), bound(rest, lambda r: _polynomial(_EXP2, r)))
        return tirx.reinterpret(retyped(x, "float32"), mantissa + (bits << _integer(23, x)))

    def near(x: Value) -> Value:
        bits = tirx.reinterpret(retyped(x, "int32"), x + constant(_SHIFTER, x))
        return bound(bits, lambda bits: apart(x, bits))

    return bound(x, near)


def gelu_tanh(x: Value) -> Value:
    """``x (1 + tanh(i)) / 2`` as ``x`` times the logistic function of ``2i``, which keeps its digits."""

    def of_power(x: Value) -> Callable[[Value], Value]:
        one = constant(1.0, x)
        return lambda power: x * (select(x < constant(0.0, x), power, one) / (one + power))

    def of_size(x: Value, size: Value) -> Value:
        inner = constant(-2 * _GELU_SCALE * _LOG2_E, x) * (size + constant(0.044715, x) * size * size * size)
        return bound(bound(inner, _power_below_zero), of_power(x))

    return bound(x, lambda x: bound(tirx.abs(x), lambda size: of_size(x, size)))


def _power_below_zero(x: Value) -> Value:
    """``2**x`` of a number up to 0."""
    if is_double(x):
        return tirx.exp2(x)
    return select(x < constant(-126.0, x), constant(0.0, x), _exp2_below_zero(x))


# -- bf16 --------------------------------------------------------------------------------------
# TVM has no vectors of bf16: memory holds its bits as u16, and what is computed is f32.


def of_bf16_bits(bits: Value) -> Value:
    """The f32 that the bits of a bf16 stand for."""
    wide = bits.astype(retyped(bits, "uint32"))
    return tirx.reinterpret(retyped(bits, "float32"), wide << _unsigned(16, bits))


def bf16_bits(x: Value) -> Value:
    """The bits of the bf16 that is nearest to an f32, halves to the even one; nan stays nan."""
    bits = tirx.reinterpret(retyped(x, "uint32"), x)
    return bound(bits, lambda bits: _upper(bits).astype(retyped(bits, "uint16")))


def rounded_to_bf16(x: Value) -> Value:
    """The bf16 that is nearest to an f32, as f32."""

    def rounded(bits: Value) -> Value:
        return tirx.reinterpret(retyped(x, "float32"), _upper(bits) << _unsigned(16, bits))

    return bound(tirx.reinterpret(retyped(x, "uint32"), x), rounded)


def _upper(bits: Value) -> Value:
    """The upper half of the bits of an f32, rounded."""
    upper = bits >> _unsigned(16, bits)
    odd = tirx.bitwise_and(upper, _unsigned(1, bits))
    nearest = (bits + _unsigned(0x7FFF, bits) + odd) >> _unsigned(16, bits)
    size = tirx.bitwise_and(bits, _unsigned(0x7FFFFFFF, bits))
    quiet = tirx.bitwise_or(upper, _unsigned(0x40, bits))
    return select(size > _unsigned(0x7F800000, bits), quiet, nearest)


def _unsigned(number: int, like: Value) -> Value:
    return widened(tirx.IntImm("uint32", number), lanes_of(like))


# -- parts -------------------------------------------------------------------------------------


def _polynomial(coefficients: Sequence[float], x: Value) -> Value:
    """Horner's scheme, the highest power first."""
    result = constant(coefficients[0], x)
    for coefficient in coefficients[1:]:
        result = result * x + constant(coefficient, x)
    return result


def _clamped(x: Value, limit: float) -> Value:
    """``x`` between -limit and limit; nan stays, since it compares as neither."""

    def clamped(x: Value) -> Value:
        low, high = constant(-limit, x), constant(limit, x)
        return select(x < low, low, select(x > high, high, x))

    return bound(x, clamped)


def _integer(number: int, like: Value) -> Value:
    return widened(tirx.IntImm("int32", number), lanes_of(like))


# -- types -------------------------------------------------------------------------------------


def lanes_of(value: Value) -> int:
    """How many numbers ``value`` has side by side."""
    return value.ty.dtype.lanes if hasattr(value, "ty") else 1


def scalar_type(value: Value) -> str:
    """The type of each of them, by TVM's name."""
    return str(value.ty.dtype).partition("x")[0]


def retyped(value: Value, scalar: str) -> str:
    """``scalar`` in as many lanes as ``value`` has."""
    lanes = lanes_of(value)
    return f"{scalar}x{lanes}" if lanes > 1 else scalar


def widened(value: Value, lanes: int) -> Value:
    """A scalar in so many lanes; what is a vector stays as it is."""
    return tirx.Broadcast(value, tirx.IntImm("int32", lanes)) if lanes > 1 and lanes_of(value) == 1 else value


def is_double(value: Value) -> bool:
    return scalar_type(value) == "float64"
