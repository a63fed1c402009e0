"""Reductions, scans and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir.dtypes import DType
from regraft.ir.opdef import SAFE, CallSite, InferRule, OpDef, Trait
from regraft.ir.ops.elementwise import cast
from regraft.ir.ops.rules import (
    axes_of,
    axis_of,
    define,
    dtype_attr,
    one,
    per_element,
    reduced,
    refuse,
    require,
    require_float,
    spelling,
)
from regraft.ir.ops.views import view
from regraft.ir.types import TensorType

#: An empty axis has no largest element: torch raises.
NEEDS_ELEMENT = Trait.PURE


def _wide(dtype: DType) -> DType:
    """Sums of integers and bools are i64."""
    return dtype if dtype.is_float or dtype.kind == "complex" else DType.I64


def _reduce(site: CallSite, dtype: DType) -> TensorType:
    """The operand's shape without the axes ``dim`` (with size 1 there when ``keepdim``)."""
    tensor = site.type("self")
    axes = axes_of(site, "dim", tensor.rank) if "dim" in site.attrs else tuple(range(tensor.rank))
    shape = reduced(tensor.shape, axes, bool(site.attrs.get("keepdim", False)))
    return TensorType(dtype, shape, tensor.device)


def _sum(site: CallSite) -> TensorType:
    return _reduce(site, dtype_attr(site, _wide(site.type("self").dtype)))


def _mean(site: CallSite) -> TensorType:
    dtype = dtype_attr(site, site.type("self").dtype)
    if not dtype.is_float and dtype.kind != "complex":
        refuse(site, f"the mean of {dtype} is not defined; cast it first")
    return _reduce(site, dtype)


def _extremum(site: CallSite) -> TensorType:
    return _reduce(site, site.type("self").dtype)


def _truth(site: CallSite) -> TensorType:
    u8 = site.type("self").dtype == DType.U8  # which torch leaves as it is
    return _reduce(site, DType.U8 if u8 else DType.BOOL)


def _position(site: CallSite) -> TensorType:
    return _reduce(site, DType.I64)


def _spread(site: CallSite) -> TensorType:
    return _reduce(site, require_float(site, "self").dtype)


def _extremum_and_position(site: CallSite) -> Sequence[TensorType]:
    values = _extremum(site)
    return values, values.with_dtype(DType.I64)


def _topk(site: CallSite) -> Sequence[TensorType]:
    tensor = site.type("self")
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    shape = tuple(site.dim_attr("k") if i == axis else d for i, d in enumerate(tensor.shape))
    return tensor.with_shape(shape), tensor.with_shape(shape).with_dtype(DType.I64)


def _moments(site: CallSite) -> Sequence[TensorType]:
    found = _spread(site)
    return found, found


def _cumsum(site: CallSite) -> TensorType:
    tensor = site.type("self")
    axis_of(site, site.attr("dim"), tensor.rank)
    return tensor.with_dtype(dtype_attr(site, _wide(tensor.dtype)))


def _softmax(site: CallSite) -> TensorType:
    tensor = site.type("self")
    axis_of(site, site.attr("dim"), tensor.rank)
    dtype = dtype_attr(site, tensor.dtype) if "dtype" in site.attrs else tensor.dtype
    require(dtype.is_float, site, f"softmax of {dtype}; cast it first")
    return tensor.with_dtype(dtype)


def _softmax_half(site: CallSite) -> TensorType:
    tensor = _softmax(site)
    return tensor.with_dtype(DType.F32) if site.attr("half_to_float") else tensor


def _norm(site: CallSite) -> TensorType:
    return _reduce(site, dtype_attr(site, require_float(site, "self").dtype))


# -- decompositions ----------------------------------------------------------------------------


def _named(name: str) -> Any:
    """Decompose to the op ``name`` over the operand and all its axes."""

    def rule(b: Any, op: Any) -> Any:
        return b.call(name, (op.operand("self"), tuple(range(op.operand("self").tensor.rank))), {})

    return one(rule)


def _over_every_axis(name: str) -> Any:
    def rule(b: Any, op: Any) -> Any:
        x = op.operand("self")
        return b.call(name, (x, tuple(range(x.tensor.rank))), {"dtype": op.attr("dtype")})

    return one(rule)


def _softmax_of(name: str) -> Any:
    def rule(b: Any, op: Any) -> Any:
        x = cast(b, op.operand("self"), op.result.tensor.dtype)
        return b.call(name, (x, op.attr("dim") % max(x.tensor.rank, 1)), {})

    return one(rule)


def _axes(op: Any) -> tuple[int, ...]:
    return axes_of(op.site, "dim", op.operand("self").tensor.rank)


def _logsumexp(b: Any, op: Any) -> Any:
    x, axes, keepdim = op.operand("self"), _axes(op), op.attr("keepdim")
    highest = b.aten.amax(x, axes, True)
    # A row of -inf has the maximum -inf, and -inf - -inf is nan: shift it by 0 instead.
    infinite = b.aten.eq.Scalar(b.aten.abs(highest), float("inf"))
    zero = b.aten.full((), 0.0, dtype=x.tensor.dtype)
    shift = b.aten.where.self(infinite, zero, highest)
    total = b.aten.sum.dim_IntList(b.aten.exp(b.aten.sub.Tensor(x, shift)), axes, True)
    result = b.aten.add.Tensor(b.aten.log(total), shift)
    return result if keepdim else b.aten.view(result, op.result.tensor.shape)


def _vector_norm(b: Any, op: Any) -> Any:
    """The norms 0 (how many are not 0), 1, 2, inf and -inf; other orders stay as powers."""
    order, axes, keepdim = op.attr("ord"), _axes(op), op.attr("keepdim")
    x = cast(b, op.operand("self"), op.result.tensor.dtype)
    if abs(order) == float("inf"):
        extremum = b.aten.amax if order > 0 else b.aten.amin
        return extremum(b.aten.abs(x), axes, keepdim)
    if order == 0:
        return b.aten.sum.dim_IntList(cast(b, b.aten.ne.Scalar(x, 0), x.tensor.dtype), axes, keepdim)
    if order == 1:
        return b.aten.sum.dim_IntList(b.aten.abs(x), axes, keepdim)
    if order == 2:
        return b.aten.sqrt(b.aten.sum.dim_IntList(b.aten.mul.Tensor(x, x), axes, keepdim))
    powers = b.aten.pow.Tensor_Scalar(b.aten.abs(x), order)
    return b.aten.pow.Tensor_Scalar(b.aten.sum.dim_IntList(powers, axes, keepdim), 1 / order)


def _variance(b: Any, op: Any, correction: Any) -> Any:
    axes, keepdim = _axes(op), op.attr("keepdim")
    return b.aten.var.correction(op.operand("self"), axes, correction=correction, keepdim=keepdim)


def _with_mean(root: bool) -> Any:
    """The variance (its root, the deviation) and the mean."""

    def rule(b: Any, op: Any) -> Sequence[Any]:
        spread = _variance(b, op, op.attr("correction"))
        mean = b.aten.mean.dim(op.operand("self"), _axes(op), op.attr("keepdim"))
        return b.aten.sqrt(spread) if root else spread, mean

    return rule


def _product(b: Any, op: Any) -> Any:
    x = op.operand("self")
    return b.aten.prod.dim_int(view(b, x, (x.tensor.numel,)), 0, dtype=op.attr("dtype"))


def _unbiased(b: Any, op: Any) -> Any:
    return _variance(b, op, 1 if op.attr("unbiased") else 0)


# -- the table ---------------------------------------------------------------------------------


def _reduction(name: str, params: str, infer: InferRule, traits: Trait = SAFE, count: int = 1) -> OpDef:
    separator = ", " if params else ""
    return define(f"aten.{name}(Tensor self{separator}{params})", infer, traits, per_element("self", count))


_DIMS = "int[1]? dim, bool keepdim=False"
_DTYPE = "*, ScalarType? dtype=None"
_CORRECTION = "int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False"

OPS = (
    _reduction("sum.dim_IntList", f"{_DIMS}, {_DTYPE}", _sum),
    _reduction("mean.dim", f"{_DIMS}, {_DTYPE}", _mean),
    _reduction("amax", "int[1] dim=[], bool keepdim=False", _extremum, NEEDS_ELEMENT),
    _reduction("amin", "int[1] dim=[], bool keepdim=False", _extremum, NEEDS_ELEMENT),
    _reduction("argmax", "int? dim=None, bool keepdim=False", _position, NEEDS_ELEMENT),
    _reduction("argmin", "int? dim=None, bool keepdim=False", _position, NEEDS_ELEMENT),
    _reduction("any", "", _truth),
    _reduction("all", "", _truth),
    _reduction("any.dim", "int dim, bool keepdim=False", _truth),
    _reduction("all.dim", "int dim, bool keepdim=False", _truth),
    _reduction("any.dims", "int[]? dim=None, bool keepdim=False", _truth),
    _reduction("all.dims", "int[]? dim=None, bool keepdim=False", _truth),
    _reduction("prod.dim_int", f"int dim, bool keepdim=False, {_DTYPE}", _sum),
    _reduction("var.correction", _CORRECTION, _spread, count=4),
    _reduction("max.dim", "int dim, bool keepdim=False", _extremum_and_position, NEEDS_ELEMENT),
    _reduction("min.dim", "int dim, bool keepdim=False", _extremum_and_position, NEEDS_ELEMENT),
    _reduction("topk", "SymInt k, int dim=-1, bool largest=True, bool sorted=True", _topk, NEEDS_ELEMENT),
    _reduction("cumsum", f"int dim, {_DTYPE}", _cumsum),
    _reduction("softmax.int", "int dim, ScalarType? dtype=None", _softmax, count=5),
    _reduction("log_softmax.int", "int dim, ScalarType? dtype=None", _softmax, count=5),
    # Other spellings.
    spelling(f"aten.sum(Tensor self, {_DTYPE})", _sum, _over_every_axis("aten.sum.dim_IntList")),
    spelling(f"aten.mean(Tensor self, {_DTYPE})", _mean, _over_every_axis("aten.mean.dim")),
    spelling(f"aten.prod(Tensor self, {_DTYPE})", _sum, one(_product)),
    spelling(f"aten.var_mean.correction(Tensor self, {_CORRECTION})", _moments, _with_mean(False)),
    spelling(f"aten.std_mean.correction(Tensor self, {_CORRECTION})", _moments, _with_mean(True)),
    spelling("aten.max(Tensor self)", _extremum, _named("aten.amax"), NEEDS_ELEMENT),
    spelling("aten.min(Tensor self)", _extremum, _named("aten.amin"), NEEDS_ELEMENT),
    spelling(
        "aten._softmax(Tensor self, int dim, bool half_to_float)",
        _softmax_half,
        _softmax_of("aten.softmax.int"),
    ),
    spelling(
        "aten._log_softmax(Tensor self, int dim, bool half_to_float)",
        _softmax_half,
        _softmax_of("aten.log_softmax.int"),
    ),
    spelling(
        "aten.logsumexp(Tensor self, int[1] dim, bool keepdim=False)", _spread, one(_logsumexp), NEEDS_ELEMENT
    ),
    spelling(
        f"aten.linalg_vector_norm(Tensor self, Scalar ord=2, int[1]? dim=None, bool keepdim=False, {_DTYPE})",
        _norm,
        one(_vector_norm),
    ),
    spelling(
        "aten.var.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False)",
        _spread,
        one(_unbiased),
    ),
    spelling(
        "aten.std.dim(Tensor self, int[1]? dim, bool unbiased=True, bool keepdim=False)",
        _spread,
        one(lambda b, op: b.aten.sqrt(_unbiased(b, op))),
    ),
    spelling(
        f"aten.std.correction(Tensor self, {_CORRECTION})",
        _spread,
        one(lambda b, op: b.aten.sqrt(_variance(b, op, op.attr("correction")))),
    ),
)
