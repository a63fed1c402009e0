"""Facts about index tensors: integers that are affine in their own index, bools that are inequalities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from regraft.ir import Dim, DType, Expr, dims

Shape: TypeAlias = Sequence[Dim]

# A tensor has fewer than 2^44 elements, so affine values within these bounds fit 64 bits at any rank below 8.
_MAX_COEFFICIENT = 1 << 15
_MAX_CONSTANT = 1 << 59


@dataclass(frozen=True)
class Affine:
    """Element [i0, i1, ...] of a tensor is ``base + sum(coefficient * i)``."""

    base: Dim
    coefficients: tuple[int, ...]

    @property
    def is_uniform(self) -> bool:
        """Whether all elements are equal."""
        return not any(self.coefficients)

    def __add__(self, other: Affine) -> Affine:
        return Affine(
            self.base + other.base,
            tuple(a + b for a, b in zip(self.coefficients, other.coefficients, strict=True)),
        )

    def scaled(self, factor: int) -> Affine:
        return Affine(self.base * factor, tuple(c * factor for c in self.coefficients))

    def plus(self, number: Dim) -> Affine:
        return replace(self, base=self.base + number)

    def __sub__(self, other: Affine) -> Affine:
        return self + other.scaled(-1)

    def on_axes(self, axes: Sequence[int | None]) -> Affine:
        """With a new axis for each entry: the old axis it shows, or None for one it does not vary along."""
        return replace(self, coefficients=tuple(0 if a is None else self.coefficients[a] for a in axes))

    def with_rank(self, rank: int) -> Affine:
        """With new leading axes, as broadcasting adds them."""
        return replace(self, coefficients=(0,) * (rank - len(self.coefficients)) + self.coefficients)

    def within(self, shape: Shape) -> Affine:
        """Without coefficients along axes of size 1, whose only index is 0."""
        kept = tuple(0 if size == 1 else c for c, size in zip(self.coefficients, shape, strict=True))
        return replace(self, coefficients=kept)

    def extremes(self, shape: Shape) -> tuple[Dim, Dim]:
        """The least and the greatest element of a tensor of ``shape`` that is not empty."""
        low = high = self.base
        for coefficient, size in zip(self.coefficients, shape, strict=True):
            low = low + min(coefficient, 0) * (size - 1)
            high = high + max(coefficient, 0) * (size - 1)
        return low, high

    def is_at_most(self, bound: int, shape: Shape) -> bool:
        """Whether every element is proved to be at most ``bound``."""
        return dims.le(self.extremes(shape)[1], bound) is True

    def is_at_least(self, bound: int, shape: Shape) -> bool:
        return dims.le(bound, self.extremes(shape)[0]) is True

    def fits(self, dtype: DType, shape: Shape) -> bool:
        """Whether no element overflows ``dtype``."""
        if dtype is DType.I64:
            return _is_moderate(self.base) and all(abs(c) <= _MAX_COEFFICIENT for c in self.coefficients)
        low, high = _INTEGER_RANGES.get(dtype, (1, 0))
        return self.is_at_least(low, shape) and self.is_at_most(high, shape)


_INTEGER_RANGES = {
    DType.U8: (0, 255),
    DType.I8: (-128, 127),
    DType.I16: (-(1 << 15), (1 << 15) - 1),
    DType.I32: (-(1 << 31), (1 << 31) - 1),
}


def _is_moderate(base: Dim) -> bool:
    if not isinstance(base, Expr):
        return abs(base) <= _MAX_CONSTANT
    return all(
        abs(coefficient) <= (_MAX_COEFFICIENT if monomial else _MAX_CONSTANT) and len(monomial) <= 1
        for monomial, coefficient in base.terms
    )


@dataclass(frozen=True)
class Magnitude:
    """The absolute value of an affine tensor."""

    of: Affine


@dataclass(frozen=True)
class Where:
    """A bool tensor, true where every one of ``constraints`` is at most 0; ``never`` is false everywhere."""

    constraints: frozenset[Affine] = frozenset()
    never: bool = False

    @property
    def is_always(self) -> bool:
        return not self.constraints and not self.never

    def both(self, other: Where) -> Where:
        if self.never or other.never:
            return NEVER
        return Where(self.constraints | other.constraints)


ALWAYS = Where()
NEVER = Where(never=True)

Fact: TypeAlias = Affine | Magnitude | Where


def at_most_zero(value: Affine, shape: Shape) -> Where:
    """Where ``value <= 0``; decided when the bounds of ``value`` decide it."""
    if value.is_at_most(0, shape):
        return ALWAYS
    if value.is_at_least(1, shape):
        return NEVER
    return Where(frozenset({_reduced(value)}))


def _reduced(value: Affine) -> Affine:
    """The same inequality with coprime coefficients: 2i - 2j + 1 <= 0 is i - j + 1 <= 0."""
    divisor = math.gcd(*value.coefficients)
    if divisor <= 1 or not isinstance(value.base, int):
        return value
    return Affine(-(-value.base // divisor), tuple(c // divisor for c in value.coefficients))


def mapped(fact: Fact | None, change: Callable[[Affine], Affine], shape: Shape) -> Fact | None:
    """A fact about a rearranged tensor of ``shape``, from the same change to each affine form in it."""
    if isinstance(fact, Affine):
        return change(fact).within(shape)
    if isinstance(fact, Magnitude):
        return Magnitude(change(fact.of).within(shape))
    if isinstance(fact, Where) and not fact.never:
        parts = [at_most_zero(change(c).within(shape), shape) for c in fact.constraints]
        result = ALWAYS
        for part in parts:
            result = result.both(part)
        return result
    return fact
