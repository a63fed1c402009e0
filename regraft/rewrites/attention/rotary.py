"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the form that rotates halves."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Example, Match, PatternBuilder, Rewrite, Value, Var, dims
from regraft.rewrites.support import broadcasts_to


class Rotary(Rewrite):
    """x * cos + cat(-x₂, x₁) * sin = rotary(x, cos, sin), where x₁ and x₂ are the halves of x.

    Source: ``apply_rotary_pos_emb`` and ``rotate_half`` of transformers.
    """

    def pattern(self, op: PatternBuilder, x: Var, cos: Var, sin: Var) -> Any:
        axis = op.attr("axis")
        first = op.aten.slice.Tensor(x, axis, 0, op.attr("half"), 1)
        second = op.aten.slice.Tensor(x, axis, op.attr("half"), op.attr("end"), 1)
        rotated = op.aten.cat([op.aten.neg(second), first], axis)
        return op.aten.add.Tensor(op.aten.mul.Tensor(x, cos), op.aten.mul.Tensor(rotated, sin))

    def check(self, m: Match) -> Declined | None:
        shape, half = m.x.tensor.shape, m.attr("half")
        if len(shape) < 2:
            return m.decline("there is no dimension of positions", m.x)
        if m.attr("axis") != len(shape) - 1:
            return m.decline(
                "the halves are not of the last dimension", m.holder("axis"), "cut x along dim=-1"
            )
        if dims.eq(half * 2, shape[-1]) is not True or dims.eq(m.attr("end"), shape[-1]) is not True:
            change = "x[..., : n // 2] and x[..., n // 2 :], where n = x.shape[-1]"
            return m.decline("the parts are not the two halves", m.holder("half"), change)
        for table in (m.cos, m.sin):
            if not broadcasts_to(table.tensor.shape, shape):
                return m.decline("a table does not broadcast to the input", table)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.rg.rotary(m.x, m.cos, m.sin)

    examples = (
        Example(
            lambda op, x, c, s: _spelled_out(op, x, c, s),
            ("bf16[2, 4, 3, 8]", "bf16[1, 1, 3, 8]", "bf16[1, 1, 3, 8]"),
        ),
        Example(
            lambda op, x, c, s: _spelled_out(op, x, c, s),
            ("f32[B, 4, S, 8]", "f32[1, 1, S, 8]", "f32[1, 1, S, 8]"),
        ),
        Example(
            lambda op, x, c, s: _spelled_out(op, x, c, s, swap=True),
            ("f32[2, 3, 8]", "f32[3, 8]", "f32[3, 8]"),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, c, s: _spelled_out(op, x, c, s, half=3),
            ("f32[3, 8]", "f32[3, 8]", "f32[3, 8]"),
            reason="not the two halves",
        ),
        Example(
            lambda op, x, c, s: _spelled_out(op, x, c, s, axis=0),
            ("f32[8, 8]", "f32[8, 8]", "f32[8, 8]"),
            reason="not of the last dimension",
        ),
        Example(
            lambda op, x, c, s: _spelled_out(op, x, c, s),
            ("f32[1, 8]", "f32[3, 8]", "f32[3, 8]"),
            reason="does not broadcast",
        ),
        Example(
            lambda op, x, c, s: _spelled_out(op, x, c, s, negate_first=True),
            ("f32[3, 8]", "f32[3, 8]", "f32[3, 8]"),
            reason="expected",
        ),
    )


def _spelled_out(
    op: Builder,
    x: Value,
    cos: Value,
    sin: Value,
    *,
    half: int = 4,
    axis: int | None = None,
    swap: bool = False,
    negate_first: bool = False,
) -> Value:
    at = x.tensor.rank - 1 if axis is None else axis
    first = op.aten.slice.Tensor(x, at, 0, half)
    second = op.aten.slice.Tensor(x, at, half, 8)
    parts = (second, op.aten.neg(first)) if negate_first else (op.aten.neg(second), first)
    rotated = op.aten.mul.Tensor(op.aten.cat(parts, at), sin)
    kept = op.aten.mul.Tensor(cos, x) if swap else op.aten.mul.Tensor(x, cos)
    return op.aten.add.Tensor(rotated, kept) if swap else op.aten.add.Tensor(kept, rotated)
