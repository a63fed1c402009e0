"""What one arm of a condition alone needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Example,
    Match,
    Op,
    PatternBuilder,
    Region,
    Rewrite,
    Use,
    Value,
    Var,
    backward_slice,
    is_pure,
)
from regraft.rewrites.dynamic.loop_invariant import invariant_ops
from regraft.rewrites.dynamic.regions import NewArms, is_repeatable, live_args, names_sizes, needs_torch
from regraft.rewrites.dynamic.samples import below, cond, loop


class SunkOps(Rewrite):
    """y = f(x); cond(p, y){A(y)}{B} = cond(p, x){A(f(x))}{B}

    What makes skipped work skipped: ops whose results one arm alone reads run in that arm. What a loop around
    would compute once for all its trips stays outside.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.cf.cond(p, op.any_operands())

    def check(self, m: Match) -> Declined | None:
        if not any(_needed_in(m.root).values()):
            return m.decline("nothing before it is needed in one arm alone", m.p)
        return names_sizes(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        arms, every = NewArms(op), range(len(m.root.results))
        for arm, ops in _needed_in(m.root).items():
            for each in ops:
                arms.insert(arm, each)
        for arm in (0, 1):
            arms.finish(arm, arms.copy_arm(arm, m.root, every))
        return arms.cond(m.p, m.root, every)


def _needed_in(cond: Op) -> dict[int, list[Op]]:
    """The ops that each arm alone needs, in order."""
    arms = _arms_that_read(cond)
    stays = _computed_once(cond.parent)
    sunk: dict[Op, int] = {}
    for op in reversed(backward_slice(cond.variadic("operands"))):
        if op in stays or not _may_sink(op):
            continue
        readers = {_reader(use, cond, arms, sunk) for result in op.results for use in result.uses}
        arm = readers.pop() if len(readers) == 1 else None
        if arm is not None:
            sunk[op] = arm
    return {arm: [op for op in reversed(sunk) if sunk[op] == arm] for arm in (0, 1)}


def _reader(use: Use, cond: Op, arms: Sequence[int | None], sunk: Mapping[Op, int]) -> int | None:
    """The arm in which a value is read at ``use``; None when it is not in one alone."""
    return arms[use.index] if use.op is cond else sunk.get(use.op)


def _arms_that_read(cond: Op) -> list[int | None]:
    """For each operand, the one arm that reads it; None for the predicate and where there is no such arm."""
    then, other = (live_args(region, region.results) for region in cond.regions)
    count = len(cond.variadic("operands"))
    return [None, *((0 if i in then else 1) if (i in then) != (i in other) else None for i in range(count))]


def _may_sink(op: Op) -> bool:
    return is_pure(op) and not op.symbols and not is_repeatable(op.results[0]) and not needs_torch(op)


def _computed_once(region: Region | None) -> set[Op]:
    """The ops of a loop's region that are better hoisted out of the loop."""
    loop = None if region is None else region.parent
    if region is None or loop is None or loop.name != "cf.while":
        return set()
    return set(invariant_ops(loop, loop.regions.index(region)))


def _skipped(op: Builder, p: Value, x: Value, w: Value) -> Value:
    """``x + relu(x @ w)`` where ``p``, else ``x``: the product is written before the condition."""
    hidden = op.aten.relu(op.aten.matmul(x, w))
    return cond(op, p, (x, hidden), lambda op, x, h: op.aten.add.Tensor(x, h), lambda op, x, h: x)


def _both(op: Builder, p: Value, x: Value) -> Value:
    hidden = op.aten.relu(x)
    return cond(op, p, (hidden,), lambda op, h: op.aten.neg(h), lambda op, h: h)


def _kept(op: Builder, p: Value, x: Value, w: Value) -> tuple[Value, Value]:
    hidden = op.aten.relu(x)
    return hidden, cond(op, p, (x, hidden), lambda op, x, h: op.aten.add.Tensor(x, h), lambda op, x, h: x)


def _in_loop(op: Builder, n: Value, x: Value) -> Value:
    """Where n is odd in a trip, a value that is the same in all of them is subtracted."""

    def trip(op: Builder, n: Value, y: Value, x: Value) -> tuple[Value, Value, Value]:
        odd = op.aten.eq.Scalar(op.aten.remainder.Scalar(n, 2), 1)
        less = cond(
            op, odd, (y, op.aten.sin(x)), lambda op, y, s: op.aten.sub.Tensor(y, s), lambda op, y, s: y
        )
        return op.aten.add.Scalar(n, 1), less, x

    return loop(op, (n, x, x), below(4), trip)[1]


SunkOps.examples = (
    Example(_skipped, ("bool[]", "f32[B, 4]", "f32[4, 4]")),
    Example(
        lambda op, p, x, y: cond(
            op,
            p,
            (op.aten.sin(x), op.aten.cos(y)),
            lambda op, a, b: op.aten.neg(a),
            lambda op, a, b: op.aten.relu(b),
        ),
        ("bool[]", "f32[3]", "f32[3]"),
    ),
)
SunkOps.counterexamples = (
    Example(_both, ("bool[]", "f32[3]"), reason="needed in one arm alone"),
    Example(_kept, ("bool[]", "f32[3]", "f32[3]"), reason="needed in one arm alone"),
    Example(
        lambda op, x: cond(
            op,
            op.aten.gt.Scalar(op.aten.sum.dim_IntList(x, (0,)), 0.0),
            (x,),
            lambda op, x: op.aten.neg(x),
            lambda op, x: x,
        ),
        ("f32[3]",),
        reason="needed in one arm alone",
    ),
    Example(_in_loop, ("i64[]", "f32[3]"), reason="needed in one arm alone"),
)
