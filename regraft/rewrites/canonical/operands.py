"""Where operands stand, and numbers that came as tensors."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    DType,
    Exactness,
    Example,
    Match,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
)
from regraft.rewrites.support import is_known

_COMMUTATIVE = ("aten.add.Tensor", "aten.mul.Tensor", "aten.maximum", "aten.minimum")


class ConstantOnTheRight(Rewrite):
    """w ∘ x = x ∘ w, for a constant w and a commutative ∘."""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, left: Var, right: Var) -> Any:
        return op.one_of(*(op.call(name, (left, right), {}) for name in _COMMUTATIVE))

    def check(self, m: Match) -> Declined | None:
        # The matcher tries the operands as they stand first.
        if is_known(m.left) and not is_known(m.right):
            return None
        return m.decline("there is no constant on the left of a value", m.left)

    def rewrite(self, op: Builder, m: Match) -> Value | Sequence[Value]:
        return op.call(m.root.name, (m.right, m.left), {})

    examples = (
        Example(lambda op, w, x: op.aten.mul.Tensor(w, x), ("f32[3]", "f32[2, 3]"), constants=(0,)),
        Example(lambda op, w, x: op.aten.add.Tensor(w, x), ("f32[3]", "f32[2, 3]"), constants=(0,)),
    )
    counterexamples = (
        Example(lambda op, x, w: op.aten.mul.Tensor(x, w), ("f32[3]", "f32[3]"), (1,), reason="no constant"),
        Example(
            lambda op, v, w: op.aten.mul.Tensor(v, w), ("f32[3]", "f32[3]"), (0, 1), reason="no constant"
        ),
    )


class ScaledAddend(Rewrite):
    """x ± alpha * y, as one op = x ± (y * alpha), as two. A fused multiply-add rounds once."""

    stage = "canonicalize"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, y: Var) -> Any:
        alpha = op.attr("alpha")
        return op.one_of(op.aten.add.Tensor(x, y, alpha=alpha), op.aten.sub.Tensor(x, y, alpha=alpha))

    def check(self, m: Match) -> Declined | None:
        return m.decline("alpha is 1", m.holder("alpha")) if m.attr("alpha") == 1 else None

    def rewrite(self, op: Builder, m: Match) -> Value | Sequence[Value]:
        # The matcher swaps the operands of an addition only when they did not match as they stand.
        return op.call(m.root.name, (m.x, op.aten.mul.Scalar(m.y, m.attr("alpha"))), {})

    examples = (
        Example(lambda op, x, y: op.aten.add.Tensor(x, y, alpha=0.3), ("f32[3]", "f32[2, 3]")),
        Example(lambda op, x, y: op.aten.sub.Tensor(x, y, alpha=2), ("i64[3]", "i64[3]")),
    )
    counterexamples = (
        Example(lambda op, x, y: op.aten.add.Tensor(x, y), ("f32[3]", "f32[3]"), reason="alpha is 1"),
    )


class NumberAsScalar(Rewrite):
    """x ∘ full(c) = x ∘ c for +, - and *, when c is exact in the dtype and full is no larger than x.

    A tensor operand is rounded to its dtype and a number to the dtype that torch computes in, which
    for half precision is f32: only a number that the dtype holds exactly means the same in both.
    """

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        number = op.shared(op.aten.full(op.attr("size"), op.attr("number"), dtype=op.attr("dtype")))
        return op.one_of(
            op.aten.add.Tensor(x, number),
            op.aten.mul.Tensor(x, number),
            op.aten.sub.Tensor(x, number),
            op.aten.div.Tensor(x, number),
        )

    def check(self, m: Match) -> Declined | None:
        number = m.attr("number")
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            return m.decline("the value is not a plain number", m.holder("number"))
        if m.root.result.type != m.x.type:
            return m.decline("the filled tensor is larger than the other operand", m.holder("size"))
        dtype = m.x.tensor.dtype
        if not _is_exact(number, dtype):
            return m.decline(f"{number!r} is rounded in {dtype.value}", m.holder("number"))
        if m.root.name == "aten.sub.Tensor" and dtype.is_integer and number == -(1 << 63):
            return m.decline("the number has no negative in 64 bits", m.holder("number"))
        return None

    def rewrite(self, op: Builder, m: Match) -> Value | Sequence[Value]:
        number = m.attr("number")
        if m.root.name == "aten.sub.Tensor":
            # A float's negative: x - 0 is x + (-0.0), and the integer 0 has no other sign.
            return op.aten.add.Scalar(m.x, -float(number) if m.x.tensor.dtype.is_float else -number)
        return op.call(m.root.name.replace(".Tensor", ".Scalar"), (m.x, number), {})

    examples = (
        Example(lambda op, x: op.aten.mul.Tensor(x, _full(op, 0.1, DType.F64)), ("f64[3]",)),
        Example(lambda op, x: op.aten.add.Tensor(_full(op, 2, DType.I64), x), ("i64[3]",)),
        Example(lambda op, x: op.aten.sub.Tensor(x, _full(op, 2.5, DType.F32)), ("f32[3]",)),
        Example(lambda op, x: op.aten.div.Tensor(x, _full(op, 4.0, DType.F32)), ("f32[3]",)),
        # -0.0 - 0 is -0.0, and -0.0 + 0 is not.
        Example(
            lambda op, x: op.aten.sub.Tensor(
                op.aten.cat([x, op.aten.mul.Scalar(op.aten.abs(x), -0.0)], 0), _full(op, 0, DType.F32)
            ),
            ("f32[3]",),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x: op.aten.mul.Tensor(x, _full(op, 0.1, DType.BF16)), ("bf16[3]",), reason="rounded"
        ),
        Example(
            lambda op, x: op.aten.mul.Tensor(x, _full(op, 2.0, DType.F32, (2, 3))),
            ("f32[3]",),
            reason="larger",
        ),
        Example(
            lambda op, x: op.aten.sub.Tensor(_full(op, 2.0, DType.F32), x), ("f32[3]",), reason="expected"
        ),
        Example(
            lambda op, x: op.aten.sub.Tensor(x, _full(op, -(1 << 63), DType.I64)),
            ("i64[3]",),
            reason="no negative",
        ),
    )


_FORMATS = {DType.F16: "e", DType.F32: "f", DType.F64: "d"}


def _is_exact(number: float, dtype: DType) -> bool:
    """Whether ``dtype`` holds ``number`` without rounding."""
    if dtype.is_integer:
        return isinstance(number, int)
    if dtype is DType.BF16:  # an f32 whose lower half is empty
        return _is_exact(number, DType.F32) and struct.pack(">f", number)[2:] == b"\0\0"
    if dtype not in _FORMATS:
        return False
    try:
        return struct.unpack(_FORMATS[dtype], struct.pack(_FORMATS[dtype], number))[0] == number
    except (OverflowError, struct.error):
        return False


def _full(op: Builder, value: float, dtype: DType, size: tuple[int, ...] = ()) -> Value:
    return op.aten.full(size, value, dtype=dtype)
