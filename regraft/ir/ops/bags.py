"""Bags of rows of a table, each summed up, averaged, or the largest of it taken: ``torch.nn.EmbeddingBag``.

torch's own op gives three more results, which its gradient needs and which differ from kernel to kernel.
``rg.embedding_bag`` is the one result that has a meaning.
"""

from __future__ import annotations

from typing import Any

from regraft.ir.dims import Dim, eq
from regraft.ir.dtypes import DType
from regraft.ir.opdef import CallSite
from regraft.ir.ops.elementwise import cast
from regraft.ir.ops.indexing import CHECKED, require_index
from regraft.ir.ops.rules import one, refuse, require, require_float, require_rank, same_dtype, spelling
from regraft.ir.ops.scatter import filled
from regraft.ir.ops.views import take, view
from regraft.ir.types import TensorType

#: In the order of torch's numbers for them.
BAG_MODES = ("sum", "mean", "max")


def _bags(site: CallSite) -> TensorType:
    """``weight[V, E]``, ``indices[n]``, ``offsets[B]`` -> ``[B, E]``.

    Bag i has the indices from ``offsets[i]`` to the next offset; the offsets begin with 0 and never decrease.
    With ``include_last_offset`` the last one is n, and begins no bag. ``scales[n]`` are factors of the rows
    of sums. Indices that are ``padding_idx`` are in no bag (-1: there are none). An empty bag is 0.
    """
    weight, indices = require_float(site, "weight"), require_rank(site, "indices", 1)
    offsets, scales, mode = require_rank(site, "offsets", 1), site.optional("scales"), site.attr("mode")
    require(weight.rank == 2, site, f"the weight has rank {weight.rank}, expected 2")
    require(mode in BAG_MODES, site, f"mode is {mode!r}, expected one of {', '.join(BAG_MODES)}")
    for index in (indices, offsets):
        require_index(site, index)
    if scales is not None:
        same_dtype(site, (weight, scales))
        require(mode == "sum", site, f"weights of samples with mode {mode!r}")
        if scales.rank != 1 or eq(scales.numel, indices.numel) is False:
            refuse(site, f"the weights of samples are {scales}, the indices {indices}")
    return weight.with_shape((_count(site.attr("include_last_offset"), offsets), weight.shape[1]))


def _count(include_last_offset: bool, offsets: TensorType) -> Dim:
    return offsets.shape[0] - 1 if include_last_offset else offsets.shape[0]


def _gather_and_reduce(b: Any, op: Any) -> Any:
    """One group for each offset; that of one which begins no bag is left out."""
    indices, offsets, mode = op.operand("indices"), op.operand("offsets"), op.attr("mode")
    dtype, (count, width) = op.result.tensor.dtype, op.result.tensor.shape
    length, groups = indices.tensor.shape[0], offsets.tensor.shape[0]
    _check_offsets(b, offsets, length if op.attr("include_last_offset") else None)
    group = _group_of_each(b, offsets, length)
    rows = b.aten.embedding(op.operand("weight"), indices)
    if op.optional("scales") is not None:
        rows = b.aten.mul.Tensor(rows, view(b, op.optional("scales"), (length, 1)))
    counted = None
    if op.attr("padding_idx") != -1:
        counted = b.aten.ne.Scalar(indices, op.attr("padding_idx"))
        ignored = filled(b, (), float("-inf") if mode == "max" else 0.0, dtype)
        rows = b.aten.where.self(view(b, counted, (length, 1)), rows, ignored)
    if mode == "max":
        lowest = filled(b, (groups, width), float("-inf"), dtype)
        places = b.aten.expand(view(b, group, (length, 1)), (length, width))
        reduced = b.aten.scatter_reduce.two(lowest, 0, places, rows, "amax")
    else:
        reduced = b.aten.index_put(filled(b, (groups, width), 0.0, dtype), (group,), rows, True)
    if mode != "sum":
        reduced = _by_size(b, reduced, _sizes(b, group, counted, groups), mode)
    return take(b, reduced, 0, 0, count) if op.attr("include_last_offset") else reduced


def _check_offsets(b: Any, offsets: Any, end: Dim | None) -> None:
    """``end`` is what the last one must be, where there is such a thing."""
    count = offsets.tensor.shape[0]
    if count == 0:
        return
    first, before = take(b, offsets, 0, 0, 1), take(b, offsets, 0, 0, count - 1)
    b.rg.check(b.aten.all(b.aten.eq.Scalar(first, 0)), "embedding_bag: the first offset is not 0")
    grow = b.aten.all(b.aten.ge.Tensor(take(b, offsets, 0, 1, count - 1), before))
    b.rg.check(grow, "embedding_bag: the offsets decrease")
    if end is not None:
        last = cast(b, take(b, offsets, 0, count - 1, 1), DType.I64)
        reached = (
            b.aten.eq.Scalar(last, end)
            if isinstance(end, int)
            else b.aten.eq.Tensor(last, b.rg.dim_value(end))
        )
        b.rg.check(b.aten.all(reached), "embedding_bag: the last offset is not the number of indices")


def _group_of_each(b: Any, offsets: Any, length: Dim) -> Any:
    """``i64[n]``: as many offsets are at or before place i as there are groups up to its own."""
    marks = filled(b, (length + 1,), 0, DType.I64)
    ones = filled(b, offsets.tensor.shape, 1, DType.I64)
    begun = b.aten.cumsum(b.aten.index_put(marks, (offsets,), ones, True), 0)
    return b.aten.add.Scalar(take(b, begun, 0, 0, length), -1)


def _sizes(b: Any, group: Any, counted: Any, groups: Dim) -> Any:
    """``i64[groups, 1]``: how many indices count in each group."""
    ones = filled(b, group.tensor.shape, 1, DType.I64) if counted is None else cast(b, counted, DType.I64)
    sizes = b.aten.index_put(filled(b, (groups,), 0, DType.I64), (group,), ones, True)
    return view(b, sizes, (groups, 1))


def _by_size(b: Any, reduced: Any, sizes: Any, mode: str) -> Any:
    dtype = reduced.tensor.dtype
    if mode == "mean":
        return b.aten.div.Tensor(reduced, cast(b, b.aten.clamp(sizes, min=1), dtype))
    return b.aten.where.self(b.aten.eq.Scalar(sizes, 0), filled(b, (), 0.0, dtype), reduced)


OPS = (
    spelling(
        "rg.embedding_bag(Tensor weight, Tensor indices, Tensor offsets, Tensor? scales=None, "
        "str mode='sum', bool include_last_offset=False, int padding_idx=-1)",
        _bags,
        one(_gather_and_reduce),
        CHECKED,
    ),
)
