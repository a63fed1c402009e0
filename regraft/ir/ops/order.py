"""Sorting, order statistics, counting and running extrema. ``aten.sort.stable`` is the form that stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from regraft.ir.dims import Dim, floordiv, maximum
from regraft.ir.dtypes import DType
from regraft.ir.opdef import SAFE, CallSite, Trait
from regraft.ir.ops.create import as_scalar
from regraft.ir.ops.elementwise import cast
from regraft.ir.ops.rules import (
    axis_of,
    define,
    dtype_attr,
    one,
    per_element,
    reduced,
    refuse,
    replaced,
    require,
    require_float,
    same_dtype,
    spelling,
)
from regraft.ir.ops.views import take, view
from regraft.ir.types import TensorType

#: An empty axis has no element of any rank: torch raises.
NEEDS_ELEMENT = Trait.PURE

# -- type rules --------------------------------------------------------------------------------


def _sorted(site: CallSite) -> Sequence[TensorType]:
    tensor = site.type("self")
    axis_of(site, site.attr("dim"), tensor.rank)
    return tensor, tensor.with_dtype(DType.I64)


def _one_along(site: CallSite) -> Sequence[TensorType]:
    """One element of an axis, and where it stands."""
    tensor = site.type("self")
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    shape = reduced(tensor.shape, (axis,), bool(site.attr("keepdim"))) if tensor.rank else ()
    return tensor.with_shape(shape), tensor.with_shape(shape).with_dtype(DType.I64)


def _one_of_all(site: CallSite) -> TensorType:
    return site.type("self").with_shape(())


def _both_extrema(site: CallSite) -> Sequence[TensorType]:
    tensor = site.type("self")
    if site.attr("dim") is None:
        shape = (1,) * tensor.rank if site.attr("keepdim") else ()
    else:
        axis = axis_of(site, site.attr("dim"), tensor.rank)
        shape = reduced(tensor.shape, (axis,), bool(site.attr("keepdim"))) if tensor.rank else ()
    return tensor.with_shape(shape), tensor.with_shape(shape)


def _running(site: CallSite) -> TensorType:
    tensor = site.type("self")
    axis_of(site, site.attr("dim"), tensor.rank)
    wide = DType.I64 if tensor.dtype.is_integer or tensor.dtype == DType.BOOL else tensor.dtype
    return tensor.with_dtype(dtype_attr(site, wide)) if "dtype" in site.attrs else require_float(site, "self")


def _places(site: CallSite) -> TensorType:
    """``searchsorted``: rows of boundaries for rows of values, or one row for all."""
    boundaries, values = site.type("sorted_sequence"), site.type("self")
    same_dtype(site, (boundaries, values))
    require(site.optional("sorter") is None, site, "a sorter is not typed")
    side = site.attr("side")
    require(side in (None, "left", "right"), site, f"side is {side!r}, expected 'left' or 'right'")
    if boundaries.rank != 1 and boundaries.shape[:-1] != values.shape[:-1]:
        refuse(site, f"the boundaries {boundaries} do not fit the values {values}")
    return values.with_dtype(DType.I32 if site.attr("out_int32") else DType.I64)


def _buckets(site: CallSite) -> TensorType:
    boundaries, values = site.type("boundaries"), site.type("self")
    same_dtype(site, (boundaries, values))
    require(boundaries.rank == 1, site, f"the boundaries have rank {boundaries.rank}, expected 1")
    return values.with_dtype(DType.I32 if site.attr("out_int32") else DType.I64)


def _histogram(site: CallSite) -> TensorType:
    tensor = require_float(site, "self")
    require(site.int("bins") > 0, site, f"bins is {site.attr('bins')}, expected a positive number")
    return tensor.with_shape((site.int("bins"),))


def _one_hot(site: CallSite) -> TensorType:
    tensor, count = site.type("self"), site.int("num_classes")
    require(tensor.dtype == DType.I64, site, f"the classes are {tensor.dtype}, expected i64")
    require(count > 0, site, "the number of classes depends on the values")
    return tensor.with_shape((*tensor.shape, count))


# -- decompositions ----------------------------------------------------------------------------


def _axis(op: Any) -> int:
    return axis_of(op.site, op.attr("dim"), op.operand("self").tensor.rank)


def _stably(b: Any, op: Any) -> Sequence[Any]:
    args = (op.operand("self"),)
    return b.aten.sort.stable(*args, stable=True, dim=_axis(op), descending=op.attr("descending"))


def _nth(b: Any, x: Any, axis: int, n: Dim, shape: Any) -> Sequence[Any]:
    """The element that stands at ``n`` once ``axis`` is sorted, and where it stood before."""
    if x.tensor.rank == 0:
        return x, b.aten.full((), 0, dtype=DType.I64)
    values, places = b.aten.sort.stable(x, stable=True, dim=axis, descending=False)
    return tuple(view(b, take(b, v, axis, n, 1), shape) for v in (values, places))


def _filled(b: Any, x: Any, axis: int, least: Dim) -> Any:
    """``x``, filled up to ``least`` elements along ``axis`` with nan, or the least number.

    So that there is something to pick where there is too little: a call that picks it fails by a check of its
    own.
    """
    missing = 0 if x.tensor.rank == 0 else maximum(least - x.tensor.shape[axis], 0)
    if missing == 0:
        return x
    dtype, shape = x.tensor.dtype, replaced(x.tensor.shape, axis, missing)
    none = math.nan if dtype.is_float else _least(dtype)
    return b.aten.cat((x, b.aten.full(shape, none, dtype=dtype)), axis)


def _kth(b: Any, op: Any) -> Sequence[Any]:
    x, axis, k = op.operand("self"), _axis(op), op.attr("k")
    return _nth(b, _filled(b, x, axis, k), axis, k - 1, op.results[0].tensor.shape)


def _median_along(b: Any, op: Any) -> Sequence[Any]:
    """The lower one of two middle elements; the first nan where there is one."""
    x, axis, shape = op.operand("self"), _axis(op), op.results[0].tensor.shape
    if x.tensor.rank == 0:
        return _nth(b, x, axis, 0, shape)
    x = _filled(b, x, axis, 1)
    size = x.tensor.shape[axis]
    values, places = _nth(b, x, axis, floordiv(size - 1, 2), shape)
    if not x.tensor.dtype.is_float:
        return values, places
    counts = cast(b, b.aten.isnan(x), DType.I64)
    some, first = b.aten.max.dim(counts, axis, op.attr("keepdim"))
    bad = b.aten.gt.Scalar(some, 0)
    nan = b.aten.full((), math.nan, dtype=x.tensor.dtype)
    return b.aten.where.self(bad, nan, values), b.aten.where.self(bad, first, places)


def _median(b: Any, op: Any) -> Any:
    x = op.operand("self")
    flat = _filled(b, view(b, x, (x.tensor.numel,)), 0, 1)
    values, _ = _nth(b, flat, 0, floordiv(flat.tensor.numel - 1, 2), ())
    if not x.tensor.dtype.is_float:
        return values
    nan = b.aten.full((), math.nan, dtype=x.tensor.dtype)
    return b.aten.where.self(b.aten.any(b.aten.isnan(x)), nan, values)


def _extrema(b: Any, op: Any) -> Sequence[Any]:
    x = op.operand("self")
    axes = tuple(range(x.tensor.rank)) if op.attr("dim") is None else (_axis(op),)
    axes = axes if x.tensor.rank else ()
    return tuple(b.call(f"aten.{name}", (x, axes, op.attr("keepdim")), {}) for name in ("amin", "amax"))


def _prefixes(b: Any, x: Any, axis: int, neutral: Any) -> Any:
    """``x`` with a new axis after ``axis``: row i holds the elements up to i, and ``neutral`` after them."""
    shape = x.tensor.shape
    size = shape[axis]
    counter = b.aten.arange.start_step(0, size, 1, dtype=DType.I64)
    rows = view(b, counter, (size, 1))
    inside = b.aten.le.Tensor(counter, rows)
    after = len(shape) - axis - 1
    inside = view(b, inside, (size, size, *(1,) * after))
    wide = view(b, x, (*shape[:axis], 1, *shape[axis:]))
    fill = b.aten.full((), as_scalar(neutral, x.tensor.dtype), dtype=x.tensor.dtype)
    return b.aten.where.self(inside, wide, fill)


def _cumprod(b: Any, op: Any) -> Any:
    x = cast(b, op.operand("self"), op.result.tensor.dtype)
    if x.tensor.rank == 0:
        return x
    axis = _axis(op)
    return b.aten.prod.dim_int(_prefixes(b, x, axis, 1), axis + 1)


def _logcumsumexp(b: Any, op: Any) -> Any:
    x = op.operand("self")
    if x.tensor.rank == 0:
        return x
    axis = _axis(op)
    prefixes = _prefixes(b, x, axis, -math.inf)
    highest = b.aten.amax(prefixes, (axis + 1,), True)
    # A prefix of -inf has the maximum -inf, and -inf - -inf is nan: shift it by 0 instead.
    infinite = b.aten.eq.Scalar(b.aten.abs(highest), math.inf)
    zero = b.aten.full((), 0.0, dtype=x.tensor.dtype)
    shift = b.aten.where.self(infinite, zero, highest)
    total = b.aten.sum.dim_IntList(b.aten.exp(b.aten.sub.Tensor(prefixes, shift)), (axis + 1,), True)
    return view(b, b.aten.add.Tensor(b.aten.log(total), shift), x.tensor.shape)


def _running_extremum(largest: bool) -> Any:
    """The extremum of each prefix and the last place where it stands."""

    def rule(b: Any, op: Any) -> Sequence[Any]:
        x = op.operand("self")
        dtype, axis = x.tensor.dtype, _axis(op)
        if x.tensor.rank == 0:
            return x, b.aten.full((), 0, dtype=DType.I64)
        prefixes = _prefixes(b, x, axis, _least(dtype) if largest else _greatest(dtype))
        # Turned round, the last of several equal elements is the first.
        turned = b.aten.flip(prefixes, (axis + 1,))
        values, places = b.call(f"aten.{'max' if largest else 'min'}.dim", (turned, axis + 1), {})
        length = x.tensor.shape[axis]
        last = length - 1
        end = b.aten.full((), last, dtype=DType.I64) if isinstance(last, int) else b.rg.dim_value(last)
        counter = b.aten.arange.start_step(0, length, 1, dtype=DType.I64)
        own = view(b, counter, (length, *[1] * (x.tensor.rank - 1 - axis)))
        # What fills the prefixes up may be as large as all their elements: then the last of those is meant.
        return values, b.aten.minimum(b.aten.sub.Tensor(end, places), own)

    return rule


def _least(dtype: DType) -> Any:
    if dtype.is_float:
        return -math.inf
    return False if dtype == DType.BOOL else 0 if dtype.kind == "uint" else -(1 << (dtype.bits - 1))


def _greatest(dtype: DType) -> Any:
    if dtype.is_float:
        return math.inf
    return True if dtype == DType.BOOL else (1 << (dtype.bits - (0 if dtype.kind == "uint" else 1))) - 1


def _count_below(b: Any, boundaries: Any, values: Any, right: bool, dtype: DType) -> Any:
    """For each value the number of boundaries below it (with ``right``, not above it); nan is above all."""
    rank = values.tensor.rank
    lead = boundaries.tensor.shape[:-1] if boundaries.tensor.rank == rank else (1,) * max(rank - 1, 0)
    size = boundaries.tensor.shape[-1]
    edges = view(b, boundaries, (*lead, 1, size)) if rank else boundaries
    each = view(b, values, (*values.tensor.shape, 1))
    compare = b.aten.gt if right else b.aten.ge
    below = b.aten.bitwise_not(compare.Tensor(edges, each))
    return cast(b, b.aten.sum.dim_IntList(below, (rank,)), dtype)


def _searchsorted(b: Any, op: Any) -> Any:
    right = bool(op.attr("right")) or op.attr("side") == "right"
    edges, values = op.operand("sorted_sequence"), op.operand("self")
    return _count_below(b, edges, values, right, op.result.tensor.dtype)


def _bucketize(b: Any, op: Any) -> Any:
    edges, values = op.operand("boundaries"), op.operand("self")
    return _count_below(b, edges, values, bool(op.attr("right")), op.result.tensor.dtype)


def _histc(b: Any, op: Any) -> Any:
    """Counts of equal bins from ``min`` to ``max``; values outside, and nans, are left out."""
    x, bins = op.operand("self"), op.attr("bins")
    dtype = x.tensor.dtype
    empty = b.aten.full((bins,), 0.0, dtype=dtype)
    if x.tensor.numel == 0:  # it has no bounds either
        return empty
    flat = view(b, x, (x.tensor.numel,))
    low, high = _bounds(b, op, flat)
    width = b.aten.sub.Tensor(high, low)
    scaled = b.aten.div.Tensor(b.aten.mul.Scalar(b.aten.sub.Tensor(flat, low), bins), width)
    inside = b.aten.bitwise_and.Tensor(b.aten.ge.Tensor(flat, low), b.aten.le.Tensor(flat, high))
    zero = b.aten.full((), 0.0, dtype=dtype)
    place = b.aten.clamp(b.aten.floor(b.aten.where.self(inside, scaled, zero)), 0, bins - 1)
    counts = cast(b, inside, dtype)
    return b.aten.scatter_reduce.two(empty, 0, cast(b, place, DType.I64), counts, "sum")


def _bounds(b: Any, op: Any, flat: Any) -> Sequence[Any]:
    """The ends of the histogram, those of the data (of 1 around them) when both bounds are the same."""
    dtype, low, high = flat.tensor.dtype, op.attr("min"), op.attr("max")
    if low != high:
        return tuple(b.aten.full((), float(v), dtype=dtype) for v in (low, high))
    least, greatest = b.aten.amin(flat, (0,)), b.aten.amax(flat, (0,))
    same = b.aten.eq.Tensor(least, greatest)
    lower, upper = b.aten.add.Scalar(least, -1), b.aten.add.Scalar(greatest, 1)
    return b.aten.where.self(same, lower, least), b.aten.where.self(same, upper, greatest)


def _one_hot_by_comparing(b: Any, op: Any) -> Any:
    x, count = op.operand("self"), op.attr("num_classes")
    classes = b.aten.arange.start_step(0, count, 1, dtype=DType.I64)
    return cast(b, b.aten.eq.Tensor(view(b, x, (*x.tensor.shape, 1)), classes), DType.I64)


# -- the table ---------------------------------------------------------------------------------

OPS = (
    define(
        "aten.sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False)",
        _sorted,
        SAFE,
        per_element("self", 10),
    ),
    spelling("aten.sort(Tensor self, int dim=-1, bool descending=False)", _sorted, _stably),
    spelling(
        "aten.kthvalue(Tensor self, SymInt k, int dim=-1, bool keepdim=False)",
        _one_along,
        _kth,
        NEEDS_ELEMENT,
    ),
    spelling(
        "aten.median.dim(Tensor self, int dim, bool keepdim=False)", _one_along, _median_along, NEEDS_ELEMENT
    ),
    spelling("aten.median(Tensor self)", _one_of_all, one(_median), NEEDS_ELEMENT),
    spelling(
        "aten.aminmax(Tensor self, *, int? dim=None, bool keepdim=False)",
        _both_extrema,
        _extrema,
        NEEDS_ELEMENT,
    ),
    spelling("aten.cumprod(Tensor self, int dim, *, ScalarType? dtype=None)", _running, one(_cumprod)),
    spelling("aten.logcumsumexp(Tensor self, int dim)", _running, one(_logcumsumexp)),
    spelling("aten.cummax(Tensor self, int dim)", _sorted, _running_extremum(True)),
    spelling("aten.cummin(Tensor self, int dim)", _sorted, _running_extremum(False)),
    spelling(
        "aten.searchsorted.Tensor(Tensor sorted_sequence, Tensor self, *, bool out_int32=False, "
        "bool right=False, str? side=None, Tensor? sorter=None)",
        _places,
        one(_searchsorted),
    ),
    spelling(
        "aten.bucketize.Tensor(Tensor self, Tensor boundaries, *, bool out_int32=False, bool right=False)",
        _buckets,
        one(_bucketize),
    ),
    spelling(
        "aten.histc(Tensor self, int bins=100, Scalar min=0, Scalar max=0)",
        _histogram,
        one(_histc),
        NEEDS_ELEMENT,
    ),
    spelling("aten.one_hot(Tensor self, int num_classes=-1)", _one_hot, one(_one_hot_by_comparing)),
)
