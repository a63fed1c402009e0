"""Branches that compile time decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import Builder, Declined, Example, Match, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.dynamic.regions import flag, makes_sizes
from regraft.rewrites.dynamic.samples import cond
from regraft.rewrites.dynamic.truth import truth


class ConstantBranch(Rewrite):
    """cond(True){A}{B} = A, cond(False){A}{B} = B."""

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.cf.cond(p, op.any_operands())

    def check(self, m: Match) -> Declined | None:
        if truth(m.p) is None:
            return m.decline("what the predicate is, is not known before a call", m.p)
        return makes_sizes(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value]:
        taken = m.root.regions[0 if truth(m.p) else 1]
        return op.copy(taken, m.root.variadic("operands"))


def _branch(op: Builder, p: Value, x: Value) -> Value:
    return cond(op, p, (x,), lambda op, x: op.aten.relu(x), lambda op, x: op.aten.neg(x))


ConstantBranch.examples = (
    Example(lambda op, x: _branch(op, flag(op, True), x), ("f32[3, B]",)),
    Example(lambda op, x: _branch(op, flag(op, False), x), ("f32[3]",)),
    Example(
        lambda op, x, q: _branch(op, op.aten.bitwise_and.Tensor(q, flag(op, False)), x), ("f32[3]", "bool[]")
    ),
    Example(
        lambda op, x: _branch(
            op, op.aten.bitwise_not(op.aten.bitwise_or.Tensor(flag(op, False), flag(op, True))), x
        ),
        ("f32[3]",),
    ),
)
ConstantBranch.counterexamples = (
    Example(_branch_on_input := lambda op, x, q: _branch(op, q, x), ("f32[3]", "bool[]"), reason="not known"),
    Example(
        lambda op, x, q: _branch(op, op.aten.bitwise_and.Tensor(q, flag(op, True)), x),
        ("f32[3]", "bool[]"),
        reason="not known",
    ),
)
