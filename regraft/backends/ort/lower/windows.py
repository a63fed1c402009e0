"""Convolutions, pooling, padding, interpolation and grid sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import dtype_of
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
    """A mean where the output is 1, else a product with a matrix of weights for each axis."""

    def emit(e: Emitter, op: Op) -> ir.Value:
        x, dtype = e.operand(op, "self"), dtype_of(op)
        rank = op.operand("self").tensor.rank
        sizes, counts = op.operand("self").tensor.shape[-count:], op.result.tensor.shape[-count:]
        if all(n == 1 for n in counts):
            return e.op("ReduceMean", x, e.ints(*range(-count, 0)), keepdims=1)
        for i, (size, number) in enumerate(zip(sizes, counts, strict=True)):
            axis = rank - count + i
            order = [j for j in range(rank) if j != axis] + [axis]
            back = [order.index(j) for j in range(rank)]
            last = axis == rank - 1
            moved = x if last else e.op("Transpose", x, perm=order)
            pooled = e.op("MatMul", moved, _bins(e, size, number, dtype))
            x = pooled if last else e.op("Transpose", pooled, perm=back)
        return x

    return Lowering(emit)


def _bins(e: Emitter, size: Dim, count: Dim, dtype: DType) -> ir.Value:
    """Column i averages torch's i-th bin of ``size`` elements."""
    if isinstance(size, int) and isinstance(count, int):
        matrix = np.zeros((size, count))
        for i in range(count):
            start, end = i * size // count, -(-(i + 1) * size // count)
            matrix[start:end, i] = 1 / (end - start)
        return e.cast_array(matrix, dtype)
    zero, one = e.scalar(0, DType.I64), e.scalar(1, DType.I64)
    length, number = e.size_scalar(size), e.size_scalar(count)
    element = e.op("Unsqueeze", e.op("Range", zero, length, one), e.ints(1))
    column = e.op("Range", zero, number, one)
    start = e.op("Div", e.op("Mul", column, length), number)
    ahead = e.op("Mul", e.op("Add", column, one), length)
    end = e.op("Div", e.op("Sub", e.op("Add", ahead, number), one), number)
    inside = e.op("And", e.op("GreaterOrEqual", element, start), e.op("Less", element, end))
    width = e.cast(e.op("Sub", end, start), DType.I64, dtype)
    return e.op("Div", e.cast(inside, DType.BOOL, dtype), width)


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
    return Lowering(lambda e, op: padded(e, op, op.attr("padding"), mode), ("Pad",), check=_pad_check)


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
