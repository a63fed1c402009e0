"""Transpositions that move nothing: spellings by ``einsum`` are full of them."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Example, Match, PatternBuilder, Rewrite, Value, Var


class MovedOnes(Rewrite):
    """permute(x, dims) = view(x, shape), where only axes of one element change places.

    After attention has been recovered, whose patterns read transpositions.
    """

    stage = "algebra"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.permute(x, op.attr("dims"))

    def check(self, m: Match) -> Declined | None:
        shape = m.x.tensor.shape
        moved = [axis for axis in m.attr("dims") if shape[axis] != 1]
        if moved != sorted(moved):
            return m.decline("axes of several elements change places", m.holder("dims"))
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.view(m.x, m.root.result.tensor.shape)

    examples = (
        Example(lambda op, x: op.aten.permute(x, (0, 2, 1)), ("f32[N, 1, 3]",)),
        Example(lambda op, x: op.aten.permute(x, (3, 0, 2, 1)), ("f32[2, 1, 4, 1]",)),
    )
    counterexamples = (
        Example(lambda op, x: op.aten.permute(x, (0, 2, 1)), ("f32[1, N, 3]",), reason="change places"),
    )
