"""Ops over whole rows: softmax and norms. A row is computed once, into scratch memory of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regraft.backends.tvm.lower.elementwise import larger
from regraft.backends.tvm.lower.indexing import unravel
from regraft.backends.tvm.lower.kinds import Expr, Loops
from regraft.backends.tvm.lower.reduce import Axes, Fold, element
from regraft.ir import Dim, DType, Op, dims


def _sum(dtype: DType) -> Fold:
    return Fold(dtype, 0.0, lambda k, a, b: a + b)


def _softmax(k: Any, op: Op, logarithm: bool) -> None:
    x, dtype = op.operand("self"), op.result.tensor.dtype
    if not x.tensor.rank:
        k.finish(
            [], k.number(0.0 if logarithm else 1.0, dtype) + element(k, op, [], dtype) * k.number(0, dtype)
        )
        return
    axis = op.attr("dim") % x.tensor.rank
    axes = Axes(x.tensor, (axis,), False)
    count = x.tensor.shape[axis]

    def row(kept: list[Expr]) -> None:
        values = k.scratch(count, dtype)

        def place(j: Expr) -> list[Expr]:
            return axes.place(kept, [j])

        def kept_value(j: Expr) -> Expr:
            return values.keep(j, element(k, op, place(j), dtype))

        top = k.bind(k.fold_row(Fold(dtype, float("-inf"), larger), count, kept_value))

        def power(j: Expr) -> Expr:
            found = k.math.exp(values[j] - top)
            return found if logarithm else values.keep(j, found)

        total = k.fold_row(_sum(dtype), count, power)
        if logarithm:
            shift = k.bind(k.math.log(total))
            k.lanes(count, lambda j: k.finish(place(j), values[j] - top - shift))
        else:
            scale = k.bind(k.one(total) / total)
            k.lanes(count, lambda j: k.finish(place(j), values[j] * scale))

    k.rows(axes.sizes(axes.kept), row, count)


def _float_result(op: Op) -> str | None:
    return None if op.result.tensor.dtype.is_float else f"of {op.result.tensor.dtype} tensors"


def _norm_rows(k: Any, op: Op, tensor: str, own: int, row: Callable[..., None]) -> None:
    """``row(element, place, count)`` for each row, where the last ``own`` axes are one row."""
    x = op.operand(tensor)
    rank = x.tensor.rank
    inner = x.tensor.shape[rank - own :]
    count: Dim = dims.product(inner)

    def one(outer: list[Expr]) -> None:
        def place(j: Expr) -> list[Expr]:
            return [*outer, *unravel(j, inner, k.size)]

        row(place, count)

    k.rows(x.tensor.shape[: rank - own], one, count)


def _affine(k: Any, op: Op, value: Expr, place: list[Expr]) -> Expr:
    for name in ("weight", "bias"):
        if name in {o.name for o in op.definition.operands} and (found := op.optional(name)) is not None:
            factor = k.at(found, place[len(place) - found.tensor.rank :])
            value = value * factor if name == "weight" else value + factor
    return value


def _layer_norm(k: Any, op: Op) -> None:
    x, dtype = op.operand("input"), op.result.tensor.dtype
    eps = k.number(op.attr("eps"), dtype)

    def row(place: Callable[[Expr], list[Expr]], count: Dim) -> None:
        values = k.scratch(count, dtype)
        total = k.fold_row(_sum(dtype), count, lambda j: values.keep(j, k.at(x, place(j))))
        mean = k.bind(k.math.over(total, k.number(count, dtype)))

        def square(j: Expr) -> Expr:
            apart = values.keep(j, values[j] - mean)
            return apart * apart

        spread = k.math.over(k.fold_row(_sum(dtype), count, square), k.number(count, dtype))
        scale = k.bind(k.one(spread) / k.math.sqrt(spread + eps))
        k.lanes(count, lambda j: k.finish(place(j), _affine(k, op, values[j] * scale, place(j))))

    _norm_rows(k, op, "input", len(op.attr("normalized_shape")), row)


def _rms_norm(k: Any, op: Op) -> None:
    x, dtype = op.operand("input"), op.result.tensor.dtype
    eps = op.attr("eps")
    epsilon = k.number(_EPSILON[dtype] if eps is None else eps, dtype)

    def row(place: Callable[[Expr], list[Expr]], count: Dim) -> None:
        values = k.scratch(count, dtype)

        def square(j: Expr) -> Expr:
            found = values.keep(j, k.at(x, place(j)))
            return found * found

        mean = k.math.over(k.fold_row(_sum(dtype), count, square), k.number(count, dtype))
        scale = k.bind(k.one(mean) / k.math.sqrt(mean + epsilon))
        k.lanes(count, lambda j: k.finish(place(j), _affine(k, op, values[j] * scale, place(j))))

    _norm_rows(k, op, "input", len(op.attr("normalized_shape")), row)


#: What torch adds where no eps is given: that of the type it computes in.
_EPSILON = {DType.F32: 2.0**-23, DType.F64: 2.0**-52, DType.BF16: 2.0**-23}

LOWERINGS: dict[str, Loops] = {
    "aten.softmax.int": Loops(lambda k, op: _softmax(k, op, False), _float_result),
    "aten.log_softmax.int": Loops(lambda k, op: _softmax(k, op, True), _float_result),
    "aten.layer_norm": Loops(_layer_norm, _float_result),
    "aten.rms_norm": Loops(_rms_norm, _float_result),
}
