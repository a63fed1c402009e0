"""Functions of single elements, or vectors of them, as TIR expressions. Imports TVM.

Those of f32 that LLVM would call the C library for, lane by lane, are approximations to the rounding error
(``templates/functions.py``); f64 and what is rare goes to the C library.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from tvm import tirx

from regraft.backends.tvm.templates import functions
from regraft.backends.tvm.templates.functions import is_double, lanes_of, retyped, scalar_type, widened

Expr = Any


class Scalars:
    """Functions of expressions.

    Fields:
        bind: computes an expression once, where it is used several times.
        settle: the same for long ones, which nothing that TVM does may put back where they are used.
    """

    def __init__(self, bind: Callable[[Expr], Expr], settle: Callable[[Expr], Expr] | None = None) -> None:
        self.bind, self.settle = bind, settle or bind

    # -- numbers and types -----------------------------------------------------------------------

    def like(self, number: float, other: Expr) -> Expr:
        """``number`` in the type and the lanes of ``other``."""
        if _is_float(other):
            return functions.constant(float(number), other)
        return widened(tirx.IntImm(scalar_type(other), int(number)), lanes_of(other))

    def cast(self, value: Expr, to: str) -> Expr:
        if _is_bool(value) and to != "bool":  # TVM folds casts of vectors of bools wrongly
            kind = tirx.FloatImm if to.startswith("float") else tirx.IntImm
            return self.select(value, kind(to, 1), kind(to, 0))
        if _is_cut(value, to):
            if isinstance(value, tirx.IntImm):
                return tirx.IntImm(to, _modulo(value.value, to))
            # What TVM knows of the number before it is cut it takes to be true of what is left.
            value = self._unknown(value)
        return value.astype(retyped(value, to))

    def select(self, condition: Expr, yes: Expr, no: Expr) -> Expr:
        """``yes`` where ``condition`` holds; both are computed."""
        return functions.select(condition, yes, no)

    def unfolded(self, x: Expr) -> Expr:
        """``x``; the float 0 by its bits: TVM refuses ``x / 0``, and makes 0 of ``x * 0`` and ``0 / x``,
        which are nan for some ``x``."""
        number = x.value if isinstance(x, tirx.Broadcast) else x
        if not isinstance(number, tirx.FloatImm) or number.value != 0:
            return x
        whole, places = ("int64", 63) if is_double(x) else ("int32", 31)
        bits = widened(tirx.IntImm(whole, -1 << places), lanes_of(x))
        minus = tirx.reinterpret(retyped(x, scalar_type(x)), bits)  # no bits at all would be a null pointer
        return minus if math.copysign(1, number.value) < 0 else minus * self.like(-1, x)

    # -- logic -----------------------------------------------------------------------------------

    def both(self, x: Expr, y: Expr) -> Expr:
        return tirx.bitwise_and(x, y) if not _is_bool(x) else tirx.And(*_matched(x, y))

    def either(self, x: Expr, y: Expr) -> Expr:
        return tirx.bitwise_or(x, y) if not _is_bool(x) else tirx.Or(*_matched(x, y))

    def exclusive(self, x: Expr, y: Expr) -> Expr:
        return tirx.bitwise_xor(x, y) if not _is_bool(x) else self.differ(x, y)

    def less(self, x: Expr, y: Expr) -> Expr:
        x, y = _matched(self.ordered(x), self.ordered(y))
        return self._opaque(x < y) if _is_float(x) else x < y

    def at_most(self, x: Expr, y: Expr) -> Expr:
        x, y = _matched(self.ordered(x), self.ordered(y))
        return self._same(x, y, tirx.LE) if _is_float(x) else x <= y

    def equal(self, x: Expr, y: Expr) -> Expr:
        # Python's == gives an object that is no expression yet.
        x, y = _matched(self.ordered(x), self.ordered(y))
        return self._same(x, y, tirx.EQ) if _is_float(x) else tirx.EQ(x, y)

    def differ(self, x: Expr, y: Expr) -> Expr:
        x, y = _matched(self.ordered(x), self.ordered(y))
        return self.negation(self.equal(x, y)) if _is_float(x) else tirx.NE(x, y)

    def _same(self, x: Expr, y: Expr, question: Callable[[Expr, Expr], Expr]) -> Expr:
        """A question about floats whose answer is yes where they are one number, and not where one is nan.

        TVM takes it for answered where both are one expression.
        """
        return self._opaque(question(x, y if _is_number(y) else self._unknown(y)))

    def _unknown(self, x: Expr) -> Expr:
        """``x``, of which TVM's simplifier knows nothing. LLVM sees through it."""
        if _is_float(x):
            return tirx.reinterpret(retyped(x, scalar_type(x)), self._unknown(self._bits(x)))
        return tirx.bitwise_or(x, self.like(0, x))

    def _bits(self, x: Expr) -> Expr:
        """The bits of a float as an integer."""
        return tirx.reinterpret(retyped(x, "int64" if is_double(x) else "int32"), x)

    def _opaque(self, question: Expr) -> Expr:
        """A comparison of floats that TVM's simplifier does not know for one.

        It takes floats as ordered: of ``not x < y`` it makes ``y <= x``, of ``x <= y or y < x`` true, and
        asks no more for ``y <= x`` where ``x < y`` was false. LLVM sees through it.
        """
        answer = self.ordered(question)
        return tirx.NE(answer, self.like(0, answer))

    def ordered(self, x: Expr) -> Expr:
        """``x``, bools as numbers: TVM compares them as floats, and has no negation of vectors of them that
        are known.
        """
        return self.cast(x, "int32") if _is_bool(x) else x

    def negation(self, x: Expr) -> Expr:
        return tirx.bitwise_not(x) if not _is_bool(x) else tirx.Not(x)

    def is_bool(self, x: Expr) -> bool:
        return _is_bool(x)

    def plus(self, x: Expr, y: Expr) -> Expr:
        if _is_bool(x):
            return self.either(x, y)
        return x + y if _is_float(x) else self._wrapped(operator.add, x, y)

    def minus(self, x: Expr, y: Expr) -> Expr:
        # Of floats TVM makes 0 of x - x, which is nan for some, and x of x + y - y.
        return x + y * self.like(-1, y) if _is_float(x) else self._wrapped(operator.sub, x, y)

    def times(self, x: Expr, y: Expr) -> Expr:
        if _is_bool(x):
            return self.both(x, y)
        if _is_float(x):
            return self.unfolded(x) * self.unfolded(y)
        return self._wrapped(operator.mul, x, y)

    def negative(self, x: Expr) -> Expr:
        return -x if _is_float(x) else self.minus(self.like(0, x), x)

    def _wrapped(self, exactly: Callable[[Expr, Expr], Expr], x: Expr, y: Expr) -> Expr:
        """``exactly(x, y)`` of integers, modulo the count of numbers that their type has.

        It is cut out of a result that has room for all of it: of ``+ - *`` themselves TVM takes for granted
        that they stay in their type, and tells LLVM so. Of the wider result LLVM computes only what is kept.
        """
        scalar = scalar_type(x)
        wide = "int128" if scalar == "int64" else "int64"
        return self.cast(exactly(*(each.astype(retyped(each, wide)) for each in (x, y))), scalar)

    def over(self, x: Expr, y: Expr) -> Expr:
        """The quotient of floats."""
        return self.unfolded(x) / self.unfolded(y)

    def isnan(self, x: Expr) -> Expr:
        if not _is_float(x):
            return _falses(x)
        # By its bits: TVM's simplifier takes questions about nan for those about numbers.
        bits = 0x7FFFFFFFFFFFFFFF if is_double(x) else 0x7FFFFFFF
        infinity = 0x7FF0000000000000 if is_double(x) else 0x7F800000
        whole = self._bits(x)
        size, largest = (self.like(number, whole) for number in (bits, infinity))
        return tirx.bitwise_and(whole, size) > largest

    # -- rounding --------------------------------------------------------------------------------

    def abs(self, x: Expr) -> Expr:
        if _is_float(x):
            return tirx.abs(x)
        x = self.bind(x)
        if _is_unsigned(x) or _is_bool(x):
            return x
        return self.select(x < 0, self.negative(x), x)

    def floor(self, x: Expr) -> Expr:
        return tirx.floor(x) if _is_float(x) else x

    def ceil(self, x: Expr) -> Expr:
        return tirx.ceil(x) if _is_float(x) else x

    def round(self, x: Expr) -> Expr:
        """Halves go to the even number."""
        return tirx.nearbyint(x) if _is_float(x) else x

    def trunc(self, x: Expr) -> Expr:
        return tirx.trunc(x) if _is_float(x) else x

    def floordiv(self, x: Expr, y: Expr) -> Expr:
        """By the quotient rounded towards 0: TVM negates ``y``, which the least of a type cannot be."""
        quotient = self.bind(self.truncdiv(x, y))
        if _is_unsigned(x):
            return quotient
        return self.select(self._is_above(x, y), quotient - self.like(1, x), quotient)

    def floormod(self, x: Expr, y: Expr) -> Expr:
        rest = self.bind(self._truncmod(x, y))
        return rest if _is_unsigned(x) else self.select(self._is_above(x, y), rest + y, rest)

    def _is_above(self, x: Expr, y: Expr) -> Expr:
        """Whether the quotient that is rounded towards 0 is above the one that is rounded down."""
        rest = self.bind(self._truncmod(x, y))
        zero = self.like(0, x)
        return tirx.And(tirx.NE(rest, zero), tirx.NE(self.ordered(rest < zero), self.ordered(y < zero)))

    def truncdiv(self, x: Expr, y: Expr) -> Expr:
        if _is_least(y):  # TVM would negate it
            return self.select(
                tirx.EQ(tirx.bitwise_xor(x, y), self.like(0, x)), self.like(1, x), self.like(0, x)
            )
        if _is_minus_one(y):  # the CPU traps where the least number is divided
            return self.negative(x)
        return tirx.truncdiv(x, y)

    def _truncmod(self, x: Expr, y: Expr) -> Expr:
        if _is_least(y):
            return self.select(tirx.EQ(tirx.bitwise_xor(x, y), self.like(0, x)), self.like(0, x), x)
        return self.like(0, x) if _is_minus_one(y) else tirx.truncmod(x, y)

    def fmod(self, x: Expr, y: Expr) -> Expr:
        """What is left of ``x``, with its sign, exactly."""
        return self._external("fmod", x, y)

    # -- functions -------------------------------------------------------------------------------

    def exp(self, x: Expr) -> Expr:
        return self.settle(functions.exp(self.bind(x)))

    def exp2(self, x: Expr) -> Expr:
        return tirx.exp2(x)

    def expm1(self, x: Expr) -> Expr:
        """In f32 ``(e^x + 1) tanh(x / 2)``: nothing is lost near 0."""
        if is_double(x):
            return self._external("expm1", x)
        x = self.bind(x)
        one = self.like(1, x)
        # Beyond, tanh is 1 and the product would be infinity times what is not quite 1.
        return (self.exp(x) + one) * self.tanh(x * self.like(0.5, x))

    def log(self, x: Expr) -> Expr:
        return tirx.log(x)

    def log2(self, x: Expr) -> Expr:
        return tirx.log2(x)

    def log1p(self, x: Expr) -> Expr:
        return self.settle(functions.log1p(self.bind(x)))

    def sqrt(self, x: Expr) -> Expr:
        return tirx.sqrt(x)

    def sin(self, x: Expr) -> Expr:
        return tirx.sin(x)

    def cos(self, x: Expr) -> Expr:
        return tirx.cos(x)

    def atan2(self, x: Expr, y: Expr) -> Expr:
        return self._external("atan2", x, y)

    def pow(self, x: Expr, y: Expr) -> Expr:
        return tirx.power(*_matched(x, y))

    def tanh(self, x: Expr) -> Expr:
        return self.settle(functions.tanh(self.bind(x)))

    def erf(self, x: Expr) -> Expr:
        return self.settle(functions.erf(self.bind(x)))

    def sigmoid(self, x: Expr) -> Expr:
        return self.settle(functions.sigmoid(self.bind(x)))

    def silu(self, x: Expr) -> Expr:
        return self.settle(functions.silu(self.bind(x)))

    def gelu(self, x: Expr) -> Expr:
        return self.settle(functions.gelu(self.bind(x)))

    def gelu_tanh(self, x: Expr) -> Expr:
        return self.settle(functions.gelu_tanh(self.bind(x)))

    def _external(self, name: str, *values: Expr) -> Expr:
        """The C library's function, which takes no vectors: see ``calls_library``."""
        scalar = scalar_type(values[0])
        return tirx.call_pure_extern(scalar, name if scalar == "float64" else f"{name}f", *values)


def _is_bool(value: Expr) -> bool:
    return scalar_type(value) == "bool"


def _is_unsigned(value: Expr) -> bool:
    return scalar_type(value).startswith("uint")


def _is_integer(scalar: str) -> bool:
    return scalar.startswith(("int", "uint"))


def _ends(scalar: str) -> tuple[int, int]:
    """The least and the greatest of the integers ``scalar``."""
    kind, _, bits = scalar.partition("int")
    return (0, (1 << int(bits)) - 1) if kind else (-(1 << (int(bits) - 1)), (1 << (int(bits) - 1)) - 1)


def _is_cut(value: Expr, to: str) -> bool:
    """Whether the integers ``to`` lack some of those of the type of ``value``."""
    source = scalar_type(value)
    if not (_is_integer(source) and _is_integer(to)):
        return False
    (low, high), (lowest, highest) = _ends(source), _ends(to)
    return low < lowest or high > highest


def _modulo(number: int, scalar: str) -> int:
    """``number`` modulo the count of the integers ``scalar``, as one of them."""
    low, high = _ends(scalar)
    return (number - low) % (high - low + 1) + low


def _is_number(value: Expr) -> bool:
    return isinstance(value.value if isinstance(value, tirx.Broadcast) else value, tirx.FloatImm)


def _is_minus_one(value: Expr) -> bool:
    return isinstance(value, tirx.IntImm) and value.value == -1


def _is_least(value: Expr) -> bool:
    """Whether ``value`` is the least number of a type with a sign."""
    is_whole = isinstance(value, tirx.IntImm) and _is_integer(scalar_type(value)) and not _is_unsigned(value)
    return is_whole and value.value == _ends(scalar_type(value))[0]


def _is_float(value: Expr) -> bool:
    return scalar_type(value).startswith("float")


def _matched(x: Expr, y: Expr) -> tuple[Expr, Expr]:
    lanes = max(lanes_of(x), lanes_of(y))
    return widened(x, lanes), widened(y, lanes)


def _falses(x: Expr) -> Expr:
    return widened(tirx.IntImm("bool", 0), lanes_of(x))
