"""What a branch knows of its own predicate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import Builder, Declined, Example, Match, Op, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.dynamic.regions import NewArms, is_repeatable, live_args, names_sizes
from regraft.rewrites.dynamic.samples import cond
from regraft.rewrites.dynamic.truth import in_arm


class KnownInArm(Rewrite):
    """cond(p, p){A(p)}{B(p)} = cond(p){A(True)}{B(False)}

    Also what follows from p: in the first arm of ``cond(p and q)`` both are true.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.cf.cond(p, op.any_operands())

    def check(self, m: Match) -> Declined | None:
        if not any(_known(m.root, arm) for arm in (0, 1)):
            return m.decline("nothing that its arms read follows from the predicate", m.p)
        return names_sizes(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        arms, every = NewArms(op), range(len(m.root.results))
        for arm in (0, 1):
            for value, holds in _known(m.root, arm).items():
                arms.assume(arm, value, holds)
        for arm in (0, 1):
            arms.finish(arm, arms.copy_arm(arm, m.root, every))
        return arms.cond(m.p, m.root, every)


def _known(op: Op, arm: int) -> dict[Value, bool]:
    """The operands that an arm reads and that are known there."""
    region, operands, known = op.regions[arm], op.variadic("operands"), in_arm(op, arm)
    read = live_args(region, region.results)
    return {
        operands[argument.index]: known[argument]
        for argument in region.args
        if argument in known and argument.index in read and not is_repeatable(operands[argument.index])
    }


def _nested(op: Builder, p: Value, q: Value, x: Value) -> Value:
    """``relu(-x) if q else sin(-x)`` where ``p``, else ``cos(x) if q else x``."""
    return cond(
        op,
        p,
        (q, x),
        lambda op, q, x: cond(
            op, q, (op.aten.neg(x),), lambda op, x: op.aten.relu(x), lambda op, x: op.aten.sin(x)
        ),
        lambda op, q, x: cond(op, q, (x,), lambda op, x: op.aten.cos(x), lambda op, x: x),
    )


KnownInArm.examples = (
    Example(lambda op, p, x: _nested(op, p, p, x), ("bool[]", "f32[B]")),
    Example(lambda op, p, x: _nested(op, p, op.aten.bitwise_not(p), x), ("bool[]", "f32[3]")),
    Example(
        lambda op, p, q, x: _nested(op, op.aten.bitwise_and.Tensor(p, q), q, x),
        ("bool[]", "bool[]", "f32[3]"),
    ),
    Example(
        lambda op, p, q, x: _nested(op, op.aten.bitwise_or.Tensor(p, q), p, x), ("bool[]", "bool[]", "f32[3]")
    ),
    Example(
        lambda op, p, q, x: _nested(op, p, op.aten.bitwise_or.Tensor(p, q), x), ("bool[]", "bool[]", "f32[3]")
    ),
    Example(
        lambda op, p, x: cond(op, p, (p, x), lambda op, p, x: (p, x), lambda op, p, x: (p, op.aten.neg(x))),
        ("bool[]", "f32[3]"),
    ),
)
KnownInArm.counterexamples = (
    Example(_nested, ("bool[]", "bool[]", "f32[3]"), reason="follows from the predicate"),
    Example(
        lambda op, p, x: cond(op, p, (p, x), lambda op, p, x: op.aten.relu(x), lambda op, p, x: x),
        ("bool[]", "f32[3]"),
        reason="follows from the predicate",
    ),
)
