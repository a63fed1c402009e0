"""Conditions that give and take no more than is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import Builder, Declined, Example, Match, Op, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.dynamic.regions import (
    NewArms,
    flag,
    is_repeatable,
    kept_results,
    live_args,
    names_sizes,
)
from regraft.rewrites.dynamic.samples import cond


class TidyCondition(Rewrite):
    """cond(p, a, b, a, c){A(a), U(b)}{B(a, c)} = cond(p, a){A(a)}{B(a, c)}

    Results that nobody uses go, and with them what computes them; operands that no arm reads, or that are
    handed over twice; constants and single numbers are made where they are read.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.cf.cond(p, op.any_operands())

    def check(self, m: Match) -> Declined | None:
        operands, kept = m.root.variadic("operands"), kept_results(m.root)
        if len(kept) == len(m.root.results) and len(_needed(m.root, kept)) == len(operands):
            return m.decline("every operand and every result is needed", m.p)
        return names_sizes(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        arms, kept = NewArms(op), kept_results(m.root)
        for arm in (0, 1):
            arms.finish(arm, arms.copy_arm(arm, m.root, kept))
        return arms.cond(m.p, m.root, kept)


def _needed(op: Op, kept: Sequence[int]) -> set[Value]:
    """The operands that have to be handed over."""
    operands = op.variadic("operands")
    read = [live_args(region, [region.results[index] for index in kept]) for region in op.regions]
    return {operands[index] for index in set[int]().union(*read) if not is_repeatable(operands[index])}


def _first_changed(op: Builder, x: Value, y: Value, *_: Value) -> tuple[Value, Value]:
    return op.aten.relu(x), y


def _second_changed(op: Builder, x: Value, y: Value, *_: Value) -> tuple[Value, Value]:
    return x, op.aten.sin(y)


def _two(op: Builder, p: Value, operands: Sequence[Value]) -> tuple[Value, Value]:
    """Over two values or more: relu of the first or itself, and the second or its sine."""
    return cond(
        op,
        p,
        operands,
        _first_changed,
        _second_changed,
    )


TidyCondition.examples = (
    Example(lambda op, p, x, y: _two(op, p, (x, y))[0], ("bool[]", "f32[3, B]", "f32[B]")),
    Example(lambda op, p, x, y: _two(op, p, (x, y, x)), ("bool[]", "f32[3]", "f32[2]")),
    Example(lambda op, p, x: _two(op, p, (x, x)), ("bool[]", "f32[3]")),
    Example(lambda op, p, x, w: _two(op, p, (x, w)), ("bool[]", "f32[3]", "f32[2]"), constants=(2,)),
    Example(
        lambda op, p, q, x: cond(
            op, p, (flag(op, True), q), lambda op, a, q: a, lambda op, a, q: op.aten.bitwise_and.Tensor(a, q)
        ),
        ("bool[]", "bool[]", "f32[3]"),
    ),
    Example(lambda op, p, x, y: (_two(op, p, (x, y)), op.aten.neg(x))[1], ("bool[]", "f32[3]", "f32[3]")),
)
TidyCondition.counterexamples = (
    Example(lambda op, p, x, y: _two(op, p, (x, y)), ("bool[]", "f32[3]", "f32[3]"), reason="is needed"),
    Example(
        lambda op, p, x: (
            cond(op, p, (x, p), lambda op, x, p: _checked(op, x, p), lambda op, x, p: x),
            op.aten.neg(x),
        )[0],
        ("bool[]", "f32[3]"),
        reason="is needed",
    ),
)


def _checked(op: Builder, x: Value, p: Value) -> Value:
    """``x``, where it is checked that ``p`` holds."""
    op.rg.check(p, "p holds")
    return x
