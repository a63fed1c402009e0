"""Convolutions, pooling, padding, interpolation and grid sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import dtype_of, select
from regraft.ir import Dim, DType, Op
from regraft.ir import dims as algebra


def _spread(value: tuple[int, ...], count: int) -> list[int]:
    return list(value) * count if len(value) == 1 else list(value)


def _batched(e: Emitter, x: ir.Value, rank: int, full: int) -> ir.Value:
    """``x`` with a batch axis."""
    return x if rank == full else e.op("Unsqueeze", x, e.ints(0))


def _unbatched(e: Emitter, x: ir.Value, rank: int, full: int) -> ir.Value:
    return x if rank == full else e.op("Squeeze", x, e.ints(0))


# -- convolution -------------------------------------------------------------------------------


def _convolution(op_type: str) -> Lowering:
    def emit(e: Emitter, op: Op) -> ir.Value:
        rank, full = op.operand("input").tensor.rank, op.operand("weight").tensor.rank
        count = full - 2
        pads = _spread(op.attr("padding"), count)
        extra = {}
        if op_type == "ConvTranspose":
            extra["output_padding"] = _spread(op.attr("output_padding"), count)
        result = e.op(
            op_type,
            _batched(e, e.operand(op, "input"), rank, full),
            e.operand(op, "weight"),
            e.optional(op, "bias"),
            strides=_spread(op.attr("stride"), count),
            dilations=_spread(op.attr("dilation"), count),
            pads=[*pads, *pads],
            group=op.attr("groups"),
            **extra,
        )
        return _unbatched(e, result, rank, full)

    return Lowering(emit, (op_type,), check=_convolution_check)


def _convolution_check(op: Op) -> str | None:
    if "output_padding" not in op.attrs:
        return None
    count = op.operand("weight").tensor.rank - 2
    padding, stride = (_spread(op.attr(name), count) for name in ("output_padding", "stride"))
    if any(p >= s for p, s in zip(padding, stride, strict=True)):
        return "output_padding is not smaller than the stride"
    return None


# -- pooling -----------------------------------------------------------------------------------


def _pool_attrs(op: Op, count: int) -> dict[str, Any]:
    kernel, pads = _spread(op.attr("kernel_size"), count), _spread(op.attr("padding"), count)
    attrs = {
        "kernel_shape": kernel,
        "strides": _spread(op.attr("stride"), count) if op.attr("stride") else kernel,
        "pads": [*pads, *pads],
        "ceil_mode": int(op.attr("ceil_mode")),
    }
    if "dilation" in op.attrs:
        attrs["dilations"] = _spread(op.attr("dilation"), count)
    return attrs


def _max_pool(count: int) -> Lowering:
    def emit(e: Emitter, op: Op) -> ir.Value:
        rank, full = op.operand("self").tensor.rank, count + 2
        x = _batched(e, e.operand(op, "self"), rank, full)
        return _unbatched(e, e.op("MaxPool", x, **_pool_attrs(op, count)), rank, full)

    return Lowering(emit, ("MaxPool",))


def _max_pool_with_indices(count: int) -> Lowering:
    """ONNX's indices count on from image to image, torch's start anew."""

    def emit(e: Emitter, op: Op) -> list[ir.Value]:
        shape, full = op.operand("self").tensor.shape, count + 2
        x = _batched(e, e.operand(op, "self"), len(shape), full)
        values, indices = e.ops("MaxPool", 2, x, **_pool_attrs(op, count))
        indices = e.op("Mod", indices, e.size_scalar(algebra.product(shape[-count:])))
        return [_unbatched(e, v, len(shape), full) for v in (values, indices)]

    return Lowering(emit, ("MaxPool",))


def _average_pool(count: int) -> Lowering:
    def emit(e: Emitter, op: Op) -> ir.Value:
        rank, full = op.operand("self").tensor.rank, count + 2
        attrs, override = _pool_attrs(op, count), op.attr("divisor_override")
        whole = int(op.attr("count_include_pad") or override is not None)
        x = _batched(e, e.operand(op, "self"), rank, full)
        result = e.op("AveragePool", x, count_include_pad=whole, **attrs)
        if override is not None:
            area = int(np.prod(attrs["kernel_shape"]))
            result = e.op("Mul", result, e.scalar(area / override, dtype_of(op)))
        return _unbatched(e, result, rank, full)

    return Lowering(emit, ("AveragePool",), check=_average_check)


def _average_check(op: Op) -> str | None:
    # A divisor of one's own counts clipped windows whole; ONNX Runtime clips what ceil_mode adds.
    if op.attr("ceil_mode") and op.attr("divisor_override") is not None:
        return "divisor_override together with ceil_mode"
    return None


def _adaptive_pool(count: int) -> Lowering:
    """The mean of each bin, one axis after the other."""

    def emit(e: Emitter, op: Op) -> ir.Value:
        x, shape = e.operand(op, "self"), list(op.operand("self").tensor.shape)
        counts = op.result.tensor.shape[-count:]
        if all(n == 1 for n in counts):
            return e.op("ReduceMean", x, e.ints(*range(-count, 0)), keepdims=1)
        for axis, number in enumerate(counts, start=len(shape) - count):
            x = _means(e, x, shape, axis, number, dtype_of(op))
            shape[axis] = number
        return x

    return Lowering(emit)


def _means(e: Emitter, x: ir.Value, shape: Sequence[Dim], axis: int, count: Dim, dtype: DType) -> ir.Value:
    """The means of the ``count`` bins along ``axis``.

    Bins may overlap and differ in width: each is gathered by itself, and what fills it up is left out. (A
    product with a matrix of weights would carry a nan, as 0 * nan, into other bins.)
    """
    size = shape[axis]
    if algebra.eq(size, count) is True:
        return x
    if isinstance(size, int) and isinstance(count, int) and size % count == 0:
        split = (*shape[:axis], count, size // count, *shape[axis + 1 :])
        return e.op("ReduceMean", e.reshape(x, shape, split), e.ints(axis + 1), keepdims=0)
    bins = e.memoised(("adaptive bins", size, count), lambda: _bins(e, size, count))
    places, inside, widths = bins
    behind = e.ints(*range(2, 2 + len(shape) - axis - 1))
    if len(shape) - axis > 1:
        inside, widths = e.op("Unsqueeze", inside, behind), e.op("Unsqueeze", widths, behind)
    gathered = select(e, inside, e.op("Gather", x, places, axis=axis), e.scalar(0, dtype), dtype)
    total = e.op("ReduceSum", gathered, e.ints(axis + 1), keepdims=1)
    mean = e.op("Div", total, e.cast(widths, DType.I64, dtype))
    return e.op("Squeeze", mean, e.ints(axis + 1))


def _bins(e: Emitter, size: Dim, count: Dim) -> tuple[ir.Value, ir.Value, ir.Value]:
    """torch's bins of ``size`` elements, all as wide as the widest: ``i64[count, k]`` places, the last one of
    a bin again and again where it is narrower; ``bool[count, k]``, whether a place is the bin's; and
    ``i64[count, 1]`` widths.
    """
    if isinstance(size, int) and isinstance(count, int):
        index = np.arange(count)[:, None]
        first, final = index * size // count, ((index + 1) * size - 1) // count
        each = first + np.arange((final - first).max(initial=0) + 1)
        return e.array(np.minimum(each, final)), e.array(each <= final), e.array(final - first + 1)
    zero, one = e.scalar(0, DType.I64), e.scalar(1, DType.I64)
    length, number = e.size_scalar(size), e.size_scalar(count)
    bin_ = e.op("Unsqueeze", e.op("Range", zero, number, one), e.ints(1))
    start = e.op("Div", e.op("Mul", bin_, length), number)
    last = e.op("Div", e.op("Sub", e.op("Mul", e.op("Add", bin_, one), length), one), number)
    widest = e.size_scalar(algebra.ceildiv(size, count) + 1)
    places = e.op("Add", start, e.op("Range", zero, widest, one))
    inside = e.op("LessOrEqual", places, last)
    widths = e.op("Add", e.op("Sub", last, start), one)
    return e.op("Min", places, last), inside, widths


# -- padding -----------------------------------------------------------------------------------


def padded(e: Emitter, op: Op, pads: Sequence[Dim], mode: str, value: Any = None) -> ir.Value:
    """torch lists pads from the last axis, low end first; ONNX all low ends, then all high ends."""
    rank, dtype = op.operand("self").tensor.rank, dtype_of(op)
    low: list[Dim] = [0] * rank
    high: list[Dim] = [0] * rank
    for i in range(len(pads) // 2):
        low[rank - 1 - i], high[rank - 1 - i] = pads[2 * i], pads[2 * i + 1]
    wide = e.wide("Pad", dtype)
    x = e.cast(e.operand(op, "self"), dtype, wide)
    fill = None if value is None else e.scalar(value, wide)
    return e.cast(e.op("Pad", x, e.shape((*low, *high)), fill, mode=mode), wide, dtype)


def _pad(e: Emitter, op: Op) -> ir.Value:
    return padded(e, op, op.attr("pad"), "constant", op.attr("value"))


def _pad_mode(mode: str) -> Lowering:
    def emit(e: Emitter, op: Op) -> ir.Value:
        pads = op.attr("padding")
        grows = all(algebra.le(0, pad) is True for pad in pads)
        return padded(e, op, pads, mode) if grows else _continued(e, op, pads, mode)

    return Lowering(emit, ("Pad",), check=_pad_check)


def _continued(e: Emitter, op: Op, pads: Sequence[Dim], mode: str) -> ir.Value:
    """Each axis by the places of its elements: where an end is cut off, the other one may repeat of it what
    ONNX's Pad has no more.
    """
    x, shape = e.operand(op, "self"), op.operand("self").tensor.shape
    zero, one = e.scalar(0, DType.I64), e.scalar(1, DType.I64)
    for i in range(len(pads) // 2):
        axis, low, high = len(shape) - 1 - i, pads[2 * i], pads[2 * i + 1]
        count = e.op("Range", zero, e.size_scalar(shape[axis] + low + high), one)
        place, last = e.op("Sub", count, e.size_scalar(low)), e.size_scalar(shape[axis] - 1)
        if mode == "edge":
            place = e.op("Max", e.op("Min", place, last), zero)
        else:  # at both ends
            place = e.op("Sub", last, e.op("Abs", e.op("Sub", last, e.op("Abs", place))))
        x = e.op("Gather", x, place, axis=axis)
    return x


def _pad_check(op: Op) -> str | None:
    return "padding of an empty tensor" if 0 in op.operand("self").tensor.shape else None


# -- interpolation -----------------------------------------------------------------------------


def _resize(mode: str, *scales: str) -> Lowering:
    """torch places samples by the scales where they are given, else by the ratio of the sizes."""

    def emit(e: Emitter, op: Op) -> ir.Value:
        x, shape = e.operand(op, "self"), op.result.tensor.shape
        given, line = [op.attr(name) for name in scales], len(shape) == 3
        if line:  # ONNX Runtime interpolates images only
            x, shape, given = e.op("Unsqueeze", x, e.ints(2)), (*shape[:2], 1, shape[2]), [1.0, *given]
        aligned = op.attr("align_corners")
        placed = not aligned and all(s is not None for s in given)
        result = e.op(
            "Resize",
            x,
            None,
            e.cast_array(np.array([1.0, 1.0, *given]), DType.F32) if placed else None,
            None if placed else e.shape(shape),
            mode=mode,
            coordinate_transformation_mode="align_corners" if aligned else "half_pixel",
            cubic_coeff_a=-0.75,
        )
        return e.op("Squeeze", result, e.ints(2)) if line else result

    def check(op: Op) -> str | None:
        given = [op.attr(name) for name in scales]
        if not op.attr("align_corners") and len({s is None for s in given}) > 1:
            return "a scale for some axes only"
        return None

    return Lowering(emit, ("Resize",), check=check)


def _repeated_pixels(e: Emitter, op: Op) -> ir.Value:
    """By scales, which are constants: so the layout in blocks of channels takes it in."""
    shapes = (op.result.tensor.shape[2:], op.operand("self").tensor.shape[2:])
    scales = [1, 1, *(algebra.power_of_two_ratio(new, old) for new, old in zip(*shapes, strict=True))]
    return e.op(
        "Resize",
        e.operand(op, "self"),
        None,
        e.cast_array(np.array(scales), DType.F32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


# -- grids -------------------------------------------------------------------------------------

_SAMPLE_MODES = ("linear", "nearest", "cubic")
_BORDERS = ("zeros", "border", "reflection")


def _grid_sample(e: Emitter, op: Op) -> ir.Value:
    return e.op(
        "GridSample",
        e.operand(op, "input"),
        e.operand(op, "grid"),
        mode=_SAMPLE_MODES[op.attr("interpolation_mode")],
        padding_mode=_BORDERS[op.attr("padding_mode")],
        align_corners=int(op.attr("align_corners")),
    )


LOWERINGS: dict[str, Lowering] = {
    **{f"aten.conv{n}d": _convolution("Conv") for n in (1, 2, 3)},
    "aten.conv_transpose1d": _convolution("ConvTranspose"),
    "aten.conv_transpose2d.input": _convolution("ConvTranspose"),
    "aten.conv_transpose3d.input": _convolution("ConvTranspose"),
    **{f"aten.max_pool{n}d": _max_pool(n) for n in (2, 3)},
    **{f"aten.max_pool{n}d_with_indices": _max_pool_with_indices(n) for n in (2, 3)},
    **{f"aten.avg_pool{n}d": _average_pool(n) for n in (2, 3)},
    **{f"aten.adaptive_avg_pool{n}d": _adaptive_pool(n) for n in (2, 3)},
    "aten.constant_pad_nd": Lowering(_pad, ("Pad",)),
    **{f"aten.reflection_pad{n}d": _pad_mode("reflect") for n in (1, 2, 3)},
    **{f"aten.replication_pad{n}d": _pad_mode("edge") for n in (1, 2, 3)},
    "aten.upsample_linear1d": _resize("linear", "scales"),
    "aten.upsample_bilinear2d": _resize("linear", "scales_h", "scales_w"),
    "aten.upsample_nearest2d": Lowering(_repeated_pixels, ("Resize",)),
    "aten.upsample_trilinear3d": _resize("linear", "scales_d", "scales_h", "scales_w"),
    "aten.upsample_bicubic2d": _resize("cubic", "scales_h", "scales_w"),
    "aten.grid_sampler_2d": Lowering(_grid_sample, ("GridSample",)),
}
