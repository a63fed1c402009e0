"""Conditions that follow one another, where the first decides the second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from regraft.rewrites.dynamic.regions import (
    NewArms,
    computes_nothing,
    flag,
    is_number,
    is_swappable,
    kept_results,
    needs_torch,
)
from regraft.rewrites.dynamic.samples import cond
from regraft.rewrites.dynamic.truth import in_arm, is_flag, is_logic, logic_of, truth


class JoinedConditions(Rewrite):
    """cond(p){A}{B}; cond(q){C}{D} = cond(p){A; C}{B; cond(q){C}{D}}, where p says that q

    The second condition moves into the arms of the first, and is decided in each arm that says what its
    predicate is: they have one predicate, or the arm yields the second's as a constant, as the flags of early
    exits are. So a chain of exits becomes a nest, in which nothing is tested after an exit. An arm of the
    second that would be in two places must compute nothing. Of a chain the last two are joined first.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.cf.cond(p, op.any_operands())

    def check(self, m: Match) -> Declined | None:
        if _join_at(m.root) is None:
            return m.decline("no earlier condition that it could move into decides it", m.p)
        if any(_joins(m.root, later) for later in _followers(m.root)):
            return m.decline("a later condition moves into this one first", m.p)
        return None

    def rewrite(self, op: Builder, m: Match) -> Mapping[Op, Sequence[Value | None]]:
        join, arms = _join_at(m.root), NewArms(op)
        assert join is not None
        kept = [(each, index) for each in (join.first, join.second) for index in kept_results(each)]
        for arm in (0, 1):
            results = _in_arm(arms, arm, join)
            arms.finish(arm, [results[each][index] for each, index in kept])
        op.loc = join.first.loc.tagged(self.name)
        made = arms.create(join.first.operand("pred"), [each.results[index] for each, index in kept])
        replaced = dict(zip(kept, made, strict=True))
        mapping = {each.results[index]: value for (each, index), value in replaced.items()}
        for each in join.later:
            op.insert(clone_op(each, mapping))
        return {
            each: [mapping.get(result) for result in each.results]
            for each in (join.first, *join.later, join.second)
        }


@dataclass(frozen=True)
class _Join:
    """How ``second`` moves into ``first``.

    Fields:
        truths: what the predicate of ``second`` is in either arm of ``first``.
        moved: numbers computed between the two that ``second`` needs; either arm computes them.
        later: ops between the two that read results of ``first``; they run after both.
    """

    first: Op
    second: Op
    truths: tuple[bool | None, bool | None]
    moved: tuple[Op, ...]
    later: tuple[Op, ...]


def _in_arm(arms: NewArms, arm: int, join: _Join) -> dict[Op, Sequence[Value]]:
    """Both conditions in one arm; what their results are there."""
    first, second = join.first, join.second
    values = arms.copy_arm(arm, first, range(len(first.results)))
    for result, value in zip(first.results, values, strict=True):
        arms.stands_for(arm, result, value)
    for op in join.moved:
        arms.insert(arm, op)
    holds = join.truths[arm]
    if holds is None:
        return {first: values, second: arms.insert(arm, second).results}
    every = range(len(second.results))
    return {first: values, second: arms.copy_arm(arm, second, every, source=0 if holds else 1)}


def _join_at(second: Op) -> _Join | None:
    """How ``second`` moves into the nearest condition before it that decides it."""
    found = (_join_of(first, second) for first in _earlier(second))
    return next((join for join in found if join is not None), None)


def _joins(first: Op, second: Op) -> bool:
    join = _join_at(second)
    return join is not None and join.first is first


def _earlier(second: Op) -> list[Op]:
    """The conditions before ``second`` that have to do with its predicate, the nearest first."""
    values = logic_of(second.operand("pred"))
    made = [value.op for value in values if value.op is not None and value.op.name == "cf.cond"]
    beside = [op for value in values for op in _conditions_on(value)]
    assert second.parent is not None
    near = {op for op in (*made, *beside) if op.parent is second.parent and op.comes_before(second)}
    return [op for op in second.parent.reversed_ops if op in near] if near else []


def _followers(first: Op) -> list[Op]:
    """The conditions after ``first`` whose predicates have to do with it."""
    values = [*logic_of(first.operand("pred")), *filter(is_flag, first.results)]
    found = dict.fromkeys(op for value in values for op in _conditions_on(value))
    return [op for op in found if op.parent is first.parent and first.comes_before(op)]


def _conditions_on(value: Value) -> Iterator[Op]:
    """The conditions whose predicate is ``value``, or logic over it."""
    for use in value.uses:
        if use.op.name == "cf.cond" and use.index == 0:
            yield use.op
        elif is_logic(use.op):
            yield from _conditions_on(use.op.result)


def _join_of(first: Op, second: Op) -> _Join | None:
    """How ``second`` moves into ``first``; None when it does not."""
    truths = _truth_in(first, 0, second), _truth_in(first, 1, second)
    if truths == (None, None) or any(_has_sizes(op) for op in (first, second)) or _grows(second, truths):
        return None
    if needs_torch(first) != needs_torch(second):
        return None
    assert second.parent is not None
    between = [op for op in second.parent.ops if first.comes_before(op) and op.comes_before(second)]
    reading = _reading(first, between)
    needed = [op for op in backward_slice(second.operands) if op in reading]
    later = _read_later(reading, needed, second)
    if not all(map(_is_cheap, needed)) or any(op.symbols for op in reading):
        return None
    independent = [op for op in between if op not in reading]
    crossing = [(first, op) for op in independent] + [(op, second) for op in later]
    crossing += [(a, b) for a in later for b in independent if a.comes_before(b)]
    if not all(is_swappable(a, b) for a, b in crossing):
        return None
    return _Join(first, second, truths, tuple(needed), tuple(later))


def _truth_in(first: Op, arm: int, second: Op) -> bool | None:
    """What the predicate of ``second`` is when ``first`` has taken ``arm``."""
    known = in_arm(first, arm)
    given = {r: truth(first.regions[arm].results[r.index], known) for r in first.results if is_flag(r)}
    return truth(
        second.operand("pred"), known | {r: holds for r, holds in given.items() if holds is not None}
    )


def _grows(second: Op, truths: Sequence[bool | None]) -> bool:
    """Whether an arm of ``second`` that computes something would be in both arms of the first condition."""
    twice = [all(holds in (None, arm == 0) for holds in truths) for arm in (0, 1)]
    return any(
        both and not computes_nothing(region, region.results)
        for both, region in zip(twice, second.regions, strict=True)
    )


def _has_sizes(op: Op) -> bool:
    return bool(op.symbols) or any(region.symbols for region in op.regions)


def _reading(first: Op, between: Sequence[Op]) -> list[Op]:
    """The ops that depend on ``first``."""
    found: dict[Op, None] = {first: None}
    for op in between:
        if any(value.op in found for value in op.operands):
            found[op] = None
    return list(found)[1:]


def _read_later(reading: Sequence[Op], needed: Sequence[Op], second: Op) -> list[Op]:
    """The ops of ``reading`` that something besides ``second`` depends on."""
    later: dict[Op, None] = {}
    for op in reversed(reading):
        users = [user for result in op.results for user in result.users]
        if op not in needed or any(
            user is not second and (user not in needed or user in later) for user in users
        ):
            later[op] = None
    return list(later)[::-1]


def _is_cheap(op: Op) -> bool:
    return not op.regions and is_speculatable(op) and all(map(is_number, op.results))


def _exit(op: Builder, p: Value, q: Value, x: Value, w: Value) -> Value:
    """Two blocks with an exit after the first, as flags write it."""
    done, out, hidden = cond(
        op,
        p,
        (x, w),
        lambda op, x, w: (flag(op, True), op.aten.neg(x), x),
        lambda op, x, w: (flag(op, False), x, op.aten.relu(op.aten.matmul(x, w))),
    )
    again, last = cond(
        op,
        op.aten.bitwise_not(done),
        (q, out, hidden, w),
        lambda op, q, out, h, w: (q, op.aten.sin(op.aten.matmul(h, w))),
        lambda op, q, out, h, w: (flag(op, True), out),
    )
    return cond(op, again, (last,), lambda op, last: last, lambda op, last: op.aten.cos(last))


def _twice(op: Builder, p: Value, q: Value, x: Value) -> tuple[Value, Value]:
    """By ``p`` the relu or sine of ``x``; the absolute value of that; it doubled or squared, by ``q``."""
    first = cond(op, p, (x,), lambda op, x: op.aten.relu(x), lambda op, x: op.aten.sin(x))
    between = op.aten.abs(first)
    return between, cond(
        op, q, (first,), lambda op, y: op.aten.mul.Scalar(y, 2.0), lambda op, y: op.aten.mul.Tensor(y, y)
    )


def _needed_between(op: Builder, p: Value, x: Value) -> Value:
    """As ``_twice``, of the absolute value."""
    first = cond(op, p, (x,), lambda op, x: op.aten.relu(x), lambda op, x: op.aten.sin(x))
    between = op.aten.abs(first)
    return cond(
        op, p, (between,), lambda op, y: op.aten.mul.Scalar(y, 2.0), lambda op, y: op.aten.mul.Tensor(y, y)
    )


def _checked_between(op: Builder, p: Value, q: Value, x: Value) -> Value:
    """A check between two conditions of which the first has one too."""

    def checked(op: Builder, q: Value, x: Value) -> Value:
        op.rg.check(q, "in the arm")
        return x

    first = cond(op, p, (q, x), checked, lambda op, q, x: op.aten.sin(x))
    op.rg.check(p, "between")
    return cond(op, p, (first,), lambda op, y: op.aten.neg(y), lambda op, y: op.aten.cos(y))


JoinedConditions.examples = (
    Example(lambda op, p, x: _twice(op, p, p, x), ("bool[]", "f32[B]")),
    Example(lambda op, p, x: _twice(op, p, op.aten.bitwise_not(p), x), ("bool[]", "f32[3]")),
    Example(_exit, ("bool[]", "bool[]", "f32[B, 4]", "f32[4, 4]"), count=2),
)
JoinedConditions.counterexamples = (
    Example(_twice, ("bool[]", "bool[]", "f32[3]"), reason="no earlier condition"),
    Example(_needed_between, ("bool[]", "f32[3]"), reason="no earlier condition"),
    Example(_checked_between, ("bool[]", "bool[]", "f32[3]"), reason="no earlier condition"),
    Example(
        lambda op, p, q, x: _twice(op, p, op.aten.bitwise_and.Tensor(p, q), x),
        ("bool[]", "bool[]", "f32[3]"),
        reason="no earlier condition",
    ),
)
