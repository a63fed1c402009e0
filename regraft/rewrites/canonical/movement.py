"""Chains of ops that only move elements: at most a slice an axis, one view, one permutation and one view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    Example,
    Match,
    Op,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
    dims,
)
from regraft.rewrites.canonical.atoms import MOVES, Moved, Step, price_of, steps_of

_LONGEST = 8


class MovementChain(Rewrite):
    """moves(x) = view(permute(view(slice(x)))), for a chain of these that is longer or copies more.

    Slices move to the front, where they read less; permutations become one; those that move nothing but
    axes of size 1 become a view. Source: the heads of ``nn.MultiheadAttention``.
    """

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.one_of(
            op.aten.view(x, op.attr("size")),
            op.aten.permute(x, op.attr("dims")),
            op.aten.slice.Tensor(x, op.attr("dim"), op.attr("start"), op.attr("end"), op.attr("step")),
        )

    def check(self, m: Match) -> Declined | None:
        if is_moved_on(m.root.result):
            return m.decline("it is a part of a longer chain", m.root.result)
        if any(user.name == "aten.expand" for user in m.root.result.users):
            return m.decline("it makes an axis to expand, which stands alone", m.root.result)
        if _shorter(m.root) is None:
            return m.decline("no shorter chain is known", m.root.result)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        found = _shorter(m.root)
        assert found is not None, m.root
        value = found.source
        for step in found.steps:
            value = op.create(step.name, (value,), dict(step.attributes)).result
        return value

    examples = (
        Example(  # a head's part of a packed projection, as nn.MultiheadAttention takes it
            lambda op, x: _packed_head(op, x, (64, 2, 3, 8), (2, 1, 0, 3)),
            ("f32[64, 2, 24]",),
        ),
        Example(lambda op, x: _packed_head(op, x, (5, 1, 3, 8), (2, 1, 0, 3)), ("f32[5, 1, 24]",)),
        Example(
            lambda op, x: _packed_head(op, x, (*x.type.shape[:2], 3, 8), (2, 1, 0, 3)), ("f32[S, B, 24]",)
        ),
        Example(  # there and back
            lambda op, x: op.aten.permute(
                op.aten.view(op.aten.permute(x, (1, 0, 2)), (7, 2, 4, 2)), (1, 0, 3, 2)
            ),
            ("f32[2, 7, 8]",),
        ),
        Example(lambda op, x: op.aten.permute(x, (1, 0, 2)), ("f32[1, 3, 4]",)),
        Example(  # the heads of one sequence side by side again
            lambda op, x: op.aten.view(op.aten.permute(x, (2, 0, 1, 3)), (1, 5, 8)), ("f32[1, 2, 5, 4]",)
        ),
        Example(
            lambda op, x: op.aten.slice.Tensor(op.aten.permute(x, (2, 0, 1)), 0, 1, 2), ("f32[B, 3, 4]",)
        ),
    )
    counterexamples = (
        Example(
            lambda op, x: op.aten.permute(op.aten.view(x, (2, 3, 4)), (1, 0, 2)),
            ("f32[6, 4]",),
            reason="no shorter chain",
        ),
        Example(
            lambda op, x: op.aten.permute(op.aten.slice.Tensor(op.aten.view(x, (4, 3)), 1, 0, 2), (1, 0)),
            ("f32[12]",),
            reason="no shorter chain",
        ),
        Example(  # the shuffle of a block-diagonal product: one permutation would scatter single elements
            lambda op, x: op.aten.permute(op.aten.view(op.aten.permute(x, (1, 0, 2)), (7, 4, 4)), (2, 0, 1)),
            ("f32[2, 7, 8]",),
            reason="no shorter chain",
        ),
        Example(
            lambda op, x: op.aten.expand(
                op.aten.view(op.aten.permute(op.aten.view(x, (5, 2, 4)), (1, 0, 2)), (2, 1, 5, 4)),
                (2, 3, 5, 4),
            ),
            ("f32[5, 8]",),
            reason="makes an axis to expand",
        ),
        Example(  # every other element is no slice of the source's axis
            lambda op, x: op.aten.slice.Tensor(op.aten.permute(x, (1, 0)), 0, 0, 4, 2),
            ("f32[3, 4]",),
            reason="no shorter chain",
        ),
    )


def is_moved_on(value: Value) -> bool:
    """Whether all that read ``value`` move its elements."""
    return bool(value.uses) and all(user.name in MOVES for user in value.users)


@dataclass(frozen=True)
class _Chain:
    source: Value
    steps: tuple[Step, ...]


def _shorter(root: Op) -> _Chain | None:
    """The cheapest chain that gives the result of ``root``, if it is cheaper than what there is."""
    ops: list[Op] = [root]
    while len(ops) < _LONGEST and (maker := ops[0].operand("self").op) is not None and maker.name in MOVES:
        ops.insert(0, maker)
    for begin in range(len(ops)):
        moved = Moved.of(ops[begin].operand("self").tensor.shape)
        if all(moved.apply(op) for op in ops[begin:]):
            source = ops[begin].operand("self")
            chain = _Chain(source, tuple(steps_of(moved, source.tensor.shape, root.result.tensor.shape)))
            return chain if price_of(chain.steps) < price_of(_going(ops[begin:])) else None
    return None


def _going(ops: Sequence[Op]) -> Iterator[Step]:
    """Those of ``ops`` that would go: what others than moves read as well would stay."""
    for op in ops:
        if op is ops[-1] or is_moved_on(op.result):
            yield Step(op.name, op.attrs, op.operand("self").tensor.shape)


def _packed_head(op: Builder, x: Value, parts: Sequence[Dim], order: Sequence[int]) -> Value:
    """The second of three parts of each row as two heads: [batch, heads, rows, width]."""
    rows, batch, _, width = parts
    apart = op.aten.permute(op.aten.view(x, tuple(parts)), tuple(order))
    part = op.aten.view(op.aten.slice.Tensor(apart, 0, 1, 2), (batch, rows, width))
    heads = op.aten.view(op.aten.permute(part, (1, 0, 2)), (rows, 2 * batch, dims.floordiv(width, 2)))
    return op.aten.view(op.aten.permute(heads, (1, 0, 2)), (batch, 2, rows, dims.floordiv(width, 2)))
