"""What no trip of a scan waits for, computed before it for all trips at once."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Exactness,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Scan,
    TensorType,
    Trait,
    Value,
    dims,
    is_speculatable,
)
from regraft.rewrites.sequence.samples import scan
from regraft.rewrites.sequence.scans import (
    Outside,
    is_constant,
    is_heavy,
    live_in,
    may_leave,
    scan_over,
    varying_of,
)

MOST_ELEMENTS = 1 << 24
"""The most elements that a value may have for all trips, 64 MB in f32."""


class BatchedSteps(Rewrite):
    """scan(h, x){f(h, g(x_i))} = scan(h, g(x)){f(h, g_i)}, and what is the same in each trip once

    The projections of a recurrent layer's inputs become one product over all steps. Both run the same
    arithmetic for each step; of products of matrices the order of sums may differ. Elementwise ops whose
    results outgrow the caches stay in the trip that reads them, unless a product needs them before.
    """

    exactness = Exactness.REASSOCIATES
    stage = "recover"
    after = ("RecurrentCell",)

    def pattern(self, op: PatternBuilder) -> Any:
        return op.call("cf.scan", (op.any_operands(), op.any_operands(), op.any_operands()), {})

    def check(self, m: Match) -> Declined | None:
        if all(op.has(Trait.VIEW) for op in _leaving(Scan.of(m.root))):
            return m.decline(
                "what a trip computes depends on the trip before, or is too much to keep for all trips",
                m.root.operands[0],
            )
        return None

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        found = Scan.of(m.root)
        outside = Outside(op, found, {})
        varying = varying_of(found, found.slices)
        leaving = dict.fromkeys(_leaving(found))
        made = dict.fromkeys(result for each in leaving for result in each.results)
        border = [v for v in made if any(user not in leaving for user in v.users)]
        scanned = [(v, found.operand(v)) for v in found.slices]
        scanned += [(v, outside.of(v)) for v in border if v in varying]
        fixed = [(v, found.operand(v)) for v in found.fixed]
        fixed += [(v, outside.of(v)) for v in border if v not in varying]
        carried = list(zip(found.carried, map(found.operand, found.carried), found.after, strict=True))
        inside = [row for row in found.rows if row not in made]
        results = scan_over(op, found.body, carried, scanned, fixed, inside)
        rows = iter(results[len(carried) :])
        return [
            *results[: len(carried)],
            *(outside.stacked(row) if row in made else next(rows) for row in found.rows),
        ]


def _leaving(found: Scan) -> list[Op]:
    """The ops of the body that read slices, what is fixed, constants, and one another."""
    varying = varying_of(found, (*found.carried, *found.slices))
    known = {*found.slices, *found.fixed}
    leaving: list[Op] = []
    for op in live_in(found):
        ready = all(value in known or is_constant(value) for value in op.operands)
        if not ready or known.isdisjoint(op.operands) or not may_leave(op, varying):
            continue
        if _fits(op, found) and (is_speculatable(op) or _runs(found)):
            leaving.append(op)
            known.update(op.results)
    staying = _staying(leaving, found, varying)
    return [op for op in leaving if op not in staying]


def _staying(leaving: Sequence[Op], found: Scan, varying: Set[Value]) -> set[Op]:
    """Those of ``leaving`` that gain nothing before the loop: many elements that only the loop reads.

    What a product reads leaves with it.
    """
    staying: set[Op] = set()
    candidates = set(leaving)
    for op in reversed(leaving):
        is_read = any(user in candidates and user not in staying for r in op.results for user in r.users)
        is_light = op.has(Trait.ELEMENTWISE) or op.has(Trait.VIEW)
        if is_read or not is_light or varying.isdisjoint(op.results):
            continue
        if is_heavy(found, op.result.tensor):
            staying.add(op)
    return staying


def _fits(op: Op, found: Scan) -> bool:
    sizes = [result.type.numel for result in op.results if isinstance(result.type, TensorType)]
    return all(dims.le(found.length * size, MOST_ELEMENTS) is not False for size in sizes)


def _runs(found: Scan) -> bool:
    """Whether there is a trip in every call, so that what may raise may do so before it."""
    return dims.le(1, found.length) is True


def _cell(op: Builder, h: Value, x: Value, w: Value, u: Value) -> Sequence[Value]:
    """``h = tanh(x_i @ w + h @ u)``, stacked."""

    def trip(op: Builder, h: Value, x: Value, w: Value, u: Value) -> tuple[Value, Value]:
        after = op.aten.add.Tensor(op.aten.linear(x, w), op.aten.linear(h, u))
        return op.aten.relu(after), op.aten.relu(after)

    return scan(op, (h,), (x,), (w, u), trip)


def _decayed(op: Builder, h: Value, x: Value, a: Value) -> Sequence[Value]:
    """``h = exp(x_i * relu(a)) * h``."""

    def trip(op: Builder, h: Value, x: Value, a: Value) -> tuple[Value]:
        decay = op.aten.exp(op.aten.mul.Tensor(x, op.aten.relu(a)))
        return (op.aten.mul.Tensor(decay, h),)

    return scan(op, (h,), (x,), (a,), trip)


def _large(op: Builder, h: Value, x: Value) -> Sequence[Value]:
    """``h = h + exp(x_i)``."""
    return scan(op, (h,), (x,), (), lambda op, h, x: (op.aten.add.Tensor(h, op.aten.exp(x)),))


def _summed(op: Builder, h: Value, x: Value) -> Sequence[Value]:
    return scan(op, (h,), (x,), (), lambda op, h, x: (op.aten.add.Tensor(h, x),))


BatchedSteps.examples = (
    Example(_cell, ("f32[2, 4]", "f32[5, 2, 3]", "f32[4, 3]", "f32[4, 4]")),
    Example(_cell, ("f32[B, 4]", "f32[T, B, 3]", "f32[4, 3]", "f32[4, 4]")),
    Example(_decayed, ("f32[2, 4]", "f32[5, 1, 4]", "f32[2, 1]")),
    Example(_large, ("f32[2, 4]", "f32[5, 2, 4]")),
    Example(_cell, ("f32[2, 4]", "f32[300, 2, 2048]", "f32[4, 2048]", "f32[4, 4]")),
)
BatchedSteps.counterexamples = (
    Example(_summed, ("f32[2, 4]", "f32[5, 2, 4]"), reason="depends on the trip before"),
    Example(_large, ("f32[2, 2048]", "f32[300, 2, 2048]"), reason="depends on the trip before"),
)
