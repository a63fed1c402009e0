"""What every trip of a loop would compute again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    TensorType,
    Value,
    is_pure,
    is_speculatable,
    refines,
)
from regraft.rewrites.dynamic.loops import loop_over, unchanged
from regraft.rewrites.dynamic.motion import movable_ops, pull_out
from regraft.rewrites.dynamic.regions import NewArms, live_ops
from regraft.rewrites.dynamic.samples import below, loop

CHEAP_ELEMENTS = 1024
"""Ops whose results have no more elements, and that take no more arithmetic, cost no more than a branch."""


class LoopInvariant(Rewrite):
    """while(x, c){x + f(c), c} = while(x, c, f(c)){x + y, c, y}; under cond(t(x)) where f costs.

    An op that depends on nothing but what no trip changes, and that may run early, runs once. The test runs
    in any case, so what it computes moves before the loop. What the body computes moves there when it is
    cheap; when it costs, it must not run for a loop of no trips: the loop is then put under a condition on
    its first test, and the op between the two. What constants alone determine is left to become a constant.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder) -> Any:
        return op.call("cf.while", (op.any_operands(),), {})

    def check(self, m: Match) -> Declined | None:
        if not invariant_ops(m.root, 0) and not _hoisted(m.root):
            culprit = m.root.operands[0] if m.root.operands else None
            return m.decline("each trip computes something else", culprit)
        return None

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        loop, every = m.root, range(len(m.root.results))
        if not any(_costs(each) for each in _hoisted(loop)):
            return _hoist(op, loop, loop.operands)
        arms = NewArms(op)
        (enters,) = op.copy(loop.regions[0], loop.operands)
        inside = [arms.inside(0, operand) for operand in loop.operands]
        results = _hoist(arms.builder(0), loop, inside)
        arms.finish(0, [value for value in results if value is not None])
        arms.finish(1, [arms.inside(1, operand) for operand in loop.operands])
        return arms.cond(enters, loop, every)


def invariant_ops(loop: Op, number: int) -> list[Op]:
    """The ops of a region of ``loop`` (0 the test, 1 the body) that are the same in every trip."""
    region, still = loop.regions[number], unchanged(loop)
    live = set(live_ops(region, region.results))
    args = [argument for argument in region.args if argument.index in still]
    return [op for op in movable_ops(region, args, is_speculatable) if op in live]


def _hoisted(loop: Op) -> list[Op]:
    """The ops of the body that leave it: those that cost stay where the loop cannot be put under its test."""
    ops = invariant_ops(loop, 1)
    return ops if _may_be_guarded(loop) else [op for op in ops if not _costs(op)]


def _may_be_guarded(loop: Op) -> bool:
    kept = all(refines(a.type, r.type) for a, r in zip(loop.operands, loop.results, strict=True))
    plain = not loop.symbols and not any(region.symbols for region in loop.regions)
    test = loop.regions[0]
    # The test is there twice then, and no symbol may be.
    return kept and plain and all(map(is_pure, test.ops)) and not any(op.symbols for op in test.walk())


def _costs(op: Op) -> bool:
    """Whether running ``op`` in vain would be felt."""
    types = [result.type for result in op.results]
    counts = [t.numel for t in types if isinstance(t, TensorType)] + [op.definition.flops(op.site)]
    return bool(op.regions) or not all(isinstance(n, int) and n <= CHEAP_ELEMENTS for n in counts)


def _hoist(op: Builder, loop: Op, operands: Sequence[Value]) -> list[Value | None]:
    """The loop over ``operands`` where ``op`` inserts, after what leaves its regions."""
    given: dict[Value, Value] = {}
    for region, ops in zip(loop.regions, (invariant_ops(loop, 0), _hoisted(loop)), strict=True):
        mapping: dict[Value, Value] = dict(zip(region.args, operands, strict=True))
        pull_out(op, ops, mapping)
        given |= {result: mapping[result] for each in ops for result in each.results}
    return loop_over(op, loop, operands, range(len(operands)), given)


def _scaled(op: Builder, n: Value, x: Value, w: Value) -> Value:
    """``x`` grows by ``relu(w) @ w`` in each trip."""

    def trip(op: Builder, n: Value, x: Value, w: Value) -> tuple[Value, Value, Value]:
        more = op.aten.matmul(op.aten.relu(w), w)
        return op.aten.add.Scalar(n, 1), op.aten.add.Tensor(op.aten.mul.Scalar(x, 0.5), more), w

    return loop(op, (n, x, w), below(3), trip)[1]


def _until_above(op: Builder, n: Value, limit: Value) -> Value:
    """Counts ``n`` up to ``2 * limit``."""
    return loop(
        op,
        (n, limit),
        lambda op, n, limit: op.aten.lt.Tensor(n, op.aten.mul.Scalar(limit, 2)),
        lambda op, n, limit: (op.aten.add.Scalar(n, 1), limit),
    )[0]


def _by_constant(op: Builder, n: Value, x: Value, w: Value) -> Value:
    """Each trip applies the absolute values of the constant ``w``."""

    def trip(op: Builder, n: Value, x: Value) -> tuple[Value, Value]:
        assert w.op is not None
        weight = op.aten.abs(op.constant(w.op.attr("value")))
        return op.aten.add.Scalar(n, 1), op.aten.tanh(op.aten.linear(x, weight))

    return loop(op, (n, x), below(3), trip)[1]


def _looked_up(op: Builder, n: Value, x: Value, i: Value) -> Value:
    """``x + table[i]``, which may raise, in each trip."""

    def trip(op: Builder, n: Value, x: Value, table: Value, i: Value) -> tuple[Value, ...]:
        return op.aten.add.Scalar(n, 1), op.aten.add.Tensor(x, op.aten.index.Tensor(table, (i,))), table, i

    return loop(op, (n, x, x, i), below(3), trip)[1]


LoopInvariant.examples = (
    Example(_scaled, ("i64[]", "f32[4, 4]", "f32[4, 4]")),
    Example(_scaled, ("i64[]", "f32[B, B]", "f32[B, B]")),
    Example(_scaled, ("i64[]", "f32[64, 64]", "f32[64, 64]")),
    Example(_until_above, ("i64[]", "i64[]")),
)
LoopInvariant.counterexamples = (
    Example(_by_constant, ("i64[]", "f32[2, 4]", "f32[4, 4]"), constants=(2,), reason="something else"),
    Example(_looked_up, ("i64[]", "f32[3]", "i64[3]"), reason="something else"),
)
