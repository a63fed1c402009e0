"""Bools that branches choose, as logic."""

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
    Value,
    Var,
    backward_slice,
    clone_op,
    is_speculatable,
)
from regraft.rewrites.dynamic.regions import NewArms, flag, is_number, kept_results, live_ops, names_sizes
from regraft.rewrites.dynamic.samples import cond
from regraft.rewrites.dynamic.truth import in_arm, is_flag, truth

_MOST_OPS = 4


class FlagAsLogic(Rewrite):
    """cond(p){True}{False} = p, cond(p){False}{True} = not p, cond(p){q}{False} = p and q, ...

    One arm yields a known bool, the other one that comes from outside. What the other arm computes would be
    computed in any case afterwards: that has to be a few ops on single numbers which may run early, and
    nothing else may be left for the condition to do.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.cf.cond(p, op.any_operands())

    def check(self, m: Match) -> Declined | None:
        if not _logical(m.root):
            return m.decline("no result is a bool that logic gives", m.p)
        return names_sizes(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        arms, logical = NewArms(op), _logical(m.root)
        kept = [index for index in kept_results(m.root) if index not in logical]
        for arm in (0, 1):
            arms.finish(arm, arms.copy_arm(arm, m.root, kept))
        results = arms.cond(m.p, m.root, kept)
        for index in logical:
            results[index] = _logic(op, m.root, index)
        return results


def _logical(cond: Op) -> list[int]:
    """The results in use that become logic."""
    flags = [
        r.index for r in cond.results if r.uses and is_flag(r) and _truths(cond, r.index) != (None, None)
    ]
    if kept_results(cond) == flags and not any(live_ops(region, ()) for region in cond.regions):
        return flags if all(_is_cheap(_computed(cond, index)) for index in flags) else []
    return [index for index in flags if not _computed(cond, index)]


def _truths(cond: Op, index: int) -> tuple[bool | None, bool | None]:
    """What is known of the result ``index`` in either arm."""
    then, other = (truth(region.results[index], in_arm(cond, arm)) for arm, region in enumerate(cond.regions))
    return then, other


def _computed(cond: Op, index: int) -> list[Op]:
    """What would have to be computed outside for the result ``index``."""
    truths = _truths(cond, index)
    return [] if None not in truths else backward_slice([cond.regions[truths.index(None)].results[index]])


def _is_cheap(ops: Sequence[Op]) -> bool:
    values = [value for op in ops for value in (*op.operands, *op.results)]
    plain = all(is_speculatable(op) and not op.regions and not op.symbols for op in ops)
    return len(ops) <= _MOST_OPS and plain and all(map(is_number, values))


def _logic(op: Builder, cond: Op, index: int) -> Value:
    pred, (then, other) = cond.operand("pred"), _truths(cond, index)
    if then is not None and then == other:
        return flag(op, then)
    # Where the known arm gives True it alone decides, else it has to be the other one that runs.
    alone = then is True or other is False
    runs = pred if alone else op.aten.bitwise_not(pred)
    if then is not None and other is not None:
        return runs
    value = _outside(op, cond, index)
    either = then is True or other is True
    return op.aten.bitwise_or.Tensor(runs, value) if either else op.aten.bitwise_and.Tensor(runs, value)


def _outside(op: Builder, cond: Op, index: int) -> Value:
    """The value of the arm that is not known, computed around the condition."""
    region = cond.regions[_truths(cond, index).index(None)]
    mapping = dict(zip(region.args, cond.variadic("operands"), strict=True))
    for each in _computed(cond, index):
        op.insert(clone_op(each, mapping))
    return mapping[region.results[index]]


def _true(op: Builder, *_: Value) -> Value:
    return flag(op, True)


def _false(op: Builder, *_: Value) -> Value:
    return flag(op, False)


def _self(op: Builder, q: Value) -> Value:
    return q


def _large(op: Builder, n: Value) -> Value:
    return op.aten.gt.Scalar(n, 1)


FlagAsLogic.examples = (
    Example(lambda op, p: cond(op, p, (), _true, _false), ("bool[]",)),
    Example(lambda op, p: cond(op, p, (), _false, _true), ("bool[]",)),
    Example(lambda op, p: cond(op, p, (), _true, _true), ("bool[]",)),
    Example(lambda op, p, q: cond(op, p, (q,), _self, _false), ("bool[]", "bool[]")),
    Example(lambda op, p, q: cond(op, p, (q,), _self, _true), ("bool[]", "bool[]")),
    Example(lambda op, p, q: cond(op, p, (q,), _true, _self), ("bool[]", "bool[]")),
    Example(lambda op, p, q: cond(op, p, (q,), _false, _self), ("bool[]", "bool[]")),
    Example(lambda op, p, n: cond(op, p, (n,), _large, _false), ("bool[]", "i64[]")),
    Example(
        lambda op, p, x: cond(
            op, p, (x,), lambda op, x: (flag(op, True), x), lambda op, x: (flag(op, False), op.aten.relu(x))
        ),
        ("bool[]", "f32[B]"),
    ),
)
FlagAsLogic.counterexamples = (
    Example(
        lambda op, p, x: cond(
            op, p, (x,), lambda op, x: op.aten.gt.Scalar(op.aten.sum.dim_IntList(x, (0,)), 0.0), _false
        ),
        ("bool[]", "f32[3]"),
        reason="no result is a bool that logic gives",
    ),
    Example(
        lambda op, p, n, x: cond(
            op,
            p,
            (n, x),
            lambda op, n, x: (_large(op, n), op.aten.relu(x)),
            lambda op, n, x: (flag(op, False), x),
        ),
        ("bool[]", "i64[]", "f32[3]"),
        reason="no result is a bool that logic gives",
    ),
    Example(
        lambda op, p, q, r: cond(op, p, (q, r), lambda op, q, r: q, lambda op, q, r: r),
        ("bool[]",) * 3,
        reason="no result",
    ),
)
