"""Expansions that an elementwise op would do itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from regraft.ir import Builder, Declined, Dim, Example, Match, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.support import broadcasts_to


class ImplicitExpand(Rewrite):
    """expand(x) ∘ y = x ∘ y, for + - * / where x and y together have the shape of the result."""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var, y: Var) -> Any:
        expanded = op.shared(op.aten.expand(x, op.attr("size"), implicit=op.attr("implicit")))
        return op.one_of(
            op.aten.add.Tensor(expanded, y),
            op.aten.mul.Tensor(expanded, y),
            op.aten.sub.Tensor(expanded, y),
            op.aten.sub.Tensor(y, expanded),
            op.aten.div.Tensor(expanded, y),
            op.aten.div.Tensor(y, expanded),
        )

    def check(self, m: Match) -> Declined | None:
        shape = m.root.result.tensor.shape
        x, y = m.x.tensor.shape, m.y.tensor.shape
        if not (broadcasts_to(x, shape) and broadcasts_to(y, shape) and _fills(x, y, shape)):
            return m.decline("the operands do not have the shape of the result without it", m.y)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        # One operand only: both may be the same expansion, which is then the other's shape.
        name = next(name for name in ("self", "other") if m.root.operand(name).op in m.ops)
        return op.create(m.root.name, (), {**m.root.arguments(), name: m.x}).result

    examples = (
        Example(
            lambda op, x, y: op.aten.add.Tensor(op.aten.expand(x, y.type.shape), y),
            ("f32[B, 1]", "f32[B, 3]"),
        ),
        Example(lambda op, x, y: op.aten.mul.Tensor(y, op.aten.expand(x, (2, 3))), ("f32[3]", "f32[2, 3]")),
        Example(lambda op, x, y: op.aten.sub.Tensor(op.aten.expand(x, (2, 3)), y), ("f32[1]", "f32[2, 3]")),
        Example(lambda op, x, y: op.aten.sub.Tensor(y, op.aten.expand(x, (2, 3))), ("f32[1]", "f32[2, 3]")),
        Example(lambda op, x, y: op.aten.div.Tensor(op.aten.expand(x, (2, 3)), y), ("f32[1]", "f32[2, 3]")),
        Example(lambda op, x, y: op.aten.div.Tensor(y, op.aten.expand(x, (2, 3))), ("f32[1]", "f32[2, 3]")),
        Example(
            lambda op, x, y: op.aten.add.Tensor(op.aten.expand(x, (2, 3)), y), ("f32[1, 3]", "f32[2, 1]")
        ),
        Example(lambda op, x: _doubled(op, op.aten.expand(x, (2, 3))), ("f32[1]",)),
    )
    counterexamples = (
        Example(
            lambda op, x, y: op.aten.add.Tensor(op.aten.expand(x, (2, 3)), y),
            ("f32[1, 3]", "f32[3]"),
            reason="do not have the shape of the result",
        ),
    )


def _fills(x: Sequence[Dim], y: Sequence[Dim], shape: Sequence[Dim]) -> bool:
    """Whether each size of ``shape`` is one of ``x`` or of ``y``, which broadcast to it."""
    sizes = zip_longest(reversed(x), reversed(y), reversed(shape), fillvalue=1)
    return all(total == 1 or not a == b == 1 for a, b, total in sizes)


def _doubled(op: Builder, x: Value) -> Value:
    return op.aten.add.Tensor(x, x)
