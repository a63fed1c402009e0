"""Scaled dot-product attention and rotary embeddings.

ONNX's own ops want the heads beside each other, ``[B, S, H * D]``: what a linear layer gives and the
next one takes. Where the graph only transposes between that and ``[B, H, S, D]``, the transposes go.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from regraft.backends.ort.dtypes import carrier
from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import dtype_of
from regraft.backends.ort.lower.empty import is_positive, unless_empty
from regraft.backends.ort.lower.matmul import times
from regraft.backends.ort.lower.views import SWAP_HEADS, heads_last, sliced
from regraft.ir import Dim, DType, Op, Recipe, Trait, Value
from regraft.ir import dims as algebra

Shape = tuple[Dim, ...]

#: Enough to hide a key, and above the number that ONNX Runtime takes for no key at all.
_LOW = -1e38


def _attention(e: Emitter, op: Op) -> ir.Value:
    if _has_node(e, op):
        return _attention_node(e, op)
    return _attention_by_parts(e, op)


def _scale(op: Op) -> float:
    scale, width = op.attr("scale"), op.operand("query").tensor.shape[-1]
    if scale is None:
        assert isinstance(width, int), "supports() lets only a static head size pass without a scale"
        scale = 1 / math.sqrt(width)
    return float(scale)


# -- one node ----------------------------------------------------------------------------------


def _has_node(e: Emitter, op: Op) -> bool:
    """Whether ONNX's Attention does this."""
    q, k, v = (op.operand(name).tensor for name in ("query", "key", "value"))
    if e.target.opset < 23 or dtype_of(op) != DType.F32 or not q.rank == k.rank == v.rank == 4:
        return False
    if _scale(op) <= 0:  # which its kernel refuses
        return False
    static_heads = all(isinstance(d, int) for t in (q, k, v) for d in (t.shape[1], t.shape[3]))
    same_heads = k.shape[1] == v.shape[1] and (op.attr("enable_gqa") or q.shape[1] == k.shape[1])
    return static_heads and same_heads and q.shape[0] == k.shape[0] == v.shape[0]


def _attention_node(e: Emitter, op: Op) -> ir.Value:
    """Attention, and zeros where a size is 0: its kernel refuses those."""
    q, k = op.operand("query").tensor.shape, op.operand("key").tensor.shape
    sizes = [d for d in (q[0], q[2], k[2]) if not is_positive(d)]
    mask = _node_mask(e, op)
    operands = [op.operand(name) for name in ("query", "key", "value")]
    inputs = [x for x in (_beside(e, v) for v in operands) if x is not None]
    beside = len(inputs) == 3
    if not beside:
        inputs = [e.get(v) for v in operands]
    attrs: dict[str, Any] = {"scale": _scale(op), "is_causal": int(op.attr("is_causal"))}
    shape = op.result.tensor.shape
    if beside:
        attrs |= {"q_num_heads": q[1], "kv_num_heads": k[1]}
        shape = (shape[0], shape[2], algebra.product((shape[1], shape[3])))
    (result,) = unless_empty(
        e,
        algebra.product(dict.fromkeys(sizes)),
        lambda: [e.op("Attention", *inputs, mask, **attrs)],
        lambda: [e.op("Expand", e.scalar(0, DType.F32), e.shape(shape))],
    )
    return _separate(e, op.result, result) if beside else result


def _beside(e: Emitter, value: Value) -> ir.Value | None:
    """``[B, H, S, D]`` as ``[B, S, H * D]``, if that needs no transpose."""
    found = heads_last(e, value)
    if found is None:
        return None
    batch, heads, length, width = value.tensor.shape
    return e.reshape(found, (batch, length, heads, width), (batch, length, heads * width))


def _separate(e: Emitter, value: Value, beside: ir.Value) -> ir.Value:
    """``[B, S, H * D]`` as ``[B, H, S, D]``; the layout between is kept for whoever transposes back."""
    batch, heads, length, width = value.tensor.shape
    split = e.reshape(beside, (batch, length, heads * width), (batch, length, heads, width))
    e.heads_last[value] = split
    return e.op("Transpose", split, perm=list(SWAP_HEADS))


def _node_mask(e: Emitter, op: Op) -> ir.Value | None:
    """The mask, its last two axes in full: Attention broadcasts only the others.

    Attention takes a row of the lowest f32 for one that attends to nothing and gives 0, as for a row of
    -inf; to torch that is a number like any other, and the row an average. So such numbers are raised.
    """
    mask = op.optional("attn_mask")
    if mask is None:
        return None
    source = _unexpanded(mask)
    old = source.tensor.shape
    pairs = (op.operand("query").tensor.shape[2], op.operand("key").tensor.shape[2])
    padded = (1,) * (2 - len(old)) + old
    new = (*padded[:-2], *pairs)

    def make() -> ir.Value:
        found = e.get(source)
        if mask.tensor.dtype != DType.BOOL:
            found = _raised(e, e.cast(found, carrier(mask.tensor.dtype), DType.F32))
        return e.expand(e.reshape(found, old, padded), padded, new)

    return e.memoised(("mask", source, new), make)


def _raised(e: Emitter, mask: ir.Value) -> ir.Value:
    """Finite numbers raised to ``_LOW``; -inf stays."""
    gone = e.op("Equal", mask, e.scalar(-math.inf, DType.F32))
    return e.op("Where", gone, mask, e.op("Max", mask, e.scalar(_LOW, DType.F32)))


def _unexpanded(mask: Value) -> Value:
    """The mask before an expand: it broadcasts anyway."""
    while mask.op is not None and mask.op.name == "aten.expand":
        mask = mask.op.operand("self")
    return mask


# -- by parts ----------------------------------------------------------------------------------


def _attention_by_parts(e: Emitter, op: Op) -> ir.Value:
    dtype = dtype_of(op)
    query, key, value, rank, shape = _heads(e, op)
    scores = times(e, query, key, dtype, transpose=True, rank=rank, scale=_scale(op))
    mask, alive = _mask(e, op, dtype, shape)
    if mask is not None:
        scores = e.op("Add", scores, mask)
    result = e.op("MatMul", e.op("Softmax", scores, axis=-1), value)
    if alive is not None:
        result = e.op("Where", alive, result, e.scalar(0, dtype))
    return e.reshape(result, (*shape[:-1], op.result.tensor.shape[-1]), op.result.tensor.shape)


def _heads(e: Emitter, op: Op) -> tuple[ir.Value, ir.Value, ir.Value, int, Shape]:
    """Query, key, value, the key's rank, and the shape of the scores.

    Grouped heads get an axis of their own, along which MatMul broadcasts: nothing is copied.
    """
    q, k, v = (op.operand(name) for name in ("query", "key", "value"))
    query, key, value = (e.get(x) for x in (q, k, v))
    batch = op.result.tensor.shape[:-2]
    shape = (*batch, q.tensor.shape[-2], k.tensor.shape[-2])
    if not op.attr("enable_gqa") or k.tensor.shape[-3] == q.tensor.shape[-3]:
        return query, key, value, k.tensor.rank, shape
    heads, groups = q.tensor.shape[-3], k.tensor.shape[-3]
    assert isinstance(heads, int), "supports() checks it"
    assert isinstance(groups, int), "supports() checks it"
    split = (groups, heads // groups)
    qs = q.tensor.shape
    query = e.reshape(query, qs, (*qs[:-3], *split, *qs[-2:]))
    key = e.op("Unsqueeze", key, e.ints(k.tensor.rank - 2))
    value = e.op("Unsqueeze", value, e.ints(v.tensor.rank - 2))
    return query, key, value, k.tensor.rank + 1, (*batch[:-1], *split, *shape[-2:])


def _mask(e: Emitter, op: Op, dtype: DType, shape: Shape) -> tuple[ir.Value | None, ir.Value | None]:
    """What to add to scores of ``shape``, and which rows attend to anything (None: all do)."""
    if op.attr("is_causal"):
        return _causal(e, shape, dtype), None
    mask = op.optional("attn_mask")
    if mask is None:
        return None, None
    source = _unexpanded(mask)
    key = ("additive mask", source, dtype, len(shape))  # one mask often serves every layer
    return e.memoised(key, lambda: _additive(e, source, dtype, shape, op))


def _additive(e: Emitter, mask: Value, dtype: DType, shape: Shape, op: Op) -> tuple[ir.Value, ir.Value]:
    """The mask as an addend, rows without any key set to 0; torch gives such rows the result 0."""
    found, kind = e.get(mask), carrier(mask.tensor.dtype)
    old = mask.tensor.shape
    if len(old) == 0:
        found, old = e.op("Reshape", found, e.ints(1, 1)), (1, 1)
    if len(shape) > op.result.tensor.rank and len(old) > 2:  # grouped heads: the mask's are split too
        split = (1, 1) if old[-3] == 1 else shape[-4:-2]
        found = e.reshape(found, old, (*old[:-3], *split, *old[-2:]))
    low, zero = e.scalar(-math.inf, dtype), e.scalar(0, dtype)
    if kind == DType.BOOL:
        found = e.op("Where", found, zero, low)
    else:
        found = e.cast(found, kind, dtype)
    best = e.op("ReduceMax", found, e.ints(-1), keepdims=1)
    alive = e.op("Greater", best, low)
    return e.op("Where", alive, found, zero), alive


def _causal(e: Emitter, shape: Shape, dtype: DType) -> ir.Value:
    """The lower triangle of ``[T, S]`` as an addend: row i attends to the keys up to i."""
    rows, columns = shape[-2:]
    if isinstance(rows, int) and isinstance(columns, int) and rows * columns <= 1 << 20:
        kind = np.float64 if dtype == DType.F64 else np.float32
        return e.array(np.triu(np.full((rows, columns), -np.inf, kind), 1), "causal")

    def make() -> ir.Value:
        full = e.op("Expand", e.scalar(-math.inf, dtype), e.shape((rows, columns)))
        return e.op("Trilu", full, e.scalar(1, DType.I64), upper=1)

    return e.memoised(("causal", rows, columns, dtype), make)


def _check(op: Op) -> str | None:
    q, k, v = (op.operand(name).tensor for name in ("query", "key", "value"))
    if op.attr("scale") is None and not isinstance(q.shape[-1], int):
        return "the head size is symbolic"
    if op.attr("enable_gqa") and not all(isinstance(t.shape[-3], int) for t in (q, k, v)):
        return "grouped heads of symbolic number"
    if op.attr("enable_gqa") and k.shape[-3] != v.shape[-3]:
        return "grouped heads that differ between key and value"
    return None


# -- rotary embeddings -------------------------------------------------------------------------


def _rotary(e: Emitter, op: Op) -> ir.Value:
    x = op.operand("x")
    beside = _beside(e, x) if x.tensor.rank == 4 else None
    width = x.tensor.shape[-1]
    tables = [op.operand(name) for name in ("cos", "sin")]
    if (
        beside is None
        or e.target.opset < 23
        or dtype_of(op) != DType.F32
        or not isinstance(width, int)
        or not isinstance(x.tensor.shape[1], int)
        or not all(_serves_all_heads(t) and repeats_half(t) for t in tables)
        or op.result.tensor.shape != x.tensor.shape
    ):
        return _rotary_by_parts(e, op)
    caches = [_cache(e, table, x.tensor.shape) for table in tables]
    heads = x.tensor.shape[1]
    return _separate(e, op.result, e.op("RotaryEmbedding", beside, *caches, num_heads=heads, interleaved=0))


def _serves_all_heads(table: Value) -> bool:
    shape = table.tensor.shape
    return 2 <= len(shape) <= 4 and (len(shape) == 2 or shape[-3] == 1)


def _cache(e: Emitter, table: Value, shape: Shape) -> ir.Value:
    """The first half of ``table`` as ``[B, S, D / 2]``."""
    batch, _, length, width = shape
    assert isinstance(width, int)
    padded = (1,) * (4 - table.tensor.rank) + table.tensor.shape

    def make() -> ir.Value:
        half = sliced(e, e.get(table), table.tensor.rank - 1, width, 0, width // 2)
        flat = (padded[0], padded[2], width // 2)
        half = e.reshape(half, (*table.tensor.shape[:-1], width // 2), flat)
        return e.expand(half, flat, (batch, length, width // 2))

    return e.memoised(("rotary", table, batch, length), make)


def repeats_half(table: Value) -> bool:
    """Whether it is proved that the last axis of ``table`` holds the same values twice."""
    op = table.op
    if op is None:
        return False
    if op.name == "rg.const":
        constant = op.attr("value")
        return isinstance(constant, Recipe) and repeats_half(constant.body.results[0])
    if op.name == "aten.cat":
        parts = op.variadic("tensors")
        return len(parts) == 2 and parts[0] is parts[1] and op.attr("dim") in (-1, parts[0].tensor.rank - 1)
    if not op.operands or op.operands[0].tensor.rank == 0:
        return False
    source = op.operands[0]
    if op.name in ("aten.view", "aten.expand"):
        # A view whose last axis keeps its size keeps its rows.
        return source.tensor.shape[-1] == table.tensor.shape[-1] and repeats_half(source)
    return op.has(Trait.ELEMENTWISE) and len(op.operands) == 1 and repeats_half(source)


def _rotary_by_parts(e: Emitter, op: Op) -> ir.Value:
    """``x * cos + rotate_half(x) * sin``."""
    x, cos, sin = e.inputs_of(op)
    shape = op.operand("x").tensor.shape
    half = algebra.floordiv(shape[-1], 2)
    if isinstance(half, int):
        first, second = e.ops("Split", 2, x, e.ints(half, half), axis=-1)
    else:
        axis = len(shape) - 1
        first, second = (sliced(e, x, axis, shape[-1], a, b) for a, b in ((0, half), (half, shape[-1])))
    rotated = e.op("Concat", e.op("Neg", second), first, axis=-1)
    return e.op("Add", e.op("Mul", x, cos), e.op("Mul", rotated, sin))


LOWERINGS: dict[str, Lowering] = {
    "aten.scaled_dot_product_attention": Lowering(_attention, ("Softmax", "MatMul"), check=_check),
    "rg.rotary": Lowering(_rotary),
}
