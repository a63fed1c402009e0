"""Tensors from sizes and scalars. ``aten.full`` and ``aten.arange.start_step`` are the forms that stay."""

from __future__ import annotations

import math
from typing import Any

from regraft.ir.dims import Dim, Expr, ceildiv, maximum
from regraft.ir.dtypes import DType
from regraft.ir.opdef import CallSite, InferRule, OpDef
from regraft.ir.ops.elementwise import scalars_dtype
from regraft.ir.ops.rules import define, dtype_attr, one, refuse, require, spelling
from regraft.ir.types import TensorType

# -- type rules --------------------------------------------------------------------------------


def _full(site: CallSite) -> TensorType:
    dtype = dtype_attr(site, scalars_dtype(site.attr("fill_value")))
    return TensorType(dtype, site.dims("size"))


def _filled(default: DType) -> InferRule:
    return lambda site: TensorType(dtype_attr(site, default), site.dims("size"))


def _scalar(site: CallSite) -> TensorType:
    return TensorType(dtype_attr(site, DType.F32), ())


def _like(site: CallSite) -> TensorType:
    tensor = site.type("self")
    return tensor.with_dtype(dtype_attr(site, tensor.dtype))


def _new(site: CallSite) -> TensorType:
    return _like(site).with_shape(site.dims("size"))


def range_of(site: CallSite) -> tuple[Any, Any, Any]:
    """Start, end and step of any spelling of ``arange``."""
    return site.attrs.get("start", 0), site.attr("end"), site.attrs.get("step", 1)


def _arange(site: CallSite) -> TensorType:
    bounds = range_of(site)
    has_float = any(isinstance(value, float) for value in bounds)
    dtype = dtype_attr(site, DType.F32 if has_float else DType.I64)
    # torch truncates such bounds, for i64 before it counts the elements and for i32 after.
    fractions = [v for v in bounds if isinstance(v, float) and not v.is_integer()]
    require(dtype.is_float or not fractions, site, f"a range of {dtype} with the fractions {fractions}")
    return TensorType(dtype, (_length(site, *bounds),))


def _length(site: CallSite, start: Any, end: Any, step: Any) -> Dim:
    require(step != 0, site, "the step is 0")
    numbers = [v for v in (start, end, step) if isinstance(v, (int, float))]
    if any(isinstance(v, float) for v in numbers):
        require(len(numbers) == 3, site, "a float range cannot have a symbolic bound")
        return max(math.ceil((end - start) / step), 0)
    if isinstance(step, Expr):
        refuse(site, f"the step {step} is symbolic")
    length = ceildiv(end - start, step) if step > 0 else ceildiv(start - end, -step)
    return maximum(length, 0)


# -- decompositions ----------------------------------------------------------------------------


def full(b: Any, op: Any, value: Any) -> Any:
    """A tensor of ``op``'s type filled with ``value``, written in that type."""
    found = op.result.tensor
    if isinstance(value, Expr):
        number = b.aten._to_copy(b.rg.dim_value(value), dtype=found.dtype)
        return b.aten.expand(number, found.shape)
    return b.aten.full(found.shape, as_scalar(value, found.dtype), dtype=found.dtype)


def as_scalar(value: Any, dtype: DType) -> Any:
    """``value`` as the Python type of ``dtype``'s elements."""
    if dtype == DType.BOOL:
        return bool(value)
    return float(value) if dtype.is_float else int(value) if dtype.is_integer else value


def _with(value: Any) -> Any:
    return one(lambda b, op: full(b, op, value))


_with_fill_value = one(lambda b, op: full(b, op, op.attr("fill_value")))


def _as_range(b: Any, op: Any) -> Any:
    return b.aten.arange.start_step(*range_of(op.site), dtype=op.result.tensor.dtype)


# -- the table ---------------------------------------------------------------------------------

_DTYPE = "*, ScalarType? dtype=None"


def _constant(name: str, params: str, infer: InferRule, decompose: Any) -> OpDef:
    return spelling(f"aten.{name}({params}, {_DTYPE})", infer, decompose)


OPS = (
    define(f"aten.full(SymInt[] size, Scalar fill_value, {_DTYPE})", _full),
    define(f"aten.arange.start_step(Scalar start, Scalar end, Scalar step=1, {_DTYPE})", _arange),
    _constant("arange", "Scalar end", _arange, one(_as_range)),
    _constant("arange.start", "Scalar start, Scalar end", _arange, one(_as_range)),
    _constant("zeros", "SymInt[] size", _filled(DType.F32), _with(0)),
    _constant("ones", "SymInt[] size", _filled(DType.F32), _with(1)),
    _constant("zeros_like", "Tensor self", _like, _with(0)),
    _constant("ones_like", "Tensor self", _like, _with(1)),
    _constant("full_like", "Tensor self, Scalar fill_value", _like, _with_fill_value),
    _constant("new_zeros", "Tensor self, SymInt[] size", _new, _with(0)),
    _constant("new_ones", "Tensor self, SymInt[] size", _new, _with(1)),
    _constant("new_full", "Tensor self, SymInt[] size, Scalar fill_value", _new, _with_fill_value),
    # What is there before a tensor is filled has no defined value: zeros will do.
    _constant("empty.memory_format", "SymInt[] size", _filled(DType.F32), _with(0)),
    _constant("empty_permuted", "SymInt[] size, int[] physical_layout", _filled(DType.F32), _with(0)),
    _constant("empty_like", "Tensor self", _like, _with(0)),
    _constant("new_empty", "Tensor self, SymInt[] size", _new, _with(0)),
    _constant("scalar_tensor", "Scalar s", _scalar, one(lambda b, op: full(b, op, op.attr("s")))),
)
