"""Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) without the copies of keys and values."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Example, Match, PatternBuilder, Rewrite, Value, Var, dims
from regraft.rewrites.support import same_dims


class GroupedHeads(Rewrite):
    """attention(q, repeat(k, G), repeat(v, G)) = attention(q, k, v, enable_gqa=True)

    ``repeat`` gives each of H key heads G query heads in a row: [B, H, S, D] is viewed as
    [B, H, 1, S, D], expanded to [B, H, G, S, D] and viewed as [B, H * G, S, D].
    Source: ``repeat_kv`` of transformers.
    """

    def pattern(self, op: PatternBuilder, query: Var, key: Var, value: Var, mask: Var) -> Any:
        return op.aten.scaled_dot_product_attention(
            query,
            _repeated(op, key, "key"),
            _repeated(op, value, "value"),
            op.optional(mask),
            is_causal=op.attr("is_causal"),
            scale=op.attr("scale"),
        )

    def check(self, m: Match) -> Declined | None:
        if m.query.tensor.rank != 4:
            return m.decline("the query does not have rank 4", m.query)
        for name in ("key", "value"):
            declined = _check_repeat(m, name)
            if declined is not None:
                return declined
        if dims.eq(m.key.tensor.shape[1], m.value.tensor.shape[1]) is not True:
            return m.decline("keys and values have different numbers of heads", m.value)
        if not same_dims(m.query.tensor.shape[:2], m.attr("key_heads")[:2]):
            return m.decline("queries and repeated keys do not come in equal numbers", m.query)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.scaled_dot_product_attention(
            m.query,
            m.key,
            m.value,
            m.optional("mask"),
            is_causal=m.attr("is_causal"),
            scale=m.attr("scale"),
            enable_gqa=True,
        )

    examples = (
        Example(
            lambda op, q, k, v: _grouped(op, q, k, v, 2),
            ("bf16[2, 6, 5, 8]", "bf16[2, 3, 5, 8]", "bf16[2, 3, 5, 8]"),
        ),
        Example(
            lambda op, q, k, v: _grouped(op, q, k, v, 2),
            ("f32[B, 6, S, 8]", "f32[B, 3, S, 8]", "f32[B, 3, S, 8]"),
        ),
        Example(
            lambda op, q, k, v, m: _grouped(op, q, k, v, 3, m),
            ("f32[2, 6, 5, 8]", "f32[2, 2, 7, 8]", "f32[2, 2, 7, 8]", "bool[2, 1, 5, 7]"),
        ),
    )
    counterexamples = (
        Example(
            lambda op, q, k, v: _grouped(op, q, k, v, 2, whole_blocks=True),
            ("f32[2, 6, 5, 8]", "f32[2, 3, 5, 8]", "f32[2, 3, 5, 8]"),
            reason="not repeated in a row",
        ),
        Example(
            lambda op, q, k, v: _grouped(op, q, k, v, 2),
            ("f32[2, 1, 5, 8]", "f32[2, 3, 5, 8]", "f32[2, 3, 5, 8]"),
            reason="equal numbers",
        ),
        Example(
            lambda op, q, k, v: op.aten.scaled_dot_product_attention(q, k, v),
            ("f32[2, 3, 5, 8]", "f32[2, 3, 5, 8]", "f32[2, 3, 5, 8]"),
            reason="expected aten.view",
        ),
    )


def _repeated(op: PatternBuilder, x: Var, name: str) -> Any:
    apart = op.shared(op.aten.view(x, op.attr(f"{name}_apart")))
    expanded = op.shared(op.aten.expand(apart, op.attr(f"{name}_expanded")))
    return op.shared(op.aten.view(expanded, op.attr(f"{name}_heads")))


def _check_repeat(m: Match, name: str) -> Declined | None:
    source: Value = getattr(m, name)
    if source.tensor.rank != 4:
        return m.decline(f"the {name} does not have rank 4", source)
    batch, heads, length, width = source.tensor.shape
    expanded = m.attr(f"{name}_expanded")
    groups = expanded[2] if len(expanded) == 5 else 1
    in_a_row = (
        same_dims(m.attr(f"{name}_apart"), (batch, heads, 1, length, width))
        and same_dims(expanded, (batch, heads, groups, length, width))
        and same_dims(m.attr(f"{name}_heads"), (batch, heads * groups, length, width))
    )
    if in_a_row:
        return None
    reason = f"the {name}'s heads are not repeated in a row"
    return m.decline(reason, m.holder(f"{name}_apart"), f"{name}.repeat_interleave(groups, dim=1)")


def _grouped(
    op: Builder,
    q: Value,
    k: Value,
    v: Value,
    groups: int,
    mask: Value | None = None,
    whole_blocks: bool = False,
) -> Value:
    repeated = [_repeat(op, x, groups, 1 if whole_blocks else 2) for x in (k, v)]
    return op.aten.scaled_dot_product_attention(q, *repeated, mask, scale=0.3)


def _repeat(op: Builder, x: Value, groups: int, at: int) -> Value:
    batch, heads, length, width = x.tensor.shape
    apart = [batch, heads, length, width]
    apart.insert(at, 1)
    expanded = [groups if i == at else size for i, size in enumerate(apart)]
    copies = op.aten.expand(op.aten.view(x, apart), expanded)
    return op.aten.view(copies, (batch, heads * groups, length, width))
