"""Results put together from parts, each with loops of its own: no element asks which part it is in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from regraft.backends.tvm.lower.kinds import Expr, Index, Loops, broadcast
from regraft.ir import Dim, Op, dims


def _part(k: Any, axis: int, start: Dim, shape: Sequence[Dim], element: Callable[[list[Expr]], Expr]) -> None:
    """Write ``element(place in the part)`` to the part of ``shape`` that begins at ``start`` of ``axis``."""

    def body(index: list[Expr]) -> None:
        place = list(index)
        place[axis] = place[axis] + k.size(start)
        k.finish(place, element(index))

    k.each(tuple(shape), body)


def _cat(k: Any, op: Op) -> None:
    rank = op.result.tensor.rank
    axis = op.attr("dim") % rank
    start: Dim = 0
    for part in op.variadic("tensors"):
        if part.tensor.shape == (0,):  # torch lets an empty vector stand among tensors of any rank
            continue
        shape = list(op.result.tensor.shape)
        shape[axis] = part.tensor.shape[axis]
        _part(k, axis, start, shape, lambda index, part=part: k.at(part, index))
        start = start + shape[axis]


def _pad(k: Any, op: Op) -> None:
    """Pads come in pairs, the last axis first; negative ones cut off."""
    x, out = op.operand("self"), op.result.tensor
    pads = op.attr("pad")
    before = [0] * x.tensor.rank
    for pair in range(len(pads) // 2):
        before[x.tensor.rank - 1 - pair] = pads[2 * pair]

    def body(index: list[Expr]) -> None:
        place = [k.place(i) - k.size(b) for i, b in zip(index, before, strict=True)]
        inside = k.true()
        for axis, (i, size) in enumerate(zip(place, x.tensor.shape, strict=True)):
            if pads_axis(op, axis):
                inside = k.math.both(inside, k.math.both(i >= 0, i < k.size(size)))
        k.finish(index, k.only_if(inside, lambda: k.at(x, place), k.number(op.attr("value"), out.dtype)))

    k.each(out.shape, body)


def pads_axis(op: Op, axis: int) -> bool:
    pair = op.operand("self").tensor.rank - 1 - axis
    return any(p != 0 for p in op.attr("pad")[2 * pair : 2 * pair + 2])


def _rotary(k: Any, op: Op) -> None:
    """``x * cos + rotate_half(x) * sin``, one half after the other."""
    x = op.operand("x")
    shape = list(op.result.tensor.shape)
    last = len(shape) - 1
    half = dims.floordiv(shape[last], 2)
    shape[last] = half

    def element(index: Index, is_second: bool) -> Expr:
        own = list(index)
        own[last] = own[last] + k.size(half) if is_second else own[last]
        other = list(index)
        other[last] = other[last] if is_second else other[last] + k.size(half)
        cos, sin = (
            k.at(table, broadcast(own, table, len(own))) for table in (op.operand("cos"), op.operand("sin"))
        )
        first, turned = (
            k.at(x, broadcast(own, x, len(own))) * cos,
            k.at(x, broadcast(other, x, len(own))) * sin,
        )
        return first + turned if is_second else first - turned

    for is_second, start in ((False, 0), (True, half)):
        _part(k, last, start, shape, lambda index, second=is_second: element(index, second))


LOWERINGS: dict[str, Loops] = {
    "aten.cat": Loops(_cat),
    "aten.constant_pad_nd": Loops(_pad, chooses=True),
    "rg.rotary": Loops(_rotary),
}
