"""One spelling of a condition and its opposite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import Builder, Declined, Example, Match, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.dynamic.regions import NewArms, names_sizes
from regraft.rewrites.dynamic.samples import cond


class BranchOnNot(Rewrite):
    """cond(not p){A}{B} = cond(p){B}{A}"""

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.cf.cond(op.shared(op.aten.bitwise_not(p)), op.any_operands())

    def check(self, m: Match) -> Declined | None:
        return names_sizes(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        arms, every = NewArms(op), range(len(m.root.results))
        for arm in (0, 1):
            arms.finish(arm, arms.copy_arm(arm, m.root, every, source=1 - arm))
        return arms.cond(m.p, m.root, every)


def _branch(op: Builder, p: Value, x: Value, y: Value) -> Value:
    return cond(op, p, (x, y), lambda op, x, y: op.aten.relu(x), lambda op, x, y: op.aten.add.Tensor(x, y))


BranchOnNot.examples = (
    Example(
        lambda op, p, x, y: _branch(op, op.aten.bitwise_not(p), x, y), ("bool[]", "f32[3, B]", "f32[3, B]")
    ),
    Example(lambda op, p, x: (q := op.aten.bitwise_not(p), _branch(op, q, x, x)), ("bool[]", "f32[3]")),
)
BranchOnNot.counterexamples = (
    Example(_branch, ("bool[]", "f32[3]", "f32[3]"), reason="expected aten.bitwise_not"),
)
