"""What both arms of a condition compute."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from regraft.ir import (
    Builder,
    Declined,
    Example,
    Match,
    Op,
    PatternBuilder,
    Region,
    Rewrite,
    Trait,
    Value,
    Var,
    is_pure,
    is_speculatable,
)
from regraft.rewrites.dynamic.motion import movable_ops, pull_out
from regraft.rewrites.dynamic.regions import NewArms, names_sizes
from regraft.rewrites.dynamic.samples import cond
from regraft.rewrites.fold import op_key


class CommonOps(Rewrite):
    """cond(p, x){A(f(x))}{B(f(x))} = cond(p, f(x)){A}{B}

    Equal ops over equal operands run before the condition, wherever they stand in its arms. An op of one arm
    alone stays there: it is never run in vain.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.cf.cond(p, op.any_operands())

    def check(self, m: Match) -> Declined | None:
        if not _common(m.root):
            return m.decline("its arms have no op in common that could run before it", m.p)
        return names_sizes(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        arms, every, common = NewArms(op), range(len(m.root.results)), _common(m.root)
        outside = dict(zip(m.root.regions[0].args, m.root.variadic("operands"), strict=True))
        pull_out(op, [pair.then for pair in common], outside)
        for arm in (0, 1):
            given = {own: outside[first] for pair in common for first, own in pair.results(arm)}
            arms.finish(arm, arms.copy_arm(arm, m.root, every, given=given))
        return arms.cond(m.p, m.root, every)


class _Pair(NamedTuple):
    """An op of the first arm, and its equal in the second."""

    then: Op
    other: Op

    def results(self, arm: int) -> list[tuple[Value, Value]]:
        """The results in the first arm, and in ``arm``."""
        return list(zip(self.then.results, self[arm].results, strict=True))


def _common(cond: Op) -> list[_Pair]:
    """The ops to pull out, in order."""
    raises_freely = all(is_pure(op) for region in cond.regions for op in region.ops)

    def may_move(op: Op) -> bool:
        return not op.regions and (is_speculatable(op) or (raises_freely and is_pure(op)))

    then, other = (movable_ops(region, region.args, may_move) for region in cond.regions)
    if not then or not other:
        return []
    keys, other_keys = (_keys(region, cond.variadic("operands")) for region in cond.regions)
    equals = {other_keys[op]: op for op in other}
    return [_Pair(op, equals[keys[op]]) for op in then if keys[op] in equals]


def _keys(region: Region, operands: Sequence[Value]) -> dict[Op, Hashable]:
    """A key for each op that depends on values from outside alone, equal for ops that compute the same."""
    values: dict[Value, Hashable] = {arg: id(operands[arg.index]) for arg in region.args}
    keys: dict[Op, Hashable] = {}
    for op in region.ops:
        if not op.has(Trait.PURE) or op.regions or op.symbols or not all(v in values for v in op.operands):
            continue
        keys[op] = op_key(op, [values[v] for v in op.operands])
        values |= {result: (keys[op], result.index) for result in op.results}
    return keys


def _branch(op: Builder, p: Value, x: Value, w: Value, *, same: bool = True) -> Value:
    """``relu(x @ W)``, or the sine of it; of ``-x @ W`` where it is not the ``same``."""
    return cond(
        op,
        p,
        (x, w),
        lambda op, x, w: op.aten.relu(op.aten.matmul(x, w)),
        lambda op, x, w: op.aten.sin(op.aten.matmul(x if same else op.aten.neg(x), w)),
    )


CommonOps.examples = (
    Example(_branch, ("bool[]", "f32[B, 4]", "f32[4, 4]")),
    Example(
        lambda op, p, x, w: cond(
            op,
            p,
            (x,),
            lambda op, x: op.aten.linear(x, op.constant(w.op.attr("value"))),
            lambda op, x: op.aten.neg(op.aten.linear(x, op.constant(w.op.attr("value")))),
        ),
        ("bool[]", "f32[2, 4]", "f32[3, 4]"),
        constants=(2,),
    ),
    Example(
        lambda op, p, x, y: cond(
            op,
            p,
            (x, y),
            lambda op, x, y: op.aten.add.Tensor(x, y),
            lambda op, x, y: op.aten.neg(op.aten.relu(op.aten.add.Tensor(y, x))),
        ),
        ("bool[]", "f32[3]", "f32[3]"),
    ),
)
CommonOps.counterexamples = (
    Example(
        lambda op, p, x, w: _branch(op, p, x, w, same=False),
        ("bool[]", "f32[2, 4]", "f32[4, 4]"),
        reason="no op in common",
    ),
    Example(
        lambda op, p, x, y: cond(
            op, p, (x, y), lambda op, x, y: op.aten.relu(x), lambda op, x, y: op.aten.neg(op.aten.relu(y))
        ),
        ("bool[]", "f32[3]", "f32[3]"),
        reason="no op in common",
    ),
    Example(
        lambda op, p, q, x, i: cond(
            op,
            p,
            (q, x, i),
            lambda op, q, x, i: _looked_up(op, q, x, i),
            lambda op, q, x, i: op.aten.neg(op.aten.index.Tensor(x, (i,))),
        ),
        ("bool[]", "bool[]", "f32[3, 2]", "i64[2]"),
        reason="no op in common",
    ),
)


def _looked_up(op: Builder, q: Value, x: Value, i: Value) -> Value:
    """``x[i]``, which may raise, once it is checked that ``q`` holds."""
    op.rg.check(q, "the indices are not valid")
    return op.aten.index.Tensor(x, (i,))
