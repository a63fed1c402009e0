"""Selections by one bool, of which one side need not be computed."""

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
    dims,
)
from regraft.rewrites.dynamic.regions import NewArms
from regraft.rewrites.support import broadcasts_to

LEAST_FLOPS = 1 << 15
"""What takes less arithmetic is computed sooner than it is decided whether to."""


class SelectedSide(Rewrite):
    """where(p, a, b) = cond(p){a}{b}, where p is one bool and a side is dear and read by nothing else."""

    stage = "fold"

    def pattern(self, op: PatternBuilder, p: Var, a: Var, b: Var) -> Any:
        return op.aten.where.self(p, a, b)

    def check(self, m: Match) -> Declined | None:
        return undecided(m, m.p, (m.a, m.b))

    def rewrite(self, op: Builder, m: Match) -> Value:
        return chosen(op, m, m.p, m.a, m.b)


def undecided(m: Match, decides: Value, sides: Sequence[Value]) -> Declined | None:
    shape = m.root.result.tensor.shape
    if decides.tensor.numel != 1:
        return m.decline("each element is decided by itself", decides)
    if not all(broadcasts_to(side.tensor.shape, shape) for side in sides):
        return m.decline("the sizes of a side are not known to fit", sides[0])
    if not any(_is_dear(side, m.root) for side in sides):
        return m.decline("no side takes enough arithmetic to be worth a branch", sides[0])
    return None


def _is_dear(side: Value, root: Op) -> bool:
    """Whether what only ``root`` reads through ``side`` takes much arithmetic."""
    inside: set[Op] = {root}
    total: dims.Dim = 0
    for op in reversed(backward_slice([side])):
        users = [user for result in op.results for user in result.users]
        if all(user in inside or _leads_inside(user, inside) for user in users):
            inside.add(op)
            total = total + op.definition.flops(op.site)
    return dims.le(LEAST_FLOPS, total) is not False


def _leads_inside(op: Op, inside: set[Op]) -> bool:
    """Whether ``op`` is the product with the mask, which only the root reads."""
    users = [user for result in op.results for user in result.users]
    return op.name == "aten.mul.Tensor" and bool(users) and all(user in inside for user in users)


def chosen(op: Builder, m: Match, decides: Value, then: Value, other: Value) -> Value:
    result, arms = m.root.result, NewArms(op)
    for number, side in enumerate((then, other)):
        inside = arms.inside(number, side)
        if inside.tensor.shape != result.tensor.shape:
            inside = arms.builder(number).aten.expand(inside, result.tensor.shape)
        arms.finish(number, [inside])
    flag = decides if decides.tensor.rank == 0 else op.aten.view(decides, ())
    (made,) = arms.create(flag, [result])
    return made


def block(op: Builder, x: Value, w: Value) -> Value:
    """What examples of this family skip."""
    return op.aten.relu(op.aten.linear(x, w))


def _selected(op: Builder, x: Value, w: Value, *, kept: bool = False) -> Any:
    side = block(op, x, w)
    found = op.aten.where.self(op.aten.gt.Scalar(op.aten.mean.dim(x, (0, 1), True), 0.0), side, x)
    return (found, side) if kept else found


_LARGE = ("f32[64, 32]", "f32[32, 32]")

SelectedSide.examples = (
    Example(_selected, _LARGE),
    Example(_selected, ("f32[B, 32]", "f32[32, 32]")),
)
SelectedSide.counterexamples = (
    Example(_selected, ("f32[2, 3]", "f32[3, 3]"), reason="enough arithmetic"),
    Example(lambda op, x, w: _selected(op, x, w, kept=True), _LARGE, reason="enough arithmetic"),
    Example(
        lambda op, x, w: op.aten.where.self(op.aten.gt.Scalar(x, 0.0), block(op, x, w), x),
        _LARGE,
        reason="by itself",
    ),
)
