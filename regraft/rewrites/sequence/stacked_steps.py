"""What no later trip of a scan waits for, computed after it for all trips at once."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
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
    Trait,
    Value,
    dims,
)
from regraft.rewrites.dynamic.regions import live_ops
from regraft.rewrites.sequence.samples import scan
from regraft.rewrites.sequence.scans import Outside, is_heavy, live_in, may_leave, scan_over, varying_of

_PRODUCTS = ("aten.linear", "aten.matmul")


class StackedSteps(Rewrite):
    """scan(h, x){h' = f(h, x_i), g(h')} = g(scan(h, x){h' = f(h, x_i), h'})

    What only the stacked rows are made of leaves the loop: products with a weight become one product, and the
    loop is shorter. Other ops leave when the rows that they are made of are no larger than theirs. What makes
    little of rows that outgrow the caches, such as sums over them, stays in the trip that has them.
    """

    exactness = Exactness.REASSOCIATES
    stage = "recover"
    before = ("RecurrentCell",)

    def pattern(self, op: PatternBuilder) -> Any:
        return op.call("cf.scan", (op.any_operands(), op.any_operands(), op.any_operands()), {})

    def check(self, m: Match) -> Declined | None:
        split = _Split.of(Scan.of(m.root))
        if not split.leaving:
            return m.decline(
                "what is stacked is what the next trip needs, or little made of much", m.root.operands[0]
            )
        if not split.pays:
            return m.decline("the rows that would be stacked instead are larger", m.root.operands[0])
        return None

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        found = Scan.of(m.root)
        split = _Split.of(found)
        kept = [row for row in found.rows if row not in split.made]
        rows = list(dict.fromkeys([*kept, *split.crossing]))
        carried = list(zip(found.carried, map(found.operand, found.carried), found.after, strict=True))
        scanned, fixed = ([(v, found.operand(v)) for v in part] for part in (found.slices, found.fixed))
        made = scan_over(op, found.body, carried, scanned, fixed, rows)
        stacked = dict(zip(rows, made[len(carried) :], strict=True))
        outside = Outside(op, found, {value: stacked[value] for value in split.crossing})
        results = [stacked[row] if row in stacked else outside.stacked(row) for row in found.rows]
        return [*made[: len(carried)], *results]


@dataclass(frozen=True)
class _Split:
    """What may leave the loop.

    Fields:
        leaving: ops of the body.
        made: their results.
        crossing: values of the body, neither slices nor fixed, that they read.
    """

    scan: Scan
    leaving: Sequence[Op]
    made: Set[Value]
    crossing: Sequence[Value]

    @staticmethod
    def of(scan: Scan) -> _Split:
        needed = set(live_ops(scan.body, scan.after))
        varying = varying_of(scan, (*scan.carried, *scan.slices))
        leaving: list[Op] = []
        for op in reversed(live_in(scan)):
            users = [user for user in _users(op) if not user.has(Trait.TERMINATOR)]
            if op in needed or varying.isdisjoint(op.operands) or not all(u in leaving for u in users):
                continue
            if may_leave(op, varying) and not _condenses(op, scan, varying):
                leaving.append(op)
        made = {result for op in leaving for result in op.results}
        given = {*scan.slices, *scan.fixed, *made}
        read = dict.fromkeys(v for op in leaving for v in op.operands if v not in given)
        crossing = [value for value in read if value in varying]
        return _Split(scan, leaving, made, crossing)

    @property
    def pays(self) -> bool:
        """Whether a product leaves, or less is stacked than before."""
        if any(op.name in _PRODUCTS for op in self.leaving):
            return True
        before = [row for row in self.scan.rows if row in self.made]
        more = [value for value in self.crossing if value not in self.scan.rows]
        return dims.le(_elements(more), _elements(before)) is True


def _condenses(op: Op, scan: Scan, varying: Set[Value]) -> bool:
    """Whether ``op`` makes little of rows that are too much to keep for all trips, sharing no weight."""
    given = {*scan.slices, *scan.fixed}
    read = [v for v in op.operands if v in varying and v not in given]
    large = [v for v in read if is_heavy(scan, v.tensor)]
    if not large or (op.name in _PRODUCTS and not all(v in varying for v in op.operands)):
        return False
    return all(dims.le(2 * op.results[0].tensor.numel, v.tensor.numel) is True for v in large)


def _users(op: Op) -> list[Op]:
    return [user for result in op.results for user in result.users]


def _elements(values: Sequence[Value]) -> Any:
    total: Any = 0
    for value in values:
        total = total + value.tensor.numel
    return total


def _with_head(op: Builder, h: Value, x: Value, w: Value) -> Sequence[Value]:
    """``h = relu(h + x_i)``; the rows are ``relu(h) @ w``."""

    def trip(op: Builder, h: Value, x: Value, w: Value) -> tuple[Value, Value]:
        after = op.aten.relu(op.aten.add.Tensor(h, x))
        return after, op.aten.linear(op.aten.tanh(after), w)

    return scan(op, (h,), (x,), (w,), trip)


def _with_sum(op: Builder, h: Value, x: Value, *, wide: bool) -> Sequence[Value]:
    """``h = relu(h + x_i)``; the rows are sums of h, or h doubled."""

    def trip(op: Builder, h: Value, x: Value) -> tuple[Value, Value]:
        after = op.aten.relu(op.aten.add.Tensor(h, x))
        return after, op.aten.mul.Scalar(after, 2.0) if wide else op.aten.sum.dim_IntList(after, (1,))

    return scan(op, (h,), (x,), (), trip)


def _with_readout(op: Builder, h: Value, x: Value, q: Value) -> Sequence[Value]:
    """``h = relu(h + x_i)``; the rows are ``h @ q_i``: no row of a weight is used twice."""

    def trip(op: Builder, h: Value, x: Value, q: Value) -> tuple[Value, Value]:
        after = op.aten.relu(op.aten.add.Tensor(h, x))
        return after, op.aten.matmul(after, q)

    return scan(op, (h,), (x, q), (), trip)


def _kept(op: Builder, h: Value, x: Value) -> tuple[Value, Value]:
    after = op.aten.add.Tensor(h, x)
    return after, after


StackedSteps.examples = (
    Example(_with_head, ("f32[2, 4]", "f32[5, 2, 4]", "f32[3, 4]")),
    Example(_with_head, ("f32[B, 4]", "f32[5, B, 4]", "f32[3, 4]"), constants=(2,)),
    Example(lambda op, h, x: _with_sum(op, h, x, wide=True), ("f32[2, 4]", "f32[T, 2, 4]")),
    Example(_with_readout, ("f32[2, 4]", "f32[5, 2, 4]", "f32[5, 4, 1]")),
)
StackedSteps.counterexamples = (
    Example(
        lambda op, h, x: _with_sum(op, h, x, wide=False), ("f32[2, 4]", "f32[5, 2, 4]"), reason="are larger"
    ),
    Example(
        _with_readout, ("f32[128, 16]", "f32[600, 128, 16]", "f32[600, 16, 1]"), reason="the next trip needs"
    ),
    Example(
        lambda op, h, x: scan(op, (h,), (x,), (), _kept),
        ("f32[2, 4]", "f32[5, 2, 4]"),
        reason="what the next trip needs",
    ),
)
