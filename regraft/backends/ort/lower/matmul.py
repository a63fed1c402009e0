"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering, constant_of, peel_transpose
from regraft.backends.ort.lower.elementwise import dtype_of
from regraft.ir import Dim, DType, Op, Value


def linear(
    e: Emitter, x: ir.Value, shape: Sequence[Dim], weight: Value, bias: ir.Value | None, dtype: DType
) -> ir.Value:
    """``x @ weight.T + bias`` for ``x`` of ``shape`` and ``weight[N, K]``.

    The weight stays as torch holds it: a transposed copy would double its memory. A weight that is
    itself the transpose of a constant is used untransposed.
    """
    constant = constant_of(weight)
    base, flipped = (None, False) if constant is None else peel_transpose(constant)
    w = e.get(weight) if base is None else e.weight(base)
    if len(shape) == 1:
        row = e.op("Unsqueeze", x, e.ints(0))
        return e.op("Squeeze", linear(e, row, (1, *shape), weight, bias, dtype), e.ints(0))
    if len(shape) == 2 and dtype.is_float:
        return e.op("Gemm", x, w, bias, transB=int(not flipped))
    product = times(e, x, w, dtype, transpose=not flipped)
    return product if bias is None else e.kernel("Add", dtype, product, bias)


def times(
    e: Emitter,
    a: ir.Value,
    b: ir.Value,
    dtype: DType,
    *,
    transpose: bool = False,
    rank: int = 2,
    scale: float = 1,
) -> ir.Value:
    """``scale * a @ b``, or ``scale * a @ b.T`` over the last two of the ``rank`` axes of ``b``."""
    if scale != 1 and dtype == DType.F64:  # an attribute holds only f32
        a, scale = e.op("Mul", a, e.scalar(scale, dtype)), 1
    if e.contrib_allowed and dtype.is_float and (transpose or scale != 1):
        return e.contrib("FusedMatMul", a, b, transB=int(transpose), alpha=float(scale))
    if transpose:
        b = e.op("Transpose", b, perm=[*range(rank - 2), rank - 1, rank - 2])
    if scale != 1:
        a = e.op("Mul", a, e.scalar(scale, dtype))
    return e.kernel("MatMul", dtype, a, b)


def _linear(e: Emitter, op: Op) -> ir.Value:
    x = op.operand("input")
    return linear(e, e.get(x), x.tensor.shape, op.operand("weight"), e.optional(op, "bias"), dtype_of(op))


def _linear_check(op: Op) -> str | None:
    return "the weight is a vector" if op.operand("weight").tensor.rank == 1 else None


def _matmul(e: Emitter, op: Op) -> ir.Value:
    if any(value.tensor.rank == 1 for value in op.operands):
        return _vector_product(e, op)
    source = _flipped(op.operand("other"))
    if source is not None and e.contrib_allowed and dtype_of(op).is_float and e.has(source):
        return times(e, e.operand(op, "self"), e.get(source), dtype_of(op), transpose=True)
    a, b = e.inputs_of(op)
    if all(map(is_matrix, op.operands)) and (e.is_reshaped_matrix(a) or e.is_reshaped_matrix(b)):
        a, b = (matrix(e, v) for v in op.operands)
        shape = op.result.tensor.shape
        return e.reshape(e.kernel("MatMul", dtype_of(op), a, b), shape[-2:], shape)
    left, right = map(_rows_first, op.operands)
    same_rank = len({value.tensor.rank for value in op.operands}) == 1
    if (left or right) and same_rank and e.contrib_allowed and dtype_of(op) == DType.F32:
        a, b = e.get(left) if left else a, e.get(right) if right else b
        return e.contrib(
            "FusedMatMul", a, b, transBatchA=int(left is not None), transBatchB=int(right is not None)
        )
    return e.kernel("MatMul", dtype_of(op), a, b)


def _vector_product(e: Emitter, op: Op) -> ir.Value:
    """A product of which an operand is a vector, as one of matrices with one row or one column.

    ONNX Runtime joins a Transpose to the MatMul that reads it, also where the right operand is a vector, and
    then computes what is no product (docs/facts.md).
    """
    a, b = e.inputs_of(op)
    is_row, is_column = (value.tensor.rank == 1 for value in op.operands)
    if is_row:
        a = e.op("Unsqueeze", a, e.ints(0))
    if is_column:
        b = e.op("Unsqueeze", b, e.ints(1))
    added = (-2,) * is_row + (-1,) * is_column
    return e.op("Squeeze", e.kernel("MatMul", dtype_of(op), a, b), e.ints(*added))


def _rows_first(value: Value) -> Value | None:
    """What ``value`` is for a product alone: the same with the rows of its matrices before the batch's axes,
    as ``FusedMatMul`` reads them in place."""
    made, rank = value.op, value.tensor.rank
    if made is None or made.name != "aten.permute" or len(value.uses) != 1 or rank < 3:
        return None
    turns = tuple(made.attr("dims")) == (*range(1, rank - 1), 0, rank - 1)
    return made.operand("self") if turns else None


def _flipped(value: Value) -> Value | None:
    """What ``value`` is the transpose of, along its last two axes; None where it is none, or a constant's."""
    op, rank = value.op, value.tensor.rank
    if op is None or op.name != "aten.permute" or rank < 2 or constant_of(op.operand("self")) is not None:
        return None
    return op.operand("self") if tuple(op.attr("dims")) == (*range(rank - 2), rank - 1, rank - 2) else None


def is_matrix(value: Value) -> bool:
    """Whether the last two axes of ``value`` are all that it has beside axes of size 1."""
    shape = value.tensor.shape
    return len(shape) >= 2 and all(size == 1 for size in shape[:-2])


def matrix(e: Emitter, value: Value) -> ir.Value:
    """``value`` with its last two axes only; reshaped once."""
    x, shape = e.get(value), value.tensor.shape
    return e.memoised(("matrix", x), lambda: e.reshape(x, shape, shape[-2:]))


LOWERINGS: dict[str, Lowering] = {
    "aten.linear": Lowering(_linear, ("MatMul",), check=_linear_check),
    "aten.matmul": Lowering(_matmul, ("MatMul",)),
}
