"""Sums over a stack: spellings of a sum of several values as one reduction."""

from __future__ import annotations

from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    Exactness,
    Example,
    Match,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
)
from regraft.rewrites.support import broadcasts_to

_MAX_PARTS = 16


class SummedStack(Rewrite):
    """sum(cat([x, y]) * s, dim) = x * s₀ + y * s₁, for parts of one place along the axis that is summed up.

    Several values are summed up without being copied beside each other first, and a rewrite of sums sees
    them: branches of one input, experts behind one projection.
    """

    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, stack: Var, factor: Var) -> Any:
        weighed = op.aten.mul.Tensor(stack, factor)
        dim, keepdim = op.attr("dim"), op.attr("keepdim")
        return op.one_of(
            op.aten.sum.dim_IntList(weighed, dim, keepdim), op.aten.sum.dim_IntList(stack, dim, keepdim)
        )

    def check(self, m: Match) -> Declined | None:
        stack = m.stack.op
        if stack is None or stack.name != "aten.cat" or len(m.stack.uses) != 1:
            return m.decline("what is summed up is no stack, or is used elsewhere", m.stack)
        axis: int = stack.attr("dim")
        if m.attr("dim") != (axis,):
            return m.decline("another axis than the stack's is summed up", m.stack)
        parts = stack.variadic("tensors")
        if len(parts) > _MAX_PARTS or any(part.tensor.shape[axis] != 1 for part in parts):
            return m.decline(f"a part has several places, or there are more than {_MAX_PARTS}", m.stack)
        if not m.stack.tensor.dtype.is_float:
            return m.decline("the sum is not of floats", m.stack)
        factor = m.optional("factor")
        if factor is not None and not broadcasts_to(factor.tensor.shape, m.stack.tensor.shape):
            return m.decline("the factor enlarges the stack", factor)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        stack = m.stack.op
        assert stack is not None
        axis: int = stack.attr("dim")
        keepdim: bool = m.attr("keepdim")
        total: Value | None = None
        for place, part in enumerate(stack.variadic("tensors")):
            term = part if keepdim else _without(op, part, axis)
            if m.optional("factor") is not None:
                own = _factor(op, m.factor, axis - m.stack.tensor.rank, place, keepdim)
                term = op.aten.mul.Tensor(term, own)
            total = term if total is None else op.aten.add.Tensor(total, term)
        assert total is not None
        return total


def _without(op: Builder, value: Value, axis: int) -> Value:
    """``value`` without ``axis``, which has one place."""
    shape = value.tensor.shape
    return op.aten.view(value, (*shape[:axis], *shape[axis + 1 :]))


def _factor(op: Builder, factor: Value, axis: int, place: int, keepdim: bool) -> Value:
    """What ``factor`` has for the ``place`` along ``axis``, counted from the end of the stack's shape."""
    rank = factor.tensor.rank
    if rank + axis < 0:
        return factor
    sizes: tuple[Dim, ...] = factor.tensor.shape
    if sizes[axis] != 1:
        factor = op.aten.slice.Tensor(factor, rank + axis, place, place + 1, 1)
    return factor if keepdim else _without(op, factor, rank + axis)


def _stacked(op: Builder, x: Value, y: Value) -> Value:
    shape = (x.tensor.shape[0], 1, x.tensor.shape[1])
    return op.aten.cat((op.aten.view(x, shape), op.aten.view(y, shape)), 1)


def _summed(op: Builder, x: Value, y: Value, factor: Value, *, keepdim: bool = False) -> Value:
    return op.aten.sum.dim_IntList(op.aten.mul.Tensor(_stacked(op, x, y), factor), (1,), keepdim)


def _used_twice(op: Builder, stack: Value) -> tuple[Value, Value]:
    return op.aten.sum.dim_IntList(stack, (1,)), stack


SummedStack.examples = (
    Example(lambda op, x, y: op.aten.sum.dim_IntList(_stacked(op, x, y), (1,)), ("f32[N, 3]", "f32[N, 3]")),
    Example(_summed, ("f32[N, 3]", "f32[N, 3]", "f32[N, 2, 1]")),
    Example(lambda op, x, y, s: _summed(op, x, y, s, keepdim=True), ("f32[4, 3]", "f32[4, 3]", "f32[2, 3]")),
    Example(_summed, ("f32[4, 3]", "f32[4, 3]", "f32[3]")),
)
SummedStack.counterexamples = (
    Example(
        lambda op, x, y: op.aten.sum.dim_IntList(_stacked(op, x, y), (2,)),
        ("f32[4, 3]", "f32[4, 3]"),
        reason="another axis",
    ),
    Example(
        lambda op, x, y: op.aten.sum.dim_IntList(op.aten.cat((x, y), 1), (1,)),
        ("f32[4, 3]", "f32[4, 1]"),
        reason="several places",
    ),
    Example(
        lambda op, x, y: _used_twice(op, _stacked(op, x, y)),
        ("f32[4, 3]", "f32[4, 3]"),
        reason="used elsewhere",
    ),
    Example(
        lambda op, x, y: op.aten.sum.dim_IntList(_stacked(op, x, y), (1,)),
        ("i64[4, 3]", "i64[4, 3]"),
        reason="not of floats",
    ),
    Example(_summed, ("f32[1, 3]", "f32[1, 3]", "f32[5, 2, 3]"), reason="enlarges the stack"),
)
