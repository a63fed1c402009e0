"""Ops whose values decide how long their results are. Each defines a symbol for that length.

``aten.nonzero`` and ``aten._unique2`` are the forms that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir.dims import Dim
from regraft.ir.dtypes import DType
from regraft.ir.opdef import SAFE, CallSite
from regraft.ir.ops.elementwise import cast
from regraft.ir.ops.indexing import CHECKED, require_index
from regraft.ir.ops.rules import (
    broadcast,
    define,
    one,
    per_element,
    refuse,
    require,
    require_rank,
    spelling,
)
from regraft.ir.ops.views import take, view
from regraft.ir.types import TensorType

# -- type rules --------------------------------------------------------------------------------


def _length(site: CallSite) -> Dim:
    """The symbol that the op defines."""
    if len(site.symbols) != 1:
        refuse(site, f"it defines {len(site.symbols)} symbols, expected one for the length of its result")
    return site.symbols[0]


def _nonzero(site: CallSite) -> TensorType:
    """``[u, rank]``: the place of each element that is not 0, in order."""
    tensor = site.type("self")
    return TensorType(DType.I64, (_length(site), tensor.rank), tensor.device)


def _masked_select(site: CallSite) -> TensorType:
    tensor, mask = site.type("self"), site.type("mask")
    require(mask.dtype == DType.BOOL, site, f"the mask is {mask.dtype}, expected bool")
    broadcast(site, [tensor.shape, mask.shape])
    return tensor.with_shape((_length(site),))


def _unique(site: CallSite) -> Sequence[TensorType]:
    """The distinct values in order, where each element went, and how many went there."""
    tensor, length = site.type("self"), _length(site)
    inverse = tensor.shape if site.attr("return_inverse") else (0,)
    counts = (length,) if site.attr("return_counts") else (0,)
    places = tensor.with_dtype(DType.I64)
    return tensor.with_shape((length,)), places.with_shape(inverse), places.with_shape(counts)


def _repeats(site: CallSite) -> TensorType:
    """``repeats[n]`` -> i, ``repeats[i]`` times, for each i."""
    tensor = require_rank(site, "repeats", 1)
    require_index(site, tensor)
    given = site.attr("output_size")
    return tensor.with_shape((site.dim_attr("output_size") if given is not None else _length(site),))


def _bincount(site: CallSite) -> TensorType:
    tensor, weights = require_rank(site, "self", 1), site.optional("weights")
    require_index(site, tensor)
    require(weights is None or weights.rank == 1, site, f"the weights are {weights}, expected a vector")
    # torch adds up all weights but those of f32 in f64.
    found = DType.F32 if weights is not None and weights.dtype == DType.F32 else DType.F64
    dtype = DType.I64 if weights is None else found
    return TensorType(dtype, (_length(site),), tensor.device)


# -- decompositions ----------------------------------------------------------------------------


def _select_by_places(b: Any, op: Any) -> Any:
    x, mask = op.operand("self"), op.operand("mask")
    shape = broadcast(op.site, [x.tensor.shape, mask.tensor.shape])
    whole = b.aten.expand(x, shape).tensor
    flat = [view(b, b.aten.expand(v, shape), (whole.numel,)) for v in (x, mask)]
    places = b.create("aten.nonzero", (flat[1],), symbols=op.symbols).result
    return b.aten.index.Tensor(flat[0], (view(b, places, op.result.tensor.shape),))


def _repeat_places(b: Any, op: Any) -> Any:
    """Position p belongs to the first i with more than p positions up to and with it."""
    (length,) = op.result.tensor.shape
    repeats = _not_negative(b, op.operand("repeats"), "repeat_interleave: a number of repeats is negative")
    ends = b.aten.cumsum(repeats, 0)
    if op.symbols:
        total = b.aten.sum.dim_IntList(repeats, (0,))
        b.create("rg.bind_dim", (total,), symbols=op.symbols)
    counter = b.aten.arange.start_step(0, length, 1, dtype=DType.I64)
    ended = b.aten.le.Tensor(ends, view(b, counter, (length, 1)))
    return cast(b, b.aten.sum.dim_IntList(ended, (1,)), op.result.tensor.dtype)


def _not_negative(b: Any, x: Any, message: str) -> Any:
    """``x`` in i64, checked. What is negative is 0 until the check, maybe at the end of the call, is read."""
    wide = cast(b, x, DType.I64)
    b.rg.check(b.aten.all(b.aten.ge.Scalar(wide, 0)), message)
    return b.aten.clamp(wide, min=0)


def _count_places(b: Any, op: Any) -> Any:
    x = _not_negative(b, op.operand("self"), "bincount: a number is negative")
    weights, least = op.optional("weights"), op.attr("minlength")
    length = b.aten.add.Scalar(b.aten.amax(x, (0,)), 1)
    if least != 0:
        least = b.aten.full((), least, dtype=DType.I64) if isinstance(least, int) else b.rg.dim_value(least)
        length = b.aten.maximum(length, least)
    b.create("rg.bind_dim", (length,), symbols=op.symbols)
    result = op.result.tensor
    zeros = b.aten.full(result.shape, 0.0 if result.dtype.is_float else 0, dtype=result.dtype)
    ones = (
        b.aten.full(x.tensor.shape, 1, dtype=DType.I64) if weights is None else cast(b, weights, result.dtype)
    )
    return b.aten.scatter_reduce.two(zeros, 0, x, ones, "sum")


def places_of(b: Any, places: Any) -> tuple[Any, ...]:
    """The columns of ``nonzero``'s result, an index for each axis."""
    length, rank = places.tensor.shape
    return tuple(view(b, take(b, places, 1, axis, 1), (length,)) for axis in range(rank))


# -- the table ---------------------------------------------------------------------------------

OPS = (
    define("aten.nonzero(Tensor self)", _nonzero, SAFE, per_element("self")),
    define(
        "aten._unique2(Tensor self, bool sorted=True, bool return_inverse=False, bool return_counts=False)",
        _unique,
        SAFE,
        per_element("self", 10),
    ),
    spelling("aten.masked_select(Tensor self, Tensor mask)", _masked_select, one(_select_by_places)),
    spelling(
        "aten.repeat_interleave.Tensor(Tensor repeats, *, SymInt? output_size=None)",
        _repeats,
        one(_repeat_places),
        CHECKED,
    ),
    spelling(
        "aten.bincount(Tensor self, Tensor? weights=None, SymInt minlength=0)",
        _bincount,
        one(_count_places),
        CHECKED,
    ),
)
