"""Loops that are known to run once at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import Builder, Declined, Example, Match, Op, PatternBuilder, Rewrite, Value, is_pure, refines
from regraft.rewrites.dynamic.regions import NewArms, flag, makes_sizes
from regraft.rewrites.dynamic.samples import loop
from regraft.rewrites.dynamic.truth import truth


class ShortLoop(Rewrite):
    """while(x){t(x)}{A(x)} = cond(t(x), x){A(x)}{x}, where t(A(x)) is False; = x where t(x) is.

    A flag that the body sets ends such a loop: ``while not done: ...; done = True``.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder) -> Any:
        return op.call("cf.while", (op.any_operands(),), {})

    def check(self, m: Match) -> Declined | None:
        culprit = m.root.operands[0] if m.root.operands else None
        if not (_runs_never(m.root) or _runs_once(m.root)):
            return m.decline("how often it runs is not known before a call", culprit)
        if not all(refines(a.type, r.type) for a, r in zip(m.root.operands, m.root.results, strict=True)):
            return m.decline("a size changes in the loop", culprit)
        if not all(is_pure(op) for op in m.root.regions[0].ops):
            return m.decline("the test has an effect", culprit)
        return makes_sizes(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        loop = m.root
        if _runs_never(loop):
            return loop.operands
        (enters,) = op.copy(loop.regions[0], loop.operands)
        body, every, arms = loop.regions[1], range(len(loop.results)), NewArms(op)
        arms.finish(0, arms.copy(0, body, loop.operands, body.results))
        arms.finish(1, [arms.inside(1, operand) for operand in loop.operands])
        return arms.cond(enters, loop, every)


def _runs_never(loop: Op) -> bool:
    return _test(loop, [truth(operand) for operand in loop.operands]) is False


def _runs_once(loop: Op) -> bool:
    start = _facts(loop.regions[1].args, [truth(operand) for operand in loop.operands])
    return _test(loop, [truth(value, start) for value in loop.regions[1].results]) is False


def _test(loop: Op, known: Sequence[bool | None]) -> bool | None:
    """What the test gives when the carried values are ``known``."""
    test = loop.regions[0]
    return truth(test.results[0], _facts(test.args, known))


def _facts(values: Sequence[Value], known: Sequence[bool | None]) -> dict[Value, bool]:
    return {value: holds for value, holds in zip(values, known, strict=True) if holds is not None}


def _until(op: Builder, done: Value, x: Value, *, sets: bool) -> Sequence[Value]:
    """``while not done: x = relu(x)``, where the body ``sets`` done, or leaves it to the sum."""
    return loop(
        op,
        (done, x),
        lambda op, done, x: op.aten.bitwise_not(done),
        lambda op, done, x: (
            flag(op, True) if sets else op.aten.gt.Scalar(op.aten.sum.dim_IntList(x, (0,)), -1.0),
            op.aten.relu(x),
        ),
    )


ShortLoop.examples = (
    Example(lambda op, done, x: _until(op, done, x, sets=True), ("bool[]", "f32[B]")),
    Example(lambda op, x: _until(op, flag(op, False), x, sets=True), ("f32[3]",)),
    Example(lambda op, x: _until(op, flag(op, True), x, sets=False), ("f32[3]",)),
)
ShortLoop.counterexamples = (
    Example(lambda op, done, x: _until(op, done, x, sets=False), ("bool[]", "f32[3]"), reason="not known"),
    Example(lambda op, x: _until(op, flag(op, False), x, sets=False), ("f32[3]",), reason="not known"),
)
