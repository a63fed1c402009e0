"""Picking elements by index."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.views import permuted
from regraft.ir import Dim, DType, Op, Value

Shape = tuple[Dim, ...]


def _embedding(e: Emitter, op: Op) -> ir.Value:
    return e.op("Gather", e.operand(op, "weight"), e.operand(op, "indices"), axis=0)


def _gather(e: Emitter, op: Op) -> ir.Value:
    x, index = e.operand(op, "self"), e.operand(op, "index")
    rank = op.operand("self").tensor.rank
    if rank == 0 or op.operand("index").tensor.rank == 0:
        flat = e.op("Gather", e.op("Reshape", x, e.ints(-1)), e.op("Reshape", index, e.ints(-1)), axis=0)
        return e.reshape(flat, (1,), op.result.tensor.shape)
    return e.op("GatherElements", x, index, axis=op.attr("dim") % rank)


def _index(e: Emitter, op: Op) -> ir.Value:
    given = op.optional_list("indices")
    axes = [i for i, index in enumerate(given) if index is not None]
    indices = [index for index in given if index is not None]
    x = e.operand(op, "self")
    if len(axes) == 1:
        return e.op("Gather", x, e.get(indices[0]), axis=axes[0])
    rank = op.operand("self").tensor.rank
    kept = [i for i in range(rank) if i not in axes]
    picked = common_shape(indices)
    front = permuted(e, x, (*axes, *kept))
    result = e.op("GatherND", front, joined(e, indices, picked))
    neighbours = axes == list(range(axes[0], axes[-1] + 1))
    return permuted(e, result, placed(len(picked), len(kept), axes[0] if neighbours else 0))


def joined(e: Emitter, indices: Sequence[Value], picked: Shape) -> ir.Value:
    """``[*picked, n]``: the n indices of each element."""
    columns: list[ir.Value] = []
    for index in indices:
        column = e.cast(e.get(index), index.tensor.dtype, DType.I64)
        column = e.expand(column, index.tensor.shape, picked)
        columns.append(e.op("Unsqueeze", column, e.ints(len(picked))))
    return e.op("Concat", *columns, axis=len(picked))


def common_shape(values: Sequence[Value]) -> Shape:
    """The shape that the values broadcast to; the verifier has seen that they do."""
    rank = max(v.tensor.rank for v in values)
    shapes = [(1,) * (rank - v.tensor.rank) + v.tensor.shape for v in values]
    return tuple(next((d for d in dims if d != 1), 1) for dims in zip(*shapes, strict=True))


def placed(picked: int, kept: int, at: int) -> tuple[int, ...]:
    """Moves the ``picked`` leading axes behind ``at`` of the ``kept`` ones."""
    first = [picked + i for i in range(at)]
    return (*first, *range(picked), *range(picked + at, picked + kept))


LOWERINGS: dict[str, Lowering] = {
    "aten.embedding": Lowering(_embedding),
    "aten.gather": Lowering(_gather),
    "aten.index.Tensor": Lowering(_index),
}
