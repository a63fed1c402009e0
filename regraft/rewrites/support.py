"""Questions that several rewrites ask about values and attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from regraft.ir import Dim, DType, Op, TensorType, Trait, Value, dims


def is_number(attr: object, expected: float, dtype: DType) -> bool:
    """Whether an attribute is the constant ``expected`` in a formula over ``dtype``.

    Printed constants (0.79788456) often have some seven digits: enough for f32 and less. Anything further
    off is another formula, and in f64 the missing digits would show.
    """
    if isinstance(attr, bool) or not isinstance(attr, (int, float)):
        return False
    return math.isclose(attr, expected, rel_tol=1e-11 if dtype is DType.F64 else 1e-6)


def is_const(value: Value) -> bool:
    """Whether ``value`` is a constant of the module."""
    return value.is_const


def is_known(value: Value, depth: int = 8) -> bool:
    """Whether ``value`` is computed from constants alone, so that ``fold`` will make it one."""
    if is_const(value):
        return True
    op = value.op
    if op is None or depth == 0 or not op.operands or not op.has(Trait.PURE):
        return False
    return all(is_known(operand, depth - 1) for operand in op.operands)


def is_computed_at_compile_time(value: Value, depth: int = 16) -> bool:
    """Whether ``value`` depends on no input and no size: ``is_known``, or made of generated tensors."""
    if is_const(value):
        return True
    op = value.op
    if not isinstance(value.type, TensorType) or not value.type.is_static:
        return False
    if op is None or depth == 0 or op.regions or not op.has(Trait.PURE):
        return False
    return all(is_computed_at_compile_time(operand, depth - 1) for operand in op.operands)


def same_dims(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether two shapes are provably equal."""
    return len(a) == len(b) and all(dims.eq(x, y) is True for x, y in zip(a, b, strict=True))


def broadcasts_to(shape: Sequence[Dim], target: Sequence[Dim]) -> bool:
    """Whether ``shape`` provably broadcasts to ``target`` without enlarging it."""
    if len(shape) > len(target):
        return False
    tail = target[len(target) - len(shape) :]
    return all(d == 1 or dims.eq(d, t) is True for d, t in zip(shape, tail, strict=True))


def is_last_dims(axes: Sequence[Dim], rank: int) -> bool:
    """Whether ``axes`` are the last dimensions of a tensor of ``rank``, in any order."""
    count = len(axes)
    return 0 < count <= rank and sorted(map(str, axes)) == sorted(map(str, range(rank - count, rank)))


def is_along(factor: Value, result: Value, axis: int) -> bool:
    """Whether ``factor`` is one number, or one for each place of ``axis`` (from the end) of ``result``."""
    shape = factor.tensor.shape
    if len(shape) > result.tensor.rank:
        return False
    size = result.tensor.shape[axis]
    return all(d == 1 or (i - len(shape) == axis and d == size) for i, d in enumerate(shape))


def is_inside_alternatives(op: Op) -> bool:
    """Whether ``op`` is a part of a form of an ``rg.alt``: forms have no alternatives of their own."""
    around = op.parent.parent if op.parent is not None else None
    while around is not None and around.name != "rg.alt":
        around = around.parent.parent if around.parent is not None else None
    return around is not None


def keeps_every_value(source: DType, target: DType) -> bool:
    """Whether a cast from ``source`` to ``target`` and back is the identity."""
    if source == target or source is DType.BOOL:
        return True
    if source.is_integer and target.is_integer:
        extra = 1 if source.kind == "uint" and target.kind == "int" else 0
        return source.bits + extra <= target.bits and not (source.kind == "int" and target.kind == "uint")
    if source.is_integer and target.is_float:
        magnitude_bits = source.bits - (1 if source.kind == "int" else 0)
        return magnitude_bits <= _SIGNIFICAND[target]
    if source.is_float and target.is_float:
        return (source, target) in _WIDENING
    return False


_SIGNIFICAND = {DType.BF16: 8, DType.F16: 11, DType.F32: 24, DType.F64: 53}
_WIDENING = {
    (DType.BF16, DType.F32),
    (DType.F16, DType.F32),
    (DType.BF16, DType.F64),
    (DType.F16, DType.F64),
    (DType.F32, DType.F64),
}
