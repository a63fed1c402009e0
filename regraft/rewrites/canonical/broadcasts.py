"""Expansions that an elementwise op would do itself."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Example, Match, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.support import broadcasts_to, same_dims


class ImplicitExpand(Rewrite):
    """expand(x) ∘ y = x ∘ y, for + - * / where y has the shape of the result."""

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
        if not same_dims(m.y.tensor.shape, shape) or not broadcasts_to(m.x.tensor.shape, shape):
            return m.decline("the other operand does not have the shape of the result", m.y)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        arguments = {
            name: m.x if value is not m.y and isinstance(value, Value) else value
            for name, value in m.root.arguments().items()
        }
        return op.create(m.root.name, (), arguments).result

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
    )
    counterexamples = (
        Example(
            lambda op, x, y: op.aten.add.Tensor(op.aten.expand(x, (2, 3)), y),
            ("f32[1, 3]", "f32[2, 1]"),
            reason="does not have the shape of the result",
        ),
    )
