"""Attention as one kernel: of a few rows at a time the scores, their softmax and the weighted values.

Scores are never all in memory, as in FlashAttention (Dao et al., 2022). A head's keys and values are few
enough here to stay in a cache, where each task lays them out for its rows; so no running softmax is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from regraft.backends.tvm.attention import queries_a_head, refusal, scale_of
from regraft.backends.tvm.lower.elementwise import larger
from regraft.backends.tvm.lower.kinds import Expr, Loops, broadcast
from regraft.backends.tvm.lower.matmul import CHUNK, ROWS, Product, batch_place, write_tiles
from regraft.backends.tvm.lower.reduce import Fold
from regraft.ir import DType, Op, Value, dims


def _attention(k: Any, op: Op) -> None:
    """Tasks are heads, and chunks of their rows."""
    out = op.result.tensor
    *batch, rows, width = out.shape
    keys, depth = op.operand("key").tensor.shape[-2:]

    def task(place: list[Expr]) -> None:
        *head, chunk = place
        first = k.bind(k.place(chunk) * CHUNK)
        turned, values = _laid_out(k, op, head)
        scores = k.scratch(ROWS * keys, out.dtype)

        def block(start: Expr, count: int) -> None:
            row = k.bind(first + start)
            _score(k, op, head, row, count, turned, scores)
            scales = [
                _weigh(k, op, [*head, row + i], lambda j, i=i: i * keys + j, scores) for i in range(count)
            ]
            _sum_up(k, op, head, row, count, scores, scales, values)

        k.tiles(k.at_most(CHUNK, rows, first), (ROWS, 1), block)

    work = dims.product((dims.minimum(rows, CHUNK), keys, depth + width))
    k.rows((*batch, dims.ceildiv(rows, CHUNK)), task, work, is_large=True)


def _laid_out(k: Any, op: Op, head: list[Expr]) -> tuple[Any, Any]:
    """The keys of ``head``, a feature a row, and its values, a key a row."""
    key, value = op.operand("key"), op.operand("value")
    (keys, depth), width, dtype = key.tensor.shape[-2:], value.tensor.shape[-1], op.result.tensor.dtype
    shared = _shared(k, op, head)
    turned, values = k.scratch(depth * keys, dtype), k.scratch(keys * width, dtype)
    of_keys, of_values = batch_place(key, shared), batch_place(value, shared)
    with k.loops((depth,)) as (d,):
        k.lanes(keys, lambda j: turned.keep(d * keys + j, k.at(key, [*of_keys, j, d])))
    with k.loops((keys,)) as (j,):
        k.lanes(width, lambda d: values.keep(j * width + d, k.at(value, [*of_values, j, d])))
    return turned, values


def _shared(k: Any, op: Op, head: list[Expr]) -> list[Expr]:
    """The place of the keys that ``head`` reads."""
    count = queries_a_head(op)
    if dims.eq(count, 1) is True:
        return head
    return [*head[:-1], k.bind(k.math.floordiv(head[-1], k.place(k.size(count))))]


def _score(k: Any, op: Op, head: list[Expr], row: Expr, count: int, turned: Any, scores: Any) -> None:
    """The products of ``count`` rows of queries and all keys, into ``scores``."""
    query = op.operand("query")
    keys, depth = op.operand("key").tensor.shape[-2:]
    place = batch_place(query, head)
    product = Product(
        (),
        count,
        keys,
        depth,
        op.result.tensor.dtype,
        lambda b, i, d: k.at(query, [*place, row + i, d]),
        lambda b, d, column: turned[d * keys + column],
        lambda b, i, column, value: scores.keep(i * keys + column, value),
    )
    write_tiles(k, product, [], count)


def _weigh(k: Any, op: Op, index: list[Expr], place: Callable[[Expr], Expr], scores: Any) -> Expr:
    """Turn the scores of one row into powers, and give what their weighted sum is multiplied by."""
    keys, dtype = op.operand("key").tensor.shape[-2], op.result.tensor.dtype
    seen = _seen(k, op, index)
    top = k.fold_row(
        Fold(dtype, float("-inf"), larger), keys, lambda j: scores.keep(place(j), seen(j, scores[place(j)]))
    )
    is_masked = op.optional("attn_mask") is not None
    if is_masked:  # a row that sees nothing weighs nothing, where its softmax is nan
        top = k.math.select(k.math.equal(top, k.number(float("-inf"), dtype)), k.zero(top), top)
    top = k.bind(top)
    total = k.fold_row(
        Fold(dtype, 0.0, lambda k, a, b: a + b),
        keys,
        lambda j: scores.keep(place(j), k.math.exp(scores[place(j)] - top)),
    )
    scale = k.one(total) / total
    return k.bind(k.math.select(k.math.equal(total, k.zero(total)), total, scale) if is_masked else scale)


def _seen(k: Any, op: Op, index: list[Expr]) -> Callable[[Expr, Expr], Expr]:
    """``seen(j, score)``: the score of key ``j`` as the softmax takes it; -inf where it is hidden."""
    mask, dtype = op.optional("attn_mask"), op.result.tensor.dtype
    scale, hidden = k.number(scale_of(op), dtype), k.number(float("-inf"), dtype)

    def seen(j: Expr, score: Expr) -> Expr:
        found = score * scale
        if op.attr("is_causal"):
            found = k.math.select(k.math.at_most(j, index[-1]), found, hidden)
        if mask is None:
            return found
        given = k.at(mask, broadcast([*index, j], mask, len(index) + 1))
        if mask.tensor.dtype == DType.BOOL:
            return k.math.select(given, found, hidden)
        return found + k.cast(given, mask.tensor.dtype, dtype)

    return seen


def _sum_up(
    k: Any,
    op: Op,
    head: list[Expr],
    row: Expr,
    count: int,
    scores: Any,
    scales: Sequence[Expr],
    values: Any,
) -> None:
    """The weighted values of ``count`` rows, which are results."""
    keys, width = op.operand("value").tensor.shape[-2:]
    product = Product(
        (),
        count,
        width,
        keys,
        op.result.tensor.dtype,
        lambda b, i, j: scores[i * keys + j],
        lambda b, j, column: values[j * width + column],
        lambda b, i, column, value: k.finish([*head, row + i, column], value * scales[i]),
    )
    write_tiles(k, product, [], count)


def _read_often(op: Op) -> Sequence[Value]:
    return op.operands


LOWERINGS: dict[str, Loops] = {
    "aten.scaled_dot_product_attention": Loops(
        _attention,
        refusal,
        in_memory=_read_often,
        through=lambda op, value: value is not op.optional("attn_mask"),
    ),
}
