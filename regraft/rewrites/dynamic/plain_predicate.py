"""Predicates without what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import Builder, Declined, Example, Match, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.dynamic.regions import NewArms, flag, names_sizes
from regraft.rewrites.dynamic.samples import cond
from regraft.rewrites.dynamic.truth import is_logic, truth


class PlainPredicate(Rewrite):
    """cond(p and True){A}{B} = cond(p or False){A}{B} = cond(p){A}{B}"""

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.cf.cond(p, op.any_operands())

    def check(self, m: Match) -> Declined | None:
        if _deciding(m.p) is m.p:
            return m.decline("every part of the predicate decides", m.p)
        return names_sizes(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        arms, every = NewArms(op), range(len(m.root.results))
        for arm in (0, 1):
            arms.finish(arm, arms.copy_arm(arm, m.root, every))
        return arms.cond(_deciding(m.p), m.root, every)


def _deciding(pred: Value) -> Value:
    """``pred``, or the part of it that it equals because the other part is known."""
    op = pred.op
    if op is None or not is_logic(op) or len(op.operands) != 2 or truth(pred) is not None:
        return pred
    # A known part that does not settle the whole leaves the decision to the other.
    unknown = [operand for operand in op.operands if truth(operand) is None]
    return _deciding(unknown[0]) if len(unknown) == 1 else pred


def _branch(op: Builder, p: Value, x: Value) -> Value:
    return cond(op, p, (x,), lambda op, x: op.aten.relu(x), lambda op, x: op.aten.neg(x))


PlainPredicate.examples = (
    Example(
        lambda op, p, x: _branch(op, op.aten.bitwise_and.Tensor(p, flag(op, True)), x), ("bool[]", "f32[B]")
    ),
    Example(
        lambda op, p, x: _branch(op, op.aten.bitwise_or.Tensor(flag(op, False), p), x), ("bool[]", "f32[3]")
    ),
)
PlainPredicate.counterexamples = (
    Example(
        lambda op, p, q, x: _branch(op, op.aten.bitwise_and.Tensor(p, q), x),
        ("bool[]", "bool[]", "f32[3]"),
        reason="every part",
    ),
    Example(
        lambda op, p, x: _branch(op, op.aten.bitwise_or.Tensor(flag(op, True), p), x),
        ("bool[]", "f32[3]"),
        reason="every part",
    ),
)
