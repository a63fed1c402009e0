"""Whether a mask may set every score of a query to -∞, and what an added mask can hold."""

from __future__ import annotations

import math
from typing import TypeAlias

from regraft.ir import DType, Value
from regraft.rewrites.attention.masks import sees_a_key

Interval: TypeAlias = tuple[float, float]

_LARGEST = {DType.F16: 65504.0, DType.BF16: 3.38e38, DType.F32: 3.4028234663852886e38, DType.F64: 1.79e308}
_INTEGERS = {DType.U8: (0, 255), DType.I8: (-128, 127), DType.I16: (-(1 << 15), 1 << 15)}
_MAX_DEPTH = 20


def may_hide_a_row(mask: Value) -> bool:
    """Whether an added ``mask`` is not proved to leave every query a key."""
    op = mask.op
    if finite_range(mask) is not None:
        return False
    if op is None:
        return True
    if op.name == "aten.where.self":
        condition, *branches = op.operands
        infinite = [finite_range(branch) is None for branch in branches]
        return all(infinite) or not sees_a_key(condition, negated=infinite[0])
    if op.name == "aten.triu":
        # What is below the diagonal is 0, the first key of every query among it.
        return not (isinstance(op.attr("diagonal"), int) and op.attr("diagonal") >= 1)
    if op.name == "aten.expand" and op.operands[0].tensor.rank >= 2:
        source, target = op.operands[0].tensor.shape, op.result.tensor.shape
        return source[-2:] != target[-2:] or may_hide_a_row(op.operands[0])
    return True


def finite_range(value: Value, depth: int = 0) -> Interval | None:
    """Bounds of a tensor that is proved to hold finite numbers only; None when it is not."""
    found, dtype = _range(value, depth), value.tensor.dtype
    if found is None or (dtype.is_float and max(map(abs, found)) > _LARGEST.get(dtype, 0.0)):
        return None
    return found if all(map(math.isfinite, found)) else None


def _range(value: Value, depth: int) -> Interval | None:
    op, dtype = value.op, value.tensor.dtype
    if dtype is DType.BOOL:
        return 0, 1
    if dtype in _INTEGERS:
        return _INTEGERS[dtype]
    if op is None or depth > _MAX_DEPTH:
        return None
    if op.name == "aten.full":
        number = op.attr("fill_value")
        return (float(number), float(number)) if isinstance(number, (int, float)) else None
    if op.name not in _KEEPS | _LINEAR | {"aten.where.self"}:
        return None
    ranges = [finite_range(operand, depth + 1) for operand in op.operands[op.name == "aten.where.self" :]]
    known = [found for found in ranges if found is not None]
    if len(known) < len(ranges) or op.attrs.get("alpha", 1) != 1:
        return None
    if op.name in _KEEPS | {"aten.where.self"}:
        return min(low for low, _ in known), max(high for _, high in known)
    number = op.attrs.get("other")
    other = known[1] if len(known) > 1 else (number, number)
    return _combined(op.name, known[0], other)


_KEEPS = {"aten._to_copy", "aten.view", "aten.expand", "aten.permute", "aten.slice.Tensor"}
_LINEAR = {
    f"aten.{name}" for name in ("neg", "mul.Tensor", "mul.Scalar", "add.Tensor", "add.Scalar", "sub.Tensor")
}


def _combined(name: str, a: Interval, b: tuple[object, object]) -> Interval | None:
    if name == "aten.neg":
        return -a[1], -a[0]
    low, high = b
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return None
    if name.startswith("aten.add"):
        return a[0] + low, a[1] + high
    if name.startswith("aten.sub"):
        return a[0] - high, a[1] - low
    corners = [x * y for x in a for y in (low, high)]
    return min(corners), max(corners)
