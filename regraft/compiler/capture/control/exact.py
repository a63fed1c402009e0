"""Arithmetic of Python's numbers, on tensors, where torch's is another: what raises, and how it is rounded.

Where eager raises, a call fails by a check.
"""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: To how many digits ``rounded`` is exact: 5 to that power has no more than 26 bits.
DIGITS = 11
#: How many bits of a number's fraction are multiplied at a time, and the last that there may be.
_BITS, _LAST_BIT = 26, 104
_INTEGER_BITS = 64
_LARGEST = 2**63 - 1


def check(holds: Tensor, message: str) -> None:
    """Let a call fail with ``message`` in which ``holds``, one element, is false."""
    torch.ops.aten._assert_async.msg(holds, message)


def as_integer(number: Tensor) -> Tensor:
    """``int(number)`` of f64."""
    check(number == number, "ValueError: cannot convert float NaN to integer")
    fits = ~(number.abs() >= 2.0**63)
    message = "OverflowError: cannot convert float infinity to integer, nor one that has no place in 64 bits"
    check(fits, message)
    return number.trunc().to(torch.int64)


def rounded(number: Tensor, digits: int) -> Tensor:
    """``round(number, digits)`` of f64: the double nearest to the decimal nearest to it, ties to even.

    The product with the power of ten is rounded itself. Where it lies half way between two integers, what it
    lost says on which side the number is.
    """
    power = 10.0**digits
    product = number * power
    below, lost = product.floor(), _rest(number, power, product)
    settled = torch.where(lost > 0, below + 1, below)
    nearest = torch.where((product - below == 0.5) & (lost != 0), settled, product.round())
    # Beyond, neighbouring doubles are further apart than the decimals.
    return torch.where(product.abs() < 2.0**53, nearest / power, number)


def _rest(number: Tensor, power: float, product: Tensor) -> Tensor:
    """``number * power - product``, exactly, where ``product`` is half way between two integers.

    Few bits are multiplied at a time, so that each product and each sum is a double: whether a kernel rounds
    between the two makes no difference.
    """
    found, left = -product, number
    for bits in range(0, _LAST_BIT + 1, _BITS):
        part = (left * 2.0**bits).trunc() / 2.0**bits
        found, left = found + part * power, left - part
    return found


def power(base: Any, exponent: Any) -> Tensor:
    """``base ** exponent``: floats of Python's, or tensors of f64, as one of them is."""
    found = torch.pow(base, exponent)
    one, other = (
        each if isinstance(each, Tensor) else torch.full((), each, dtype=torch.float64)
        for each in (base, exponent)
    )
    is_positive = not isinstance(base, Tensor) and base > 0
    are_finite = one.isfinite() & other.isfinite()
    if not is_positive and (isinstance(exponent, Tensor) or exponent < 0):
        holds = ~((one == 0) & (other < 0))
        check(holds, "ZeroDivisionError: 0.0 cannot be raised to a negative power")
    if not is_positive and (isinstance(exponent, Tensor) or not exponent.is_integer()):
        is_complex = are_finite & (one < 0) & (other != other.trunc())
        check(~is_complex, "a negative number to the power of a fraction is complex")
    is_beyond = are_finite & found.isinf() & (one != 0)
    check(~is_beyond, "OverflowError: (34, 'Numerical result out of range')")
    return found


def shifted(number: Tensor, count: Tensor, *, is_left: bool) -> Tensor:
    """``number << count`` or ``number >> count`` of i64."""
    check(count >= 0, "ValueError: negative shift count")
    within = count.clamp(0, _INTEGER_BITS - 1)
    if is_left:
        return torch.where(count < _INTEGER_BITS, number << within, 0)
    return number >> within


def converted(numbers: Tensor, dtype: torch.dtype, *, is_filling: bool = False) -> Tensor:
    """Python's numbers in ``numbers``, bool, i64 or f64, as ``torch.tensor`` has them in ``dtype``.

    It refuses what an integer type does not hold; what fills tensors (``is_filling``) what a float type does
    not hold as well. Negative integers wrap in an unsigned type, floats do not.
    """
    lowest, largest = _limits(numbers.dtype, dtype, is_filling)
    if largest is None:
        return numbers.to(dtype)
    fits = (numbers >= lowest) & (numbers <= largest)
    if dtype.is_floating_point:
        fits = fits | ~numbers.isfinite()
    name = str(dtype).removeprefix("torch.")
    check(fits.all(), f"RuntimeError: value cannot be converted to type {name} without overflow")
    return numbers.to(dtype)


def _limits(numbers: torch.dtype, dtype: torch.dtype, is_filling: bool) -> tuple[Any, Any]:
    """The least and the largest of ``numbers`` that ``dtype`` holds; None where it holds all."""
    if dtype.is_complex or numbers == torch.bool or dtype in (torch.bool, numbers):
        return None, None
    if dtype.is_floating_point:
        largest = torch.finfo(dtype).max
        return (-largest, largest) if is_filling and numbers.is_floating_point else (None, None)
    limits = torch.iinfo(dtype)
    wraps = limits.min == 0 and numbers == torch.int64
    return -limits.max if wraps else limits.min, min(limits.max, _LARGEST)
