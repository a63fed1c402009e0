"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762), from its formula."""

from __future__ import annotations

import math
from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    DType,
    Exactness,
    Example,
    Match,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
)
from regraft.rewrites.attention.hidden_rows import may_hide_a_row
from regraft.rewrites.attention.masks import FAR_BELOW, sees_a_key
from regraft.rewrites.support import broadcasts_to, same_dims

HALF = (DType.F16, DType.BF16)
_FINITE = "use torch.finfo(scores.dtype).min in place of -inf, or a mask in which every query sees a key"


class SpelledOutAttention(Rewrite):
    """softmax(q kᵀ * scale + mask) v = scaled_dot_product_attention(q, k, v, mask)

    ``kᵀ`` may be any value; transposing it again cancels the model's own transposition. Scores may also
    be set to -∞ or a huge negative number where a bool mask says so. A query whose scores are all -∞
    gives NaN when spelled out and 0 by the op, so with -∞ every query must provably see a key. Sources:
    ``eager_attention_forward`` of transformers, minGPT, and every tutorial.
    """

    exactness = Exactness.REASSOCIATES

    def pattern(
        self, op: PatternBuilder, query: Var, keys: Var, value: Var, mask: Var, seen: Var, hidden: Var
    ) -> Any:
        products = op.aten.matmul(query, keys)
        scores = op.one_of(
            op.aten.mul.Scalar(products, op.attr("scale")),
            op.aten.div.Scalar(products, op.attr("divisor")),
            products,
        )
        below = op.shared(op.aten.full(op.attr("size"), op.attr("below"), dtype=op.attr("type")))
        masked = op.one_of(
            op.aten.add.Tensor(scores, mask),
            op.aten.where.self(seen, scores, below),
            op.aten.where.self(hidden, below, scores),
            scores,
        )
        weights = op.aten.softmax.int(masked, op.attr("dim"), op.attr("dtype"))
        wide = op.aten._to_copy(weights, dtype=op.attr("narrow"))
        return op.one_of(op.aten.matmul(weights, value), op.aten.matmul(wide, value))

    def check(self, m: Match) -> Declined | None:
        query, keys, value = m.query.tensor, m.keys.tensor, m.value.tensor
        rank = query.rank
        if rank not in (3, 4) or keys.rank != rank or value.rank != rank:
            return m.decline("the operands do not have rank 3 or 4 alike", m.query)
        if m.attr("dim") != rank - 1:
            return m.decline("the softmax is not over the keys", m.holder("dim"), "softmax(scores, dim=-1)")
        batch = query.shape[:-2]
        for name, other in (("keys", m.keys), ("values", m.value)):
            if not same_dims(other.tensor.shape[:-2], batch):
                change = f"expand the {name} to the batch and heads of the queries"
                return m.decline(f"the batch sizes differ between queries and {name}", other, change)
        if m.attr("dtype") not in (None, query.dtype) and not (
            m.attr("dtype") is DType.F32 and query.dtype in HALF
        ):
            return m.decline(f"the softmax is computed in {m.attr('dtype')!r}", m.holder("dtype"))
        if value.dtype != query.dtype:
            return m.decline("the values have another dtype", m.value)
        if m.attrs.get("divisor") == 0:
            return m.decline("the scores are divided by 0", m.holder("divisor"))
        return self._check_mask(m)

    def _check_mask(self, m: Match) -> Declined | None:
        mask, query = m.optional("mask") or m.optional("seen") or m.optional("hidden"), m.query.tensor
        if mask is None:
            return None
        scores = (*query.shape[:-1], m.keys.tensor.shape[-1])
        if not broadcasts_to(m.attrs.get("size", ()), scores):
            return m.decline("the number for masked scores is larger than the scores", m.holder("size"))
        if not m.attrs.get("below", -math.inf) <= FAR_BELOW:
            reason = f"masked scores are {m.attr('below')!r}, not far below the others"
            return m.decline(reason, m.holder("below"), "use torch.finfo(scores.dtype).min, or -inf")
        if not broadcasts_to(mask.tensor.shape, scores):
            return m.decline("the mask does not broadcast to the scores", mask)
        return _check_rows(m, mask)

    def rewrite(self, op: Builder, m: Match) -> Value:
        rank = m.query.tensor.rank
        key = op.aten.permute(m.keys, (*range(rank - 2), rank - 1, rank - 2))
        scale = 1 / m.attr("divisor") if "divisor" in m.attrs else m.attrs.get("scale", 1.0)
        return op.aten.scaled_dot_product_attention(m.query, key, m.value, _mask(op, m), scale=float(scale))

    examples = (
        Example(
            lambda op, q, k, v: _attention(op, q, k, v, scale=0.25),
            ("f32[B, 2, S, 8]", "f32[B, 2, S, 8]", "f32[B, 2, S, 8]"),
        ),
        Example(
            lambda op, q, k, v, m: _attention(op, q, k, v, _summand(op, m, -3e38), divisor=4.0),
            ("f32[2, 3, 5, 8]", "f32[2, 3, 7, 8]", "f32[2, 3, 7, 8]", "bool[2, 1, 5, 7]"),
        ),
        Example(
            lambda op, q, k, v: _attention(op, q, k, v), ("f32[2, 5, 8]", "f32[2, 7, 8]", "f32[2, 7, 6]")
        ),
        Example(
            lambda op, q, k, v: _attention(op, q, k, v, scale=0.5, dtype=DType.F32),
            ("bf16[2, 3, 5, 8]", "bf16[2, 3, 7, 8]", "bf16[2, 3, 7, 8]"),
        ),
        Example(
            lambda op, q, k, v: _attention(op, q, k, v, _causal(op, 5, 7), scale=0.5),
            ("f32[2, 5, 8]", "f32[2, 7, 8]", "f32[2, 7, 8]"),
        ),
        Example(
            lambda op, q, k, v: _attention(op, q, k, v, op.aten.bitwise_not(_causal(op, 5, 5)), hides=True),
            ("f32[2, 5, 8]", "f32[2, 5, 8]", "f32[2, 5, 8]"),
        ),
        Example(
            lambda op, q, k, v: _attention(op, q, k, v, _summand(op, _causal(op, 5, 5), -math.inf)),
            ("f32[2, 5, 8]", "f32[2, 5, 8]", "f32[2, 5, 8]"),
        ),
        Example(
            lambda op, q, k, v, m: _attention(op, q, k, v, m, below=-1e38, hides=True),
            ("f32[2, 5, 8]", "f32[2, 7, 8]", "f32[2, 7, 8]", "bool[2, 1, 7]"),
        ),
    )
    counterexamples = (
        Example(
            lambda op, q, k, v, m: _attention(op, q, k, v, m, below=-1e4),
            ("f32[2, 5, 8]", "f32[2, 7, 8]", "f32[2, 7, 8]", "bool[5, 7]"),
            reason="not far below",
        ),
        Example(
            lambda op, q, k, v, m: _attention(op, q, k, v, m, scale=0.5),
            ("f32[2, 5, 8]", "f32[2, 7, 8]", "f32[2, 7, 8]", "bool[5, 7]"),
            reason="the mask may hide a whole row with -inf",
        ),
        Example(
            lambda op, q, k, v: _attention(op, q, k, v, _causal(op, 5, 5, -1)),
            ("f32[2, 5, 8]", "f32[2, 5, 8]", "f32[2, 5, 8]"),
            reason="the mask may hide a whole row with -inf",
        ),
        Example(
            lambda op, q, k, v, m: _attention(op, q, k, v, m, divisor=4.0),
            ("f32[2, 5, 8]", "f32[2, 7, 8]", "f32[2, 7, 8]", "f32[5, 7]"),
            reason="the added mask may hide a whole row with -inf",
        ),
        Example(
            lambda op, q, k, v, m: _attention(op, q, k, v, _summand(op, m, -math.inf)),
            ("f32[2, 5, 8]", "f32[2, 7, 8]", "f32[2, 7, 8]", "bool[5, 7]"),
            reason="the added mask may hide a whole row with -inf",
        ),
        Example(
            lambda op, q, k, v: _attention(op, q, k, v, axis=1),
            ("f32[2, 5, 8]", "f32[2, 5, 8]", "f32[2, 5, 8]"),
            reason="not over the keys",
        ),
        Example(
            lambda op, q, k, v: _attention(op, q, k, v),
            ("f32[2, 3, 5, 8]", "f32[1, 3, 7, 8]", "f32[2, 3, 7, 8]"),
            reason="batch sizes differ",
        ),
        Example(
            lambda op, q, k, v, m: _attention(op, q, k, v, m),
            ("f32[1, 5, 8]", "f32[1, 7, 8]", "f32[1, 7, 8]", "f32[3, 1, 5, 7]"),
            reason="expected",
        ),
    )


def _check_rows(m: Match, mask: Value) -> Declined | None:
    """Decline a mask that may set all scores of a query to -∞: NaN when spelled out, and 0 by the op."""
    if m.optional("mask") is not None:
        if may_hide_a_row(mask):
            return m.decline("the added mask may hide a whole row with -inf", mask, _FINITE)
    elif m.attr("below") == -math.inf and not sees_a_key(mask, negated=m.optional("hidden") is not None):
        return m.decline("the mask may hide a whole row with -inf", mask, _FINITE)
    return None


def _mask(op: Builder, m: Match) -> Value | None:
    """The mask as the op takes it: added, or a bool that is true where a key is seen."""
    seen, hidden = m.optional("seen"), m.optional("hidden")
    if hidden is not None:
        seen = op.aten.bitwise_not(hidden)
    if seen is None or m.attr("below") == -math.inf:
        return seen or m.optional("mask")
    # A query that sees nothing averages all values, as it did; see AdditiveMask.
    zero, below = (op.aten.full((), number, dtype=m.attr("type")) for number in (0.0, m.attr("below")))
    return op.aten.where.self(seen, zero, below)


def _causal(op: Builder, queries: int, keys: int, diagonal: int = 0) -> Value:
    """tril(ones) != 0"""
    ones = op.aten.full((queries, keys), 1.0, dtype=DType.F32)
    return op.aten.ne.Scalar(op.aten.tril(ones, diagonal), 0)


def _summand(op: Builder, seen: Value, below: float) -> Value:
    zero, number = (op.aten.full((), value, dtype=DType.F32) for value in (0.0, below))
    return op.aten.where.self(seen, zero, number)


def _attention(
    op: Builder,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    *,
    scale: float | None = None,
    divisor: float | None = None,
    dtype: DType | None = None,
    axis: int | None = None,
    below: float = -math.inf,
    hides: bool = False,
) -> Value:
    rank = q.tensor.rank
    scores = op.aten.matmul(q, op.aten.permute(k, (*range(rank - 2), rank - 1, rank - 2)))
    if scale is not None:
        scores = op.aten.mul.Scalar(scores, scale)
    if divisor is not None:
        scores = op.aten.div.Scalar(scores, divisor)
    if mask is not None and mask.tensor.dtype is DType.BOOL:
        number = op.aten.full((), below, dtype=scores.tensor.dtype)
        chosen = (number, scores) if hides else (scores, number)
        scores = op.aten.where.self(mask, *chosen)
    elif mask is not None:
        scores = op.aten.add.Tensor(scores, mask)
    weights = op.aten.softmax.int(scores, rank - 1 if axis is None else axis, dtype)
    if dtype is not None:
        weights = op.aten._to_copy(weights, dtype=q.tensor.dtype)
    return op.aten.matmul(weights, v)
