"""Views, permutes, expands, slices: where an element is read from."""

from __future__ import annotations

from typing import Any

from regraft.backends.tvm.lower.indexing import needs_division, reshaped
from regraft.backends.tvm.lower.kinds import Expr, Index, Pointwise, broadcast
from regraft.ir import Dim, Op, dims


def _view(k: Any, op: Op, index: Index) -> Expr:
    x = op.operand("self")
    return k.at(x, reshaped(index, op.result.tensor.shape, x.tensor.shape, k.size))


def _permute(k: Any, op: Op, index: Index) -> Expr:
    x = op.operand("self")
    place: list[Expr] = [0] * x.tensor.rank
    for axis, source in zip(index, op.attr("dims"), strict=True):
        place[source % x.tensor.rank] = axis
    return k.at(x, place)


def _expand(k: Any, op: Op, index: Index) -> Expr:
    x = op.operand("self")
    return k.at(x, broadcast(index, x, op.result.tensor.rank))


def slice_start(op: Op) -> Dim:
    """The first element that a slice takes: one that is not proved negative counts from the start."""
    x = op.operand("self").tensor
    size, start = x.shape[op.attr("dim") % x.rank], op.attr("start")
    if start is None:
        return 0
    _, high = dims.bounds(start)
    if high is not None and high < 0:
        return dims.maximum(0, start + size)
    return dims.minimum(start, size)


def _slice(k: Any, op: Op, index: Index) -> Expr:
    x = op.operand("self")
    axis = op.attr("dim") % x.tensor.rank
    place = list(index)
    place[axis] = place[axis] * op.attr("step") + k.size(slice_start(op))
    return k.at(x, place)


def _flip(k: Any, op: Op, index: Index) -> Expr:
    x = op.operand("self")
    place = list(index)
    for axis in {d % x.tensor.rank for d in op.attr("dims")}:
        place[axis] = k.size(x.tensor.shape[axis]) - 1 - place[axis]
    return k.at(x, place)


def _triangle(upper: bool) -> Pointwise:
    def emit(k: Any, op: Op, index: Index) -> Expr:
        x = k.at(op.operand("self"), index)
        distance = k.place(index[-1]) - k.place(index[-2]) - k.size(op.attr("diagonal"))
        kept = distance >= 0 if upper else distance <= 0
        return k.math.select(kept, x, k.number(0, op.result.tensor.dtype))

    return Pointwise(emit)


def keeps_rows(op: Op) -> bool:
    """Whether ``op`` only moves whole rows: what is beside each other along the last axis of its result is so
    along the last axis of its operand.
    """
    if op.name not in _MOVES:
        return False
    x, out = op.operands[0].tensor, op.result.tensor
    last = x.rank - 1
    if op.name == "aten.permute":
        return last >= 0 and op.attr("dims")[-1] % x.rank == last
    if op.name == "aten.slice.Tensor":
        return op.attr("dim") % x.rank != last or op.attr("step") == 1
    if not (x.rank and out.rank):
        return False
    if op.name == "aten.expand":
        return dims.eq(x.shape[-1], out.shape[-1]) is True
    has_rows = dims.eq(x.shape[-1], 1) is not True and dims.eq(out.shape[-1], 1) is not True
    return has_rows and not needs_division(out.shape, x.shape)


_MOVES = ("aten.view", "aten.permute", "aten.expand", "aten.slice.Tensor")

LOWERINGS: dict[str, Pointwise] = {
    "aten.view": Pointwise(_view, is_free=True),
    "aten.permute": Pointwise(_permute, is_free=True),
    "aten.expand": Pointwise(_expand, is_free=True),
    "aten.slice.Tensor": Pointwise(_slice, is_free=True),
    "aten.flip": Pointwise(_flip, is_free=True),
    "aten.tril": _triangle(upper=False),
    "aten.triu": _triangle(upper=True),
}
