"""Batching of layers: their weights are the same for all samples, their batch axis takes the samples in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

from regraft.ir import Dim, Op, TensorType, Value
from regraft.rewrites.batching.call import Call, Rule


def _through(call: Call) -> Sequence[Value]:
    return call.again({})


def _only(*names: str) -> Rule:
    """An op over the last axes of its operands ``names``; the others must be the same for all samples."""
    return Rule(_through, _fixed_but(*names))


def _fixed_but(*names: str) -> Callable[[Op, Set[Value]], str | None]:
    def check(op: Op, varying: Set[Value]) -> str | None:
        wanted = {op.optional(name) for name in names}
        others = [value for value in op.operands if value in varying and value not in wanted]
        return f"the weights of {op.name} differ from sample to sample" if others else None

    return check


def _folded(rank: int | None, *names: str) -> Rule:
    """An op with a batch axis, which takes the samples in.

    ``names`` are its operands that have one. ``rank`` is theirs where the op may also be without: then the
    samples become the batch.
    """

    def build(call: Call) -> Sequence[Value]:
        values = [call.op.operand(name) for name in names]
        if rank is not None and values[0].tensor.rank < rank:
            return call.again({name: call.lifted(call.op.operand(name)) for name in names})
        merged = {name: _merged(call, call.op.operand(name)) for name in names}
        return [
            _parted(call, made, old) for made, old in zip(call.again(merged), call.op.results, strict=True)
        ]

    return Rule(build, _fixed_but(*names))


def _merged(call: Call, value: Value, rank: int | None = None) -> Value:
    """``value`` with the samples in its first axis."""
    whole = call.lifted(value, rank)
    _, first, *rest = whole.tensor.shape
    return call.view(whole, (call.size * first, *rest))


def _parted(call: Call, made: Value, old: Value) -> Value:
    return call.view(made, (call.size, *old.tensor.shape))


def _is_by_matrix(op: Op, varying: Set[Value]) -> str | None:
    if op.operand("weight").tensor.rank != 2:
        return "a product with a vector"
    bias = op.optional("bias")
    if bias is not None and bias.tensor.rank > 1:
        return "a bias with rows of its own"
    return _fixed_but("input")(op, varying)


def _feed_forward(call: Call) -> Sequence[Value]:
    """A network over the last axis of its input and of its gate's own, which have the same rows."""
    names, rank = ("x", "gate_input"), call.op.result.tensor.rank
    given = {name: call.op.optional(name) for name in names}
    return call.again({name: call.lifted(value, rank) for name, value in given.items() if value is not None})


# -- products ----------------------------------------------------------------------------------


def _matmul(call: Call) -> Sequence[Value]:
    left, right = call.op.operand("self"), call.op.operand("other")
    rank = max(left.tensor.rank, right.tensor.rank, 2)
    a = _as_matrix(call, left, rank, row=True)
    b = _as_matrix(call, right, rank, row=False)
    return [_parted(call, call.b.aten.matmul(a, b), call.op.result)]


def _as_matrix(call: Call, value: Value, rank: int, *, row: bool) -> Value:
    """``value``, a vector as a matrix of one row or column, with the leading axis where it varies."""
    shape = value.tensor.shape
    if len(shape) == 1:
        shape = (1, *shape) if row else (*shape, 1)
    if value not in call.varying:
        return call.view(call.new[value], shape)
    return call.view(call.new[value], (call.size, *(1,) * (rank - len(shape)), *shape))


# -- attention ---------------------------------------------------------------------------------


def _attention(call: Call) -> Sequence[Value]:
    """Queries, keys and values ``[B, H, L, E]``, or without the first axes."""
    names, op = ("query", "key", "value"), call.op
    mask, whole = op.optional("attn_mask"), op.operand("query").tensor.rank == 4
    bring = _merged if whole else Call.lifted
    changes = {name: bring(call, op.operand(name)) for name in names}
    if mask is not None and (mask in call.varying or _has_batch(mask.tensor, whole)):
        rank = op.operand("query").tensor.rank
        lifted = call.lifted(mask, rank)
        batch: Dim = op.operand("query").tensor.shape[0]
        if whole:
            size, _, *rest = lifted.tensor.shape
            lifted = call.view(call.b.aten.expand(lifted, (size, batch, *rest)), (size * batch, *rest))
        changes["attn_mask"] = lifted
    (made,) = call.again(changes)
    return [_parted(call, made, op.result)]


def _has_batch(mask: TensorType, whole: bool) -> bool:
    return whole and mask.rank == 4 and mask.shape[0] != 1


def _attention_fits(op: Op, _: Set[Value]) -> str | None:
    ranks = {op.operand(name).tensor.rank for name in ("query", "key", "value")}
    return None if len(ranks) == 1 and ranks <= {2, 3, 4} else "attention over operands of different ranks"


# -- recurrent layers --------------------------------------------------------------------------


def _recurrent(call: Call) -> Sequence[Value]:
    """The batch is the second axis of the inputs, and the last but one of the results."""

    def merged(value: Value) -> Value:
        first, batch, width = value.tensor.shape
        moved = call.b.aten.permute(call.lifted(value), (1, 0, 2, 3))
        return call.view(moved, (first, call.size * batch, width))

    op = call.op
    names = ["x", "hidden", *(["memory"] if op.optional("memory") is not None else [])]
    made = call.again({name: merged(op.operand(name)) for name in names})
    results: list[Value] = []
    for value, old in zip(made, op.results, strict=True):
        *front, batch, width = old.tensor.shape
        split = call.view(value, (*front, call.size, batch, width))
        results.append(
            call.b.aten.permute(split, (len(front), *range(len(front)), len(front) + 1, len(front) + 2))
        )
    return results


LAYERS: Mapping[str, Rule] = {
    "aten.linear": Rule(_through, _is_by_matrix),
    "aten.layer_norm": _only("input"),
    "aten.rms_norm": _only("input"),
    "rg.ffn": Rule(_feed_forward, _fixed_but("x", "gate_input")),
    "aten.matmul": Rule(_matmul),
    "aten.scaled_dot_product_attention": Rule(_attention, _attention_fits),
    "rg.recurrent": Rule(_recurrent, _fixed_but("x", "hidden", "memory")),
    **{f"aten.conv{n}d": _folded(n + 2, "input") for n in (1, 2, 3)},
    "aten.conv_transpose1d": _folded(3, "input"),
    **{f"aten.conv_transpose{n}d.input": _folded(n + 2, "input") for n in (2, 3)},
    **{f"aten.{kind}_pool{n}d": _folded(n + 2, "self") for kind in ("max", "avg") for n in (2, 3)},
    **{f"aten.max_pool{n}d_with_indices": _folded(n + 2, "self") for n in (2, 3)},
    **{f"aten.adaptive_avg_pool{n}d": _folded(n + 2, "self") for n in (2, 3)},
    **{
        f"aten.{kind}_pad{n}d": _folded(n + 2, "self")
        for kind in ("reflection", "replication")
        for n in (1, 2, 3)
    },
    "aten.upsample_linear1d": _folded(None, "self"),
    **{f"aten.upsample_{kind}2d": _folded(None, "self") for kind in ("nearest", "bilinear", "bicubic")},
    "aten.upsample_trilinear3d": _folded(None, "self"),
    "aten.batch_norm": _folded(None, "input"),
    "aten.group_norm": _folded(None, "input"),
    "aten.grid_sampler_2d": _folded(None, "input", "grid"),
}
