"""Tensors made from nothing."""

from __future__ import annotations

from typing import Any

from regraft.backends.tvm.lower.kinds import Expr, Index, Pointwise
from regraft.ir import DType, Op


def _full(k: Any, op: Op, index: Index) -> Expr:
    return k.number(op.attr("fill_value"), op.result.tensor.dtype)


def _arange(k: Any, op: Op, index: Index) -> Expr:
    """Floats are computed in f64, as torch does."""
    dtype = op.result.tensor.dtype
    wide = DType.F64 if dtype.is_float else DType.I64
    place = k.cast(k.place(index[0]), DType.I64, wide)
    value = k.number(op.attr("start"), wide) + place * k.number(op.attr("step"), wide)
    return k.cast(value, wide, dtype)


def _whole_steps(op: Op) -> str | None:
    """torch takes a fraction to an integer's range in a way of its own."""
    bounds = (op.attr("start"), op.attr("step"))
    if op.result.tensor.dtype.is_float or not any(isinstance(value, float) for value in bounds):
        return None
    return "a range of integers with float bounds"


def _dim_value(k: Any, op: Op, index: Index) -> Expr:
    return k.place(k.size(op.attr("value")))


LOWERINGS: dict[str, Pointwise] = {
    "aten.full": Pointwise(_full, is_free=True),
    "aten.arange.start_step": Pointwise(_arange, _whole_steps, is_free=True),
    "rg.dim_value": Pointwise(_dim_value, is_free=True),
}
