"""Blends by one number that is 0 or 1, of which one side need not be computed."""

from __future__ import annotations

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
from regraft.rewrites.dynamic.selected_side import block, chosen, undecided


class MaskedBlend(Rewrite):
    """x + m * f = cond(m){x + f}{x}; m * f + (1 - m) * x = cond(m){f}{x}, where m is one number, 0 or 1

    The number is a bool that was cast, or the straight-through ``(bool(p > t) - p) + p`` of a probability.
    The two sides differ where the skipped one holds infinities or nan, which 0 does not remove, where the
    probability is nan, which its bool is not, and in the sign of zeros: so this is applied only with
    ``exactness=Exactness.APPROX(0.0)`` or more.
    """

    exactness = Exactness.APPROX(0.0)
    stage = "fold"

    def pattern(self, op: PatternBuilder, m: Var, n: Var, f: Var, x: Var) -> Any:
        rest = op.aten.mul.Tensor(op.shared(op.aten.add.Scalar(op.shared(op.aten.neg(n)), 1)), x)
        kept = op.aten.mul.Tensor(m, f)
        return op.one_of(op.aten.add.Tensor(kept, rest), op.aten.add.Tensor(x, kept))

    def check(self, m: Match) -> Declined | None:
        mask, side, _ = _sides(m)
        if mask is None:
            return m.decline("no factor is one number that is 0 or 1", m.f)
        return undecided(m, mask, (side,))

    def rewrite(self, op: Builder, m: Match) -> Value:
        mask, side, adds = _sides(m)
        assert mask is not None
        if adds:
            side = op.aten.add.Tensor(m.x, side)
        return chosen(op, m, mask, side, m.x)


def _sides(m: Match) -> tuple[Value | None, Value, bool]:
    """The bool that decides, what is multiplied by it, and whether the other side is added to that."""
    other = m.optional("n")
    for mask, side in ((m.m, m.f), (m.f, m.m)):
        decides = bool_of(mask)
        if decides is not None and (other is None or other is mask):
            return decides, side, other is None
    return None, m.f, other is None


def bool_of(mask: Value) -> Value | None:
    """The bool of one element that the number ``mask`` is 1 or 0 by; None when it may be something else."""
    op = mask.op
    while op is not None and op.name in ("aten.view", "aten.expand"):
        mask = op.operands[0]
        op = mask.op
    if op is None or mask.tensor.numel != 1 or not mask.tensor.dtype.is_float:
        return None
    if op.name == "aten.add.Tensor" and op.attr("alpha") == 1:
        pairs = (op.operands, op.operands[::-1])
        return next((found for a, p in pairs if (found := _straight_through(a, p)) is not None), None)
    if op.name == "aten._to_copy" and op.operands[0].tensor.dtype == DType.BOOL:
        return op.operands[0]
    return None


def _straight_through(difference: Value, p: Value) -> Value | None:
    """The bool of ``(bool(p > t) - p) + p``, which is exactly 0 or 1 for p up to 1 and t from a half on."""
    op = difference.op
    if op is None or op.name != "aten.sub.Tensor" or op.operands[1] is not p or op.attr("alpha") != 1:
        return None
    found = bool_of(op.operands[0])
    test = None if found is None else found.op
    if test is None or test.name not in ("aten.gt.Scalar", "aten.ge.Scalar") or test.operands[0] is not p:
        return None
    threshold = test.attr("other")
    is_half = isinstance(threshold, (int, float)) and threshold >= 0.5
    return found if is_half and _is_probability(p) else None


def _is_probability(value: Value) -> bool:
    op = value.op
    while op is not None and op.name in ("aten.view", "aten.slice.Tensor", "aten.index.Tensor"):
        op = op.operands[0].op
    return op is not None and op.name in ("aten.sigmoid", "aten.softmax.int")


def _decision(op: Builder, x: Value, at: float = 0.5) -> tuple[Value, Value]:
    p = op.aten.sigmoid(op.aten.mean.dim(x, (0, 1), True))
    return p, op.aten.gt.Scalar(p, at)


def _added(op: Builder, x: Value, w: Value, *, per_row: bool = False) -> Value:
    """``x + mask * block(x)``; ``per_row`` has a mask for each row."""
    decision = op.aten.gt.Scalar(op.aten.mean.dim(x, (1,) if per_row else (0, 1), True), 0.0)
    mask = op.aten._to_copy(decision, dtype=DType.F32)
    return op.aten.add.Tensor(x, op.aten.mul.Tensor(block(op, x, w), mask))


def _blended(op: Builder, x: Value, w: Value, at: float = 0.5) -> Value:
    """``mask * block(x) + (1 - mask) * x`` with a straight-through mask."""
    p, decision = _decision(op, x, at)
    hard = op.aten._to_copy(decision, dtype=DType.F32)
    mask = op.aten.add.Tensor(op.aten.sub.Tensor(hard, p), p)
    rest = op.aten.add.Scalar(op.aten.neg(mask), 1)
    return op.aten.add.Tensor(op.aten.mul.Tensor(mask, block(op, x, w)), op.aten.mul.Tensor(rest, x))


_LARGE = ("f32[64, 32]", "f32[32, 32]")

MaskedBlend.examples = (
    Example(_added, _LARGE),
    Example(_blended, _LARGE),
)
MaskedBlend.counterexamples = (
    Example(lambda op, x, w: _added(op, x, w, per_row=True), _LARGE, reason="0 or 1"),
    Example(lambda op, x, w: _blended(op, x, w, 0.25), _LARGE, reason="0 or 1"),
    Example(_added, ("f32[2, 3]", "f32[3, 3]"), reason="enough arithmetic"),
)
