"""Ops that rearrange elements: views, permutes, expands, slices and their many spellings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir.dims import Dim, ceildiv, eq, floordiv, maximum, mod, product
from regraft.ir.dtypes import DType
from regraft.ir.opdef import CallSite, DecomposeRule
from regraft.ir.ops.rules import (
    VIEW,
    Shape,
    axes_of,
    axis_of,
    broadcast_dim,
    define,
    drop,
    is_negative,
    one,
    refuse,
    replaced,
    require,
    resolve_sizes,
    same_type,
    slice_bounds,
    spelling,
    without,
)
from regraft.ir.types import TensorType

# -- type rules --------------------------------------------------------------------------------


def _view(attr: str) -> Any:
    def infer(site: CallSite) -> TensorType:
        tensor = site.type("self")
        return tensor.with_shape(resolve_sizes(site, tensor.numel, site.dims(attr)))

    return infer


def _unsqueeze(site: CallSite) -> TensorType:
    tensor = site.type("self")
    axis = axis_of(site, site.attr("dim"), tensor.rank + 1)
    return tensor.with_shape((*tensor.shape[:axis], 1, *tensor.shape[axis:]))


def _squeeze(site: CallSite) -> TensorType:
    """Axes that are 1. A symbol is taken not to be: torch would have to guard on it."""
    tensor = site.type("self")
    axes = axes_of(site, "dim", tensor.rank) if "dim" in site.attrs else tuple(range(tensor.rank))
    if site.attrs.get("dim") == ():
        return tensor
    return tensor.with_shape(without(tensor.shape, [a for a in axes if tensor.rank and tensor.shape[a] == 1]))


def _flatten(site: CallSite) -> TensorType:
    tensor = site.type("self")
    if tensor.rank == 0:
        return tensor.with_shape((1,))
    first = axis_of(site, site.attr("start_dim"), tensor.rank)
    last = axis_of(site, site.attr("end_dim"), tensor.rank)
    require(first <= last, site, f"start_dim {first} comes after end_dim {last}")
    shape = tensor.shape
    return tensor.with_shape((*shape[:first], product(shape[first : last + 1]), *shape[last + 1 :]))


def _unflatten(site: CallSite) -> TensorType:
    tensor = site.type("self")
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    sizes = resolve_sizes(site, tensor.shape[axis], site.dims("sizes"))
    return tensor.with_shape((*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :]))


def _permute(site: CallSite) -> TensorType:
    tensor = site.type("self")
    dims = tuple(axis_of(site, d, tensor.rank) for d in site.ints("dims"))
    require(sorted(dims) == list(range(tensor.rank)), site, f"dims {dims} do not permute rank {tensor.rank}")
    return tensor.with_shape(tuple(tensor.shape[d] for d in dims))


def _swapped(site: CallSite) -> tuple[int, ...]:
    """The permutation of ``t`` and ``transpose.int``."""
    rank = site.type("self").rank
    if "dim0" not in site.attrs:
        require(rank <= 2, site, f"the operand has rank {rank}, expected at most 2")
        return tuple(reversed(range(rank)))
    order = list(range(rank))
    first, second = (axis_of(site, site.attr(name), rank) for name in ("dim0", "dim1"))
    if rank:
        order[first], order[second] = second, first
    return tuple(order)


def _transpose(site: CallSite) -> TensorType:
    tensor = site.type("self")
    return tensor.with_shape(tuple(tensor.shape[d] for d in _swapped(site)))


def expanded(site: CallSite, shape: Shape, sizes: Shape) -> Shape:
    """``shape`` expanded to ``sizes``, where -1 keeps an axis."""
    new = len(sizes) - len(shape)
    require(new >= 0, site, f"cannot expand rank {len(shape)} to rank {len(sizes)}")
    result = list(sizes[:new])
    require(all(not is_negative(s) for s in result), site, "a new axis cannot keep its size (-1)")
    for size, wanted in zip(shape, sizes[new:], strict=True):
        found = size if wanted == -1 else wanted if size == 1 else broadcast_dim(size, wanted)
        # An axis that is not 1 keeps its size: [3] does not expand to [1].
        if found is None or eq(found, size if wanted == -1 else wanted) is False:
            refuse(site, f"an axis of size {size} does not expand to {wanted}")
        result.append(found)
    return tuple(result)


def _expand(site: CallSite) -> TensorType:
    tensor = site.type("self")
    return tensor.with_shape(expanded(site, tensor.shape, site.dims("size")))


def _like_other(site: CallSite) -> TensorType:
    tensor, other = site.type("self"), site.type("other")
    require(eq(tensor.numel, other.numel) is not False, site, f"{tensor} and {other} differ in size")
    return tensor.with_shape(other.shape)


def _expand_as(site: CallSite) -> TensorType:
    tensor = site.type("self")
    return tensor.with_shape(expanded(site, tensor.shape, site.type("other").shape))


def _slice(site: CallSite) -> TensorType:
    tensor = site.type("self")
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    start, end, step = sliced(site)
    return tensor.with_shape(replaced(tensor.shape, axis, ceildiv(end - start, step)))


def sliced(site: CallSite) -> tuple[Dim, Dim, int]:
    """Resolved start, end and step of a ``slice.Tensor``."""
    tensor, step = site.type("self"), site.int("step")
    require(step > 0, site, f"the step is {step}, expected a positive number")
    require(tensor.rank > 0, site, "a tensor of rank 0 cannot be sliced")
    size = tensor.shape[axis_of(site, site.attr("dim"), tensor.rank)]
    bounds = [site.dim_attr(n) if site.attr(n) is not None else None for n in ("start", "end")]
    start, end = slice_bounds(size, *bounds)
    return start, end, step


def _narrow(site: CallSite) -> TensorType:
    tensor = site.type("self")
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    return tensor.with_shape(replaced(tensor.shape, axis, site.dim_attr("length")))


def _select(site: CallSite) -> TensorType:
    tensor = site.type("self")
    require(tensor.rank > 0, site, "a tensor of rank 0 has no elements to select")
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    selected(site)
    return tensor.with_shape(without(tensor.shape, (axis,)))


def selected(site: CallSite) -> Dim:
    """The resolved index of a ``select.int``."""
    tensor, index = site.type("self"), site.dim_attr("index")
    size = tensor.shape[axis_of(site, site.attr("dim"), tensor.rank)]
    index = index + size if is_negative(index) else index
    if is_negative(index) or is_negative(size - 1 - index):
        refuse(site, f"index {site.attr('index')} is out of range for size {size}")
    return index


def piece_sizes(site: CallSite) -> list[Dim]:
    """Sizes of the pieces that a split makes along its axis."""
    tensor = site.type("self")
    require(tensor.rank > 0, site, "a tensor of rank 0 cannot be split")
    size = tensor.shape[axis_of(site, site.attr("dim"), tensor.rank)]
    if "split_sizes" in site.attrs:
        sizes = list(site.dims("split_sizes"))
        require(eq(sum(sizes[1:], sizes[0]), size) is not False, site, f"the sizes do not add up to {size}")
        return sizes
    if "chunks" in site.attrs:
        chunks = site.int("chunks")
        require(chunks > 0, site, f"chunks is {chunks}, expected a positive number")
        if not isinstance(size, int) and mod(size, chunks) == 0:
            return [floordiv(size, chunks)] * chunks
        return _pieces(site, size, ceildiv(size, chunks) if size != 0 else 0)
    if "split_size" in site.attrs:
        return _pieces(site, size, site.dim_attr("split_size"))
    if not isinstance(size, int):
        refuse(site, f"the number of results depends on the size {size}")
    return [1] * size


def _pieces(site: CallSite, size: Dim, each: Dim) -> list[Dim]:
    if size == 0:
        return [0] * int(site.attrs.get("chunks", 1))  # pyright: ignore[reportArgumentType]
    require(not is_negative(each - 1), site, f"the size of a piece is {each}, expected a positive number")
    count = floordiv(size, each) if mod(size, each) == 0 else ceildiv(size, each)
    if not isinstance(count, int):
        refuse(site, f"the number of results depends on the size {size}")
    return [each] * (count - 1) + [size - each * (count - 1)]


def _split(site: CallSite) -> Sequence[TensorType]:
    tensor = site.type("self")
    sizes = piece_sizes(site)
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    return tuple(tensor.with_shape(replaced(tensor.shape, axis, s)) for s in sizes)


def _unbind(site: CallSite) -> Sequence[TensorType]:
    tensor = site.type("self")
    count = len(piece_sizes(site))
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    return (tensor.with_shape(without(tensor.shape, (axis,))),) * count


def _flip(site: CallSite) -> TensorType:
    axes_of(site, "dims", site.type("self").rank)
    return site.type("self")


def _repeat(site: CallSite) -> TensorType:
    tensor, repeats = site.type("self"), site.dims("repeats")
    require(len(repeats) >= tensor.rank, site, f"{len(repeats)} repeats for rank {tensor.rank}")
    shape = (1,) * (len(repeats) - tensor.rank) + tensor.shape
    return tensor.with_shape(tuple(d * r for d, r in zip(shape, repeats, strict=True)))


def _repeat_interleave(site: CallSite) -> TensorType:
    tensor, repeats = site.type("self"), site.dim_attr("repeats")
    if site.attr("dim") is None:
        return tensor.with_shape((tensor.numel * repeats,))
    axis = axis_of(site, site.attr("dim"), tensor.rank)
    return tensor.with_shape(replaced(tensor.shape, axis, tensor.shape[axis] * repeats))


# -- decompositions ----------------------------------------------------------------------------


def view(b: Any, value: Any, shape: Shape) -> Any:
    """``value`` in ``shape``; itself when it has that already."""
    return value if value.tensor.shape == shape else b.aten.view(value, shape)


def take(b: Any, value: Any, axis: int, start: Dim, size: Dim) -> Any:
    """``size`` elements of ``axis`` from ``start``."""
    return b.aten.slice.Tensor(value, axis, start, start + size, 1)


_as_view = one(lambda b, op: view(b, op.operand("self"), op.result.tensor.shape))
_as_permute = one(lambda b, op: b.aten.permute(op.operand("self"), _swapped(op.site)))
_as_expand = one(lambda b, op: b.aten.expand(op.operand("self"), op.result.tensor.shape))


def _axis(op: Any) -> int:
    return axis_of(op.site, op.attr("dim"), op.operand("self").tensor.rank)


def _select_by_slice(b: Any, op: Any) -> Any:
    index = selected(op.site)
    return view(b, take(b, op.operand("self"), _axis(op), index, 1), op.result.tensor.shape)


def _by_slices(b: Any, op: Any) -> Sequence[Any]:
    """Each piece a slice; ``unbind`` also drops the axis."""
    pieces: list[Any] = []
    start: Dim = 0
    for size, result in zip(piece_sizes(op.site), op.results, strict=True):
        piece = take(b, op.operand("self"), _axis(op), start, size)
        pieces.append(view(b, piece, result.tensor.shape))
        start = start + size
    return pieces


def _narrow_by_slice(b: Any, op: Any) -> Any:
    start, size = op.attr("start"), op.operand("self").tensor.shape[_axis(op)]
    start = start + size if is_negative(start) else start
    return take(b, op.operand("self"), _axis(op), start, op.attr("length"))


def _tile(b: Any, value: Any, repeats: Shape, inner: bool) -> Any:
    """``value`` with each axis repeated: whole copies, or (``inner``) each element."""
    shape = value.tensor.shape
    axes = [i for i, r in enumerate(repeats) if r != 1]
    split: list[Dim] = []
    wide: list[Dim] = []
    for i, size in enumerate(shape):
        extra = [(1, repeats[i])] if i in axes else []
        pairs = [(size, size), *extra] if inner else [*extra, (size, size)]
        split += [before for before, _ in pairs]
        wide += [after for _, after in pairs]
    grown = b.aten.expand(view(b, value, tuple(split)), tuple(wide)) if axes else value
    return view(b, grown, tuple(d * r for d, r in zip(shape, repeats, strict=True)))


def _repeat_by_expand(b: Any, op: Any) -> Any:
    x, repeats = op.operand("self"), op.site.dims("repeats")
    shape = (1,) * (len(repeats) - x.tensor.rank) + x.tensor.shape
    return _tile(b, view(b, x, shape), repeats, inner=False)


def _interleave_by_expand(b: Any, op: Any) -> Any:
    x = op.operand("self")
    axis = 0
    if op.attr("dim") is None:
        x = view(b, x, (x.tensor.numel,))
    else:
        axis = _axis(op)
    repeats = tuple(op.attr("repeats") if i == axis else 1 for i in range(x.tensor.rank))
    return _tile(b, x, repeats, inner=True)


def _roll(b: Any, op: Any) -> Any:
    x = op.operand("self")
    shifts, dims = op.site.dims("shifts"), op.site.ints("dims")
    if not dims:
        x, dims = view(b, x, (x.tensor.numel,)), (0,)
    for shift, dim in zip(shifts, dims, strict=True):
        axis = dim % x.tensor.rank
        size = x.tensor.shape[axis]
        # The last `shift` elements come first; an empty axis stays as it is.
        start = mod(-1 * shift, maximum(size, 1))
        tail, head = take(b, x, axis, start, size - start), take(b, x, axis, 0, start)
        x = b.aten.cat((tail, head), axis)
    return view(b, x, op.result.tensor.shape)


def _unfolded(site: CallSite) -> TensorType:
    """Windows of ``size`` elements every ``step`` along an axis, in a new last axis."""
    tensor, size, step = site.type("self"), site.int("size"), site.int("step")
    require(tensor.rank > 0, site, "a tensor of rank 0 cannot be unfolded")
    axis = axis_of(site, site.attr("dimension"), tensor.rank)
    require(size >= 0 and step > 0, site, f"size is {size} and step {step}")
    count = floordiv(tensor.shape[axis] - size, step) + 1
    require(
        not is_negative(count - 1), site, f"a window of {size} is larger than the axis {axis} of {tensor}"
    )
    return tensor.with_shape((*replaced(tensor.shape, axis, count), size))


def _windows(b: Any, op: Any) -> Any:
    x, size, step = op.operand("self"), op.attr("size"), op.attr("step")
    rank = x.tensor.rank
    axis = op.attr("dimension") % rank
    count = op.result.tensor.shape[axis]
    starts = b.aten.arange.start_step(0, count * step, step, dtype=DType.I64)
    inner = b.aten.arange.start_step(0, size, 1, dtype=DType.I64)
    places = b.aten.add.Tensor(view(b, starts, (count, 1)), inner)
    picked = b.aten.index.Tensor(x, (*(None,) * axis, places))
    order = (*range(axis + 1), *range(axis + 2, rank + 1), axis + 1)
    return picked if axis == rank - 1 else b.aten.permute(picked, order)


# -- the table ---------------------------------------------------------------------------------


def _viewing(schema: str, infer: Any, decompose: DecomposeRule) -> Any:
    return spelling(f"aten.{schema}", infer, decompose, VIEW)


OPS = (
    define("aten.view(Tensor self, SymInt[] size)", _view("size"), VIEW),
    define("aten.permute(Tensor self, int[] dims)", _permute, VIEW),
    define("aten.expand(Tensor self, SymInt[] size, *, bool implicit=False)", _expand, VIEW),
    define(
        "aten.slice.Tensor(Tensor self, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1)",
        _slice,
        VIEW,
    ),
    define("aten.flip(Tensor self, int[] dims)", _flip, VIEW),
    _viewing("_unsafe_view(Tensor self, SymInt[] size)", _view("size"), _as_view),
    _viewing("reshape(Tensor self, SymInt[] shape)", _view("shape"), _as_view),
    _viewing("unsqueeze(Tensor self, int dim)", _unsqueeze, _as_view),
    _viewing("squeeze(Tensor self)", _squeeze, _as_view),
    _viewing("squeeze.dim(Tensor self, int dim)", _squeeze, _as_view),
    _viewing("squeeze.dims(Tensor self, int[] dim)", _squeeze, _as_view),
    _viewing("flatten.using_ints(Tensor self, int start_dim=0, int end_dim=-1)", _flatten, _as_view),
    _viewing("unflatten.int(Tensor self, int dim, SymInt[] sizes)", _unflatten, _as_view),
    _viewing("view_as(Tensor self, Tensor other)", _like_other, _as_view),
    _viewing("reshape_as(Tensor self, Tensor other)", _like_other, _as_view),
    _viewing("t(Tensor self)", _transpose, _as_permute),
    _viewing("transpose.int(Tensor self, int dim0, int dim1)", _transpose, _as_permute),
    _viewing("expand_as(Tensor self, Tensor other)", _expand_as, _as_expand),
    _viewing("select.int(Tensor self, int dim, SymInt index)", _select, one(_select_by_slice)),
    _viewing("narrow(Tensor self, int dim, SymInt start, SymInt length)", _narrow, one(_narrow_by_slice)),
    _viewing("split.Tensor(Tensor self, SymInt split_size, int dim=0)", _split, _by_slices),
    _viewing("split_with_sizes(Tensor self, SymInt[] split_sizes, int dim=0)", _split, _by_slices),
    _viewing("unsafe_split.Tensor(Tensor self, SymInt split_size, int dim=0)", _split, _by_slices),
    _viewing("unfold(Tensor self, int dimension, int size, int step)", _unfolded, one(_windows)),
    _viewing("chunk(Tensor self, int chunks, int dim=0)", _split, _by_slices),
    _viewing("unbind.int(Tensor self, int dim=0)", _unbind, _by_slices),
    _viewing("repeat(Tensor self, SymInt[] repeats)", _repeat, one(_repeat_by_expand)),
    _viewing(
        "repeat_interleave.self_int(Tensor self, SymInt repeats, int? dim=None, *, SymInt? output_size=None)",
        _repeat_interleave,
        one(_interleave_by_expand),
    ),
    _viewing("roll(Tensor self, SymInt[1] shifts, int[1] dims=[])", same_type(), one(_roll)),
    spelling("aten.dropout(Tensor input, float p, bool train)", lambda site: _dropout(site), drop("input")),
    spelling(
        "aten._assert_tensor_metadata(Tensor a, SymInt[]? size=None, SymInt[]? stride=None, "
        "ScalarType? dtype=None)",
        lambda site: (),
        lambda b, op: (),
    ),
)


def _dropout(site: CallSite) -> TensorType:
    require(
        site.attr("train") is not True or site.attr("p") == 0, site, "regraft compiles models in eval mode"
    )
    return site.type("input")
