"""Picking elements by index. Indices are checked before the kernel that reads with them runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.backends.tvm.lower.kinds import Expr, Index, Pointwise, broadcast
from regraft.ir import Dim, Op, Value

Bound = tuple[Value, Dim, Dim]


def _embedding(k: Any, op: Op, index: Index) -> Expr:
    row = k.place(k.at(op.operand("indices"), index[:-1]))
    return k.at(op.operand("weight"), [row, index[-1]])


def _embedding_bounds(op: Op) -> Sequence[Bound]:
    return ((op.operand("indices"), 0, op.operand("weight").tensor.shape[0]),)


def _gather(k: Any, op: Op, index: Index) -> Expr:
    x, indices = op.operand("self"), op.operand("index")
    if not x.tensor.rank:
        return k.at(x, [])
    axis = op.attr("dim") % x.tensor.rank
    place = list(index) if indices.tensor.rank else [0]
    place[axis] = k.place(k.at(indices, index))
    return k.at(x, place)


def _gather_bounds(op: Op) -> Sequence[Bound]:
    x = op.operand("self").tensor
    size = x.shape[op.attr("dim") % x.rank] if x.rank else 1
    return ((op.operand("index"), 0, size),)


def _picked(op: Op) -> tuple[list[int], int, int]:
    """The axes that are indexed, how many axes the indices have together, and where these go."""
    given = op.optional_list("indices")
    axes = [axis for axis, index in enumerate(given) if index is not None]
    rank = max(index.tensor.rank for index in given if index is not None)
    neighbours = axes == list(range(axes[0], axes[-1] + 1))
    return axes, rank, axes[0] if neighbours else 0


def _index(k: Any, op: Op, index: Index) -> Expr:
    x, given = op.operand("self"), op.optional_list("indices")
    axes, rank, start = _picked(op)
    picked = list(index[start : start + rank])
    kept = iter([*index[:start], *index[start + rank :]])
    place: list[Expr] = []
    for axis in range(x.tensor.rank):
        if axis not in axes:
            place.append(next(kept))
            continue
        chosen = given[axis]
        assert chosen is not None
        found = k.bind(k.place(k.at(chosen, broadcast(picked, chosen, rank))))
        place.append(k.math.select(found < 0, found + k.size(x.tensor.shape[axis]), found))
    return k.at(x, place)


def _index_bounds(op: Op) -> Sequence[Bound]:
    shape = op.operand("self").tensor.shape
    given = enumerate(op.optional_list("indices"))
    return tuple((index, -1 * shape[axis], shape[axis]) for axis, index in given if index is not None)


LOWERINGS: dict[str, Pointwise] = {
    "aten.embedding": Pointwise(_embedding, indices=_embedding_bounds),
    "aten.gather": Pointwise(_gather, indices=_gather_bounds),
    "aten.index.Tensor": Pointwise(_index, indices=_index_bounds),
}
