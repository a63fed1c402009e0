"""Layers of whose results a part alone is read."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Exactness, Example, Match, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.linear.layers import why_not_changed
from regraft.rewrites.support import is_known


class SlicedLayer(Rewrite):
    """linear(x, W, b)[..., i:j] = linear(x, W[i:j], b[i:j]), where nothing else reads the layer's result."""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, weight: Var, bias: Var) -> Any:
        made = op.aten.linear(x, weight, op.optional(bias))
        return op.aten.slice.Tensor(made, op.attr("dim"), op.attr("start"), op.attr("end"), op.attr("step"))

    def check(self, m: Match) -> Declined | None:
        if m.weight.tensor.rank != 2 or m.attr("dim") != m.root.result.tensor.rank - 1:
            return m.decline("the slice is not of the layer's outputs", m.root.result)
        bias = m.optional("bias")
        if bias is not None and not is_known(bias):
            return m.decline("the bias is not constant", bias)
        found = why_not_changed(m.weight)
        return None if found is None else m.decline(found.reason, found.culprit)

    def rewrite(self, op: Builder, m: Match) -> Value:
        def part(value: Value) -> Value:
            return op.aten.slice.Tensor(value, 0, m.attr("start"), m.attr("end"), m.attr("step"))

        bias = m.optional("bias")
        return op.aten.linear(m.x, part(m.weight), None if bias is None else part(bias))

    examples = (
        Example(
            lambda op, x, w, b: op.aten.slice.Tensor(op.aten.linear(x, w, b), 2, 1, 4, 1),
            ("f32[B, S, 8]", "f32[6, 8]", "f32[6]"),
            constants=(1, 2),
        ),
        Example(
            lambda op, x, w: op.aten.slice.Tensor(op.aten.linear(x, w), 1, 0, 6, 2),
            ("f32[3, 8]", "f32[6, 8]"),
            constants=(1,),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, w: op.aten.slice.Tensor(op.aten.linear(x, w), 0, 0, 2, 1),
            ("f32[3, 8]", "f32[6, 8]"),
            constants=(1,),
            reason="not of the layer's outputs",
        ),
        Example(
            lambda op, x, w: _halves(op, op.aten.linear(x, w)),
            ("f32[3, 8]", "f32[6, 8]"),
            constants=(1,),
            reason="users outside",
        ),
        Example(
            lambda op, x, w: op.aten.slice.Tensor(op.aten.linear(x, w), 1, 0, 2, 1),
            ("f32[3, 8]", "f32[6, 8]"),
            reason="the weight is not constant",
        ),
    )


def _halves(op: Builder, y: Value) -> tuple[Value, Value]:
    return op.aten.slice.Tensor(y, 1, 0, 3, 1), op.aten.slice.Tensor(y, 1, 3, 6, 1)
