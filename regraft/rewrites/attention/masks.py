"""Masks of attention that index arithmetic proves to be simple (see ``fold.index_analysis``)."""

from __future__ import annotations

import math
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    DType,
    Example,
    Match,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
    dims,
)
from regraft.rewrites.fold import Affine, IndexAnalysis, Where, complement, fact_about, sizes_of_elements

FAR_BELOW = -1e30
"""Added to a score, it makes the weight exactly 0 beside any score that is not masked."""


def _attention(op: PatternBuilder, query: Var, key: Var, value: Var, mask: Any) -> Any:
    return op.aten.scaled_dot_product_attention(
        query, key, value, mask, scale=op.attr("scale"), enable_gqa=op.attr("enable_gqa")
    )


def _with_mask(op: Builder, m: Match, mask: Value | None, is_causal: bool = False) -> Value:
    return op.aten.scaled_dot_product_attention(
        m.query,
        m.key,
        m.value,
        mask,
        is_causal=is_causal,
        scale=m.attr("scale"),
        enable_gqa=m.attr("enable_gqa"),
    )


def is_causal(where: Where, rank: int) -> bool:
    """Whether a mask of ``rank`` is exactly: key index <= query index, the last two axes, from 0."""
    coefficients = (0,) * (rank - 2) + (-1, 1)
    return not where.never and where.constraints == frozenset({Affine(0, coefficients)})


def sees_a_key(seen: Value, negated: bool = False) -> bool:
    """Whether every query is proved to see a key where the bool mask ``seen`` (``negated``: is not) true.

    Every query sees the first key, or every query i sees key i, as in causal masks and windows.
    """
    facts = IndexAnalysis(sizes_of_elements(seen))
    where, shape = facts.where(seen), facts.shape(seen)
    if where is not None and negated:
        where = complement(where, shape)
    if where is None or where.never:
        return False
    if where.is_always:
        return True
    rank = len(shape)
    first = [_without_key(c, 0, shape) for c in where.constraints]
    if all(form.is_at_most(0, shape) for form in first):
        return True
    if rank < 2 or dims.le(shape[-2], shape[-1]) is not True:
        return False
    return all(_without_key(c, c.coefficients[-1], shape).is_at_most(0, shape) for c in where.constraints)


def _without_key(form: Affine, query: int, shape: tuple[Dim, ...]) -> Affine:
    """``form`` for one key a query: the first, or that of the query's own index, ``query`` a step."""
    if len(shape) < 2:
        return Affine(form.base, (0,) * len(shape))
    return Affine(form.base, (*form.coefficients[:-2], form.coefficients[-2] + query, 0))


class TrueMask(Rewrite):
    """attention(q, k, v, mask) = attention(q, k, v), where the mask is proved to be all true.

    Source: the masks that transformers builds for BERT, ViT and ModernBERT: arange(S) >= 0.
    """

    def pattern(self, op: PatternBuilder, query: Var, key: Var, value: Var, mask: Var) -> Any:
        return _attention(op, query, key, value, mask)

    def check(self, m: Match) -> Declined | None:
        if m.mask.tensor.dtype is not DType.BOOL:
            return m.decline(
                "the mask is added, not tested", m.mask, "a bool mask, or none where all is seen"
            )
        where = fact_about(m.mask)
        if not isinstance(where, Where) or not where.is_always:
            reason, change = "the mask is not proved to be all true", "pass no mask where every key is seen"
            return m.decline(reason, m.mask, change)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return _with_mask(op, m, None)

    examples = (
        Example(lambda op, q, k, v: _masked(op, q, k, v, _not_negative), ("f32[B, 2, S, 8]",) * 3),
        Example(lambda op, q, k, v: _masked(op, q, k, v, _not_negative), ("f32[2, 2, 5, 8]",) * 3),
        Example(lambda op, q, k, v: _masked(op, q, k, v, _not_negative), ("bf16[2, 2, 40, 8]",) * 3),
    )
    counterexamples = (
        Example(
            lambda op, q, k, v: _masked(op, q, k, v, _causal), ("f32[B, 2, S, 8]",) * 3, reason="not proved"
        ),
        Example(lambda op, q, k, v: _masked(op, q, k, v, _added), ("f32[2, 2, 5, 8]",) * 3, reason="added"),
        Example(
            lambda op, q, k, v, m: op.aten.scaled_dot_product_attention(q, k, v, m),
            ("f32[2, 2, 5, 8]", "f32[2, 2, 5, 8]", "f32[2, 2, 5, 8]", "bool[5, 5]"),
            reason="not proved",
        ),
    )


class CausalMask(Rewrite):
    """attention(q, k, v, j <= i) = attention(q, k, v, is_causal=True), for key j and query i.

    torch aligns ``is_causal`` to the top left: key j is seen by the queries i >= j, both from 0, also
    when there are more keys than queries. A mask shifted by the length of a cache is another one.
    Source: the masks that transformers builds for GPT-2, Llama and all decoders.
    """

    def pattern(self, op: PatternBuilder, query: Var, key: Var, value: Var, mask: Var) -> Any:
        return _attention(op, query, key, value, mask)

    def check(self, m: Match) -> Declined | None:
        mask = m.mask.tensor
        where = fact_about(m.mask)
        if not isinstance(where, Where) or mask.rank < 2 or not is_causal(where, mask.rank):
            reason, change = (
                "the mask is not proved to be causal",
                "is_causal=True, where key j <= query i is meant",
            )
            return m.decline(reason, m.mask, change)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return _with_mask(op, m, None, is_causal=True)

    examples = (
        Example(lambda op, q, k, v: _masked(op, q, k, v, _causal), ("f32[B, 2, S, 8]",) * 3),
        Example(lambda op, q, k, v: _masked(op, q, k, v, _causal), ("f32[2, 2, 5, 8]",) * 3),
        Example(lambda op, q, k, v: _masked(op, q, k, v, _causal), ("bf16[2, 2, 40, 8]",) * 3),
        Example(lambda op, q, k, v: _masked(op, q, k, v, _causal), ("f32[2, 2, 300, 64]",) * 3),
        Example(
            lambda op, q, k, v: _masked(op, q, k, v, _causal),
            ("f32[2, 2, 5, 8]", "f32[2, 2, 7, 8]", "f32[2, 2, 7, 8]"),
        ),
    )
    counterexamples = (
        Example(
            lambda op, q, k, v: _masked(op, q, k, v, _shifted), ("f32[B, 2, S, 8]",) * 3, reason="not proved"
        ),
        Example(
            lambda op, q, k, v: _masked(op, q, k, v, _strict), ("f32[2, 2, 5, 8]",) * 3, reason="not proved"
        ),
        Example(
            lambda op, q, k, v: _masked(op, q, k, v, _windowed), ("f32[2, 2, 5, 8]",) * 3, reason="not proved"
        ),
        Example(
            lambda op, q, k, v: _masked(op, q, k, v, _anticausal),
            ("f32[2, 2, 5, 8]",) * 3,
            reason="not proved",
        ),
    )


class AdditiveMask(Rewrite):
    """attention(q, k, v, where(seen, 0, -huge)) = attention(q, k, v, seen), where every query sees a key.

    A query that sees nothing averages all values with a finite number, and gives 0 with a bool mask; index
    arithmetic has to exclude that. With -∞ the op takes both alike. Source: ``eager_mask`` of transformers.
    """

    def pattern(self, op: PatternBuilder, query: Var, key: Var, value: Var, seen: Var) -> Any:
        zero = op.shared(op.aten.full(op.attr("zero_size"), op.attr("zero"), dtype=op.attr("dtype")))
        below = op.shared(op.aten.full(op.attr("below_size"), op.attr("below"), dtype=op.attr("dtype")))
        return _attention(op, query, key, value, op.shared(op.aten.where.self(seen, zero, below)))

    def check(self, m: Match) -> Declined | None:
        if m.attr("zero") != 0 or not m.attr("below") <= FAR_BELOW:
            wrong = "zero" if m.attr("zero") != 0 else "below"
            reason = f"the mask adds {m.attr(wrong)!r}, not 0 and a number far below"
            return m.decline(
                reason, m.holder(wrong), "0 where a key is seen and torch.finfo(dtype).min elsewhere"
            )
        if m.attr("below") == -math.inf:
            return None
        if not sees_a_key(m.seen):
            return m.decline(
                "a query might see no key", m.seen, "let every query see its own key, or use -inf"
            )
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return _with_mask(op, m, m.seen)

    examples = (
        Example(lambda op, q, k, v: _masked(op, q, k, v, _added_infinity), ("f32[2, 2, 5, 8]",) * 3),
        Example(lambda op, q, k, v: _masked(op, q, k, v, _added), ("f32[B, 2, S, 8]",) * 3),
        Example(lambda op, q, k, v: _masked(op, q, k, v, _added), ("f32[2, 2, 5, 8]",) * 3),
    )
    counterexamples = (
        Example(
            lambda op, q, k, v: _masked(op, q, k, v, _added_strict),
            ("f32[2, 2, 5, 8]",) * 3,
            reason="see no key",
        ),
        Example(
            lambda op, q, k, v: _masked(op, q, k, v, _added_little),
            ("f32[2, 2, 5, 8]",) * 3,
            reason="far below",
        ),
    )


def _masked(op: Builder, q: Value, k: Value, v: Value, build: Any) -> Value:
    """Attention under the mask ``build(op, i, j)`` of query indices i and key indices j."""
    queries, keys = q.tensor.shape[2], k.tensor.shape[2]
    i = op.aten.view(op.aten.arange.start_step(0, queries, 1, dtype=DType.I64), (queries, 1))
    j = op.aten.view(op.aten.arange.start_step(0, keys, 1, dtype=DType.I64), (1, keys))
    mask: Value = build(op, i, j)
    if mask.tensor.dtype is DType.BOOL:
        mask = op.aten.expand(mask, (q.tensor.shape[0], 1, queries, keys))
    return op.aten.scaled_dot_product_attention(q, k, v, mask)


def _not_negative(op: Builder, i: Value, j: Value) -> Value:
    return op.aten.ge.Scalar(i, 0)


def _causal(op: Builder, i: Value, j: Value) -> Value:
    return op.aten.le.Tensor(j, i)


def _shifted(op: Builder, i: Value, j: Value) -> Value:
    return op.aten.le.Tensor(j, op.aten.add.Scalar(i, 1))


def _strict(op: Builder, i: Value, j: Value) -> Value:
    return op.aten.lt.Tensor(j, i)


def _anticausal(op: Builder, i: Value, j: Value) -> Value:
    return op.aten.ge.Tensor(j, i)


def _windowed(op: Builder, i: Value, j: Value) -> Value:
    near = op.aten.le.Scalar(op.aten.abs(op.aten.sub.Tensor(i, j)), 2)
    return op.aten.bitwise_and.Tensor(_causal(op, i, j), near)


def _added(op: Builder, i: Value, j: Value) -> Value:
    return _as_summand(op, _causal(op, i, j), -3.4028234663852886e38)


def _added_strict(op: Builder, i: Value, j: Value) -> Value:
    return _as_summand(op, _strict(op, i, j), -3.4028234663852886e38)


def _added_infinity(op: Builder, i: Value, j: Value) -> Value:
    return _as_summand(op, _windowed(op, i, j), -math.inf)


def _added_little(op: Builder, i: Value, j: Value) -> Value:
    return _as_summand(op, _causal(op, i, j), -10000.0)


def _as_summand(op: Builder, seen: Value, below: float) -> Value:
    zero, number = (op.aten.full((), value, dtype=DType.F32) for value in (0.0, below))
    return op.aten.where.self(seen, zero, number)
