"""Views, permutes, expands, slices, concatenation."""

from __future__ import annotations

import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import dtype_of
from regraft.backends.ort.sizes import TO_END
from regraft.ir import Dim, DType, Op, Value
from regraft.ir import dims as algebra

#: Between [B, S, H, D] and [B, H, S, D]; its own inverse.
SWAP_HEADS = (0, 2, 1, 3)


def heads_last(e: Emitter, value: Value) -> ir.Value | None:
    """The value [B, H, S, D] in the layout [B, S, H, D], if it is known so without a transpose."""
    op = value.op
    if op is not None and op.name == "aten.permute" and tuple(op.attr("dims")) == SWAP_HEADS:
        return e.get(op.operand("self"))
    return e.heads_last.get(value)


def permuted(e: Emitter, x: ir.Value, dims: tuple[int, ...]) -> ir.Value:
    return x if dims == tuple(range(len(dims))) else e.op("Transpose", x, perm=list(dims))


def sliced(e: Emitter, x: ir.Value, axis: int, size: Dim, start: Dim, end: Dim, step: int = 1) -> ir.Value:
    """Elements ``start:end:step`` of ``axis``, which has ``size``."""
    whole = algebra.eq(end, size) is True
    if whole and start == 0 and step == 1:
        return x
    stop = e.ints(TO_END) if whole else e.size(end)  # to the end: the size need not be computed
    steps = None if step == 1 else e.ints(step)
    return e.op("Slice", x, e.size(start), stop, e.ints(axis), steps)


def _view(e: Emitter, op: Op) -> ir.Value:
    return e.reshape(e.operand(op, "self"), op.operand("self").tensor.shape, op.result.tensor.shape)


def _permute(e: Emitter, op: Op) -> ir.Value:
    x = op.operand("self")
    dims = tuple(d % x.tensor.rank for d in op.attr("dims"))
    if dims == SWAP_HEADS and x in e.heads_last:
        return e.heads_last[x]
    return permuted(e, e.get(x), dims)


def _expand(e: Emitter, op: Op) -> ir.Value:
    return e.expand(e.operand(op, "self"), op.operand("self").tensor.shape, op.result.tensor.shape)


def _slice(e: Emitter, op: Op) -> ir.Value:
    shape = op.operand("self").tensor.shape
    axis = op.attr("dim") % len(shape)
    pieces = _pieces(op) if op.result.tensor.dtype == DType.F32 else []
    if op in pieces:
        sizes = [each.result.tensor.shape[axis] for each in pieces]
        x = e.operand(op, "self")

        def split() -> list[ir.Value]:
            return e.ops("Split", len(pieces), x, e.shape(sizes), axis=axis)

        return e.memoised(("split", x, axis, tuple(sizes)), split)[pieces.index(op)]
    start, end = op.attr("start"), op.attr("end")
    size = shape[axis]
    start = 0 if start is None else start
    end = size if end is None or (isinstance(end, int) and end >= TO_END) else end
    return sliced(e, e.operand(op, "self"), axis, size, start, end, op.attr("step"))


def _pieces(op: Op) -> list[Op]:
    """The slices into which ``op`` and others cut a value along an axis, in order; none where they do not."""
    source, axis = op.operand("self"), op.attr("dim")
    found = [user for user in source.users if _is_piece(user, axis) and user.parent is op.parent]
    found.sort(key=lambda each: each.attr("start"))
    bounds = [(each.attr("start"), each.attr("end")) for each in found]
    starts, ends = [start for start, _ in bounds], [end for _, end in bounds]
    whole = bool(found) and starts == [0, *ends[:-1]] and ends[-1] == source.tensor.shape[axis]
    return found if whole and len(found) > 1 else []


def _is_piece(op: Op, axis: int) -> bool:
    """Whether ``op`` takes neighbours along ``axis``, of a number that is known."""
    if op.name != "aten.slice.Tensor" or op.attr("dim") != axis or op.attr("step") != 1:
        return False
    start, end = op.attr("start"), op.attr("end")
    return isinstance(start, int) and isinstance(end, int) and start < end


def _flip(e: Emitter, op: Op) -> ir.Value:
    rank, x = op.operand("self").tensor.rank, e.operand(op, "self")
    axes = [d % rank for d in op.attr("dims")] if rank else []
    if not axes:
        return x
    count = len(axes)
    first, last, back = ([v] * count for v in (-1, -TO_END, -1))
    return e.op("Slice", x, e.ints(*first), e.ints(*last), e.ints(*axes), e.ints(*back))


def _cat(e: Emitter, op: Op) -> ir.Value:
    parts = op.variadic("tensors")
    rank = op.result.tensor.rank
    # torch lets an empty vector stand among tensors of any rank.
    kept = [e.get(p) for p in parts if p.tensor.rank == rank and not (rank > 1 and p.tensor.shape == (0,))]
    return kept[0] if len(kept) == 1 else e.op("Concat", *kept, axis=op.attr("dim") % rank)


def _triangle(upper: int) -> Lowering:
    def emit(e: Emitter, op: Op) -> ir.Value:
        dtype = dtype_of(op)
        wide = e.wide("Trilu", dtype)
        x = e.cast(e.operand(op, "self"), dtype, wide)
        diagonal = e.size_scalar(op.attr("diagonal"))
        return e.cast(e.op("Trilu", x, diagonal, upper=upper), wide, dtype)

    return Lowering(emit, ("Trilu",))


LOWERINGS: dict[str, Lowering] = {
    "aten.view": Lowering(_view),
    "aten.permute": Lowering(_permute),
    "aten.expand": Lowering(_expand),
    "aten.slice.Tensor": Lowering(_slice),
    "aten.flip": Lowering(_flip),
    "aten.cat": Lowering(_cat),
    "aten.tril": _triangle(0),
    "aten.triu": _triangle(1),
}
