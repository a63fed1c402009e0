"""Results that are a value from outside whatever path is taken."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    DType,
    Example,
    Match,
    Op,
    PatternBuilder,
    Region,
    Rewrite,
    Value,
    Var,
    clone_op,
    mentioned,
    refines,
)
from regraft.rewrites.dynamic.motion import own_symbols
from regraft.rewrites.dynamic.regions import NewArms, is_repeatable, kept_results, names_sizes
from regraft.rewrites.dynamic.samples import cond
from regraft.rewrites.fold import op_key


class ForwardedResult(Rewrite):
    """cond(p, x){A, x}{B, x} = cond(p, x){A}{B}, x

    Likewise a constant or a number that both arms yield, and two results that are one pair of values.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var) -> Any:
        return op.cf.cond(p, op.any_operands())

    def check(self, m: Match) -> Declined | None:
        if not _sources(m.root):
            return m.decline("no result is the same value on both paths", m.p)
        return names_sizes(m)

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        arms, sources = NewArms(op), _sources(m.root)
        wanted = {*kept_results(m.root), *(s for s in sources.values() if isinstance(s, int))}
        kept = sorted(wanted - sources.keys())
        for arm in (0, 1):
            arms.finish(arm, arms.copy_arm(arm, m.root, kept))
        results = arms.cond(m.p, m.root, kept)
        for index, source in sources.items():
            results[index] = results[source] if isinstance(source, int) else _around(op, m.root, source)
        return results


def _sources(op: Op) -> dict[int, Value | int]:
    """For each result in use that needs no arm: the value of an arm that it is, or the number of its twin."""
    found: dict[int, Value | int] = {}
    first: dict[Hashable, int] = {}
    for result in op.results:
        values = [region.results[result.index] for region in op.regions]
        keys = [_key(op, region, value) for region, value in zip(op.regions, values, strict=True)]
        twin = first.setdefault(tuple(keys), result.index)
        outside = keys[0] == keys[1] and keys[0] not in values
        stand_in = _operand(op, values[0]) if outside else op.results[twin]
        if result.uses and stand_in is not result and refines(stand_in.type, result.type):
            found[result.index] = values[0] if outside else twin
    return found


def _key(op: Op, region: Region, value: Value) -> Hashable:
    """Equal for values of the two arms that are the same; the value itself where an arm computes it."""
    if isinstance(value.owner, Region):
        return op.variadic("operands")[value.index]
    if not is_repeatable(value) or not own_symbols(region).isdisjoint(mentioned(value.owner)):
        return value
    return op_key(value.owner, ())


def _operand(op: Op, value: Value) -> Value:
    """The value around ``op`` that an argument of its arms stands for; another value is itself."""
    return op.variadic("operands")[value.index] if isinstance(value.owner, Region) else value


def _around(op: Builder, cond: Op, value: Value) -> Value:
    """A value that an arm is given, or can make from nothing, in the region around the arm."""
    if isinstance(value.owner, Region):
        return _operand(cond, value)
    return op.insert(clone_op(value.owner, {})).result


def _kept(op: Builder, p: Value, x: Value, y: Value, *, same: bool) -> tuple[Value, Value]:
    """``x`` beside ``relu(x)`` or ``sin(x)``; ``y`` in the second arm unless they are the ``same``."""
    return cond(
        op,
        p,
        (x, x, y),
        lambda op, a, b, c: (a, op.aten.relu(a)),
        lambda op, a, b, c: (b if same else c, op.aten.sin(a)),
    )


def _twins(op: Builder, p: Value, x: Value, y: Value) -> tuple[Value, Value]:
    def twice(value: Value) -> tuple[Value, Value]:
        return value, value

    return cond(
        op,
        p,
        (x, y),
        lambda op, x, y: twice(op.aten.relu(x)),
        lambda op, x, y: twice(op.aten.mul.Tensor(x, y)),
    )


ForwardedResult.examples = (
    Example(lambda op, p, x: _kept(op, p, x, x, same=True), ("bool[]", "f32[3, B]")),
    Example(_twins, ("bool[]", "f32[3]", "f32[3]")),
    Example(
        lambda op, p, x: cond(
            op,
            p,
            (x,),
            lambda op, x: (op.aten.full((), 2.5, dtype=DType.F32), x),
            lambda op, x: (op.aten.full((), 2.5, dtype=DType.F32), op.aten.neg(x)),
        ),
        ("bool[]", "f32[3]"),
    ),
)
ForwardedResult.counterexamples = (
    Example(
        lambda op, p, x, y: _kept(op, p, x, y, same=False),
        ("bool[]", "f32[3]", "f32[3]"),
        reason="same value",
    ),
    Example(
        lambda op, p, x: cond(
            op,
            p,
            (x,),
            lambda op, x: op.aten.full((), 0.0, dtype=DType.F32),
            lambda op, x: op.aten.full((), -0.0, dtype=DType.F32),
        ),
        ("bool[]", "f32[3]"),
        reason="same value",
    ),
)
