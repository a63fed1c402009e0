"""Images at other sizes and at other places: interpolation, grid sampling, pixels to channels."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from regraft.ir.dims import Dim, floordiv, mod, power_of_two_ratio
from regraft.ir.dtypes import DType
from regraft.ir.opdef import SAFE, CallSite, InferRule, OpDef
from regraft.ir.ops.elementwise import cast
from regraft.ir.ops.rules import (
    Shape,
    define,
    is_negative,
    one,
    per_result,
    refuse,
    replaced,
    require,
    require_equal,
    require_float,
    require_rank,
    same_dtype,
    spelling,
)
from regraft.ir.ops.views import view
from regraft.ir.types import TensorType

_AXES = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}

# -- interpolation -----------------------------------------------------------------------------


def _resized(count: int) -> InferRule:
    """``[N, C, ...]`` at ``output_size``. The scales, when given, only place the samples."""

    def infer(site: CallSite) -> TensorType:
        x, sizes = require_rank(site, "self", count + 2), site.dims("output_size")
        require(len(sizes) == count, site, f"output_size {sizes} does not fit {count} axes")
        require(not any(is_negative(s - 1) for s in sizes), site, f"output_size {sizes} is not positive")
        return x.with_shape((*x.shape[:2], *sizes))

    return infer


def _rescaled(count: int) -> InferRule:
    def infer(site: CallSite) -> TensorType:
        x = require_rank(site, "input", count + 2)
        return x.with_shape((*x.shape[:2], *_output_size(site, x, count)))

    return infer


def _output_size(site: CallSite, x: TensorType, count: int) -> Shape:
    """``output_size``, or the sizes times ``scale_factors`` rounded down."""
    factors = site.attr("scale_factors")
    if site.attr("output_size") is not None:
        require(factors is None, site, "both output_size and scale_factors are given")
        return site.dims("output_size")
    require(factors is not None, site, "neither output_size nor scale_factors is given")
    require(len(factors) == count, site, f"scale_factors {factors} do not fit {count} axes")
    return tuple(_scaled(site, size, float(f)) for size, f in zip(x.shape[2:], factors, strict=True))


def _scaled(site: CallSite, size: Dim, factor: float) -> Dim:
    if isinstance(size, int):
        return math.floor(size * factor)
    exact = Fraction(factor)
    if exact.denominator > 1 << 16:
        refuse(site, f"the size {size} times {factor} depends on how floats are rounded")
    return floordiv(size * exact.numerator, exact.denominator)


def _with_sizes(count: int) -> Any:
    """The overload with ``output_size``."""

    def rule(b: Any, op: Any) -> Any:
        x, factors = op.operand("input"), op.attr("scale_factors")
        aligned = (op.attr("align_corners"),) if "align_corners" in op.attrs else ()
        scales = tuple(float(f) for f in factors) if factors is not None else (None,) * count
        name, sizes = op.name.removesuffix(".vec"), op.result.tensor.shape[2:]
        if name in _NEAREST:
            return _by_nearest(b, x, sizes, scales, exact="exact" in name)
        return b.call(name, (x, sizes, *aligned, *scales), {})

    return one(rule)


def _nearest(count: int) -> Any:
    def rule(b: Any, op: Any) -> Any:
        scales = tuple(op.attr(name) for name in _AXES[count])
        x, sizes, exact = op.operand("self"), op.result.tensor.shape[2:], "exact" in op.name
        is_normal = op.name == _PIXELS_REPEATED and scales == (None, None)
        make = _axis_by_axis if is_normal else _by_nearest
        return make(b, x, sizes, scales, exact)

    return one(rule)


def _by_nearest(b: Any, x: Any, sizes: Shape, scales: tuple[Any, ...], exact: bool) -> Any:
    if len(sizes) == 2 and _repeats(x.tensor.shape[2:], sizes, scales):
        return b.call(_PIXELS_REPEATED, (x, sizes), {})
    return _axis_by_axis(b, x, sizes, scales, exact)


def _repeats(old: Shape, new: Shape, scales: tuple[Any, ...]) -> bool:
    """Whether pixels are repeated, as often on each axis as the scales say, where they say it."""
    ratios = [power_of_two_ratio(b, a) for a, b in zip(old, new, strict=True)]
    fits = all(n is not None and scale in (None, n) for n, scale in zip(ratios, scales, strict=True))
    return fits and ratios != [1, 1]


def _axis_by_axis(b: Any, x: Any, sizes: Shape, scales: tuple[Any, ...], exact: bool) -> Any:
    """Each axis by itself: elements repeated where that is what torch's rounding comes to, else picked."""
    for i, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        axis, old = i + 2, x.tensor.shape[i + 2]
        # 1 / times is exact, and so are torch's products with it.
        times = power_of_two_ratio(size, old)
        if times == 1 and (scale is None or not exact):
            continue
        if times is not None and scale in (None, times):
            x = _repeated(b, x, axis, times)
        else:
            x = b.aten.index.Tensor(x, (*(None,) * axis, _nearest_places(b, old, size, scale, exact)))
    return x


def _repeated(b: Any, x: Any, axis: int, times: int) -> Any:
    shape = x.tensor.shape
    split = view(b, x, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
    wide = b.aten.expand(split, (*shape[: axis + 1], times, *shape[axis + 1 :]))
    return view(b, wide, replaced(shape, axis, shape[axis] * times))


def _nearest_places(b: Any, old: Dim, new: Dim, scale: float | None, exact: bool) -> Any:
    """torch's source index for each target index, computed in f32 as there."""
    counter = b.aten.arange.start_step(0, new, 1, dtype=DType.F32)
    if exact:
        counter = b.aten.add.Scalar(counter, 0.5)
    step = b.aten.full((), 1.0 / scale, dtype=DType.F32) if scale else b.aten.div.Tensor(
        _as_float(b, old), _as_float(b, new)
    )  # fmt: skip
    place = cast(b, b.aten.floor(b.aten.mul.Tensor(counter, step)), DType.I64)
    last = old - 1
    return b.aten.minimum(
        place, b.aten.full((), last, dtype=DType.I64) if isinstance(last, int) else b.rg.dim_value(last)
    )


def _as_float(b: Any, size: Dim) -> Any:
    if isinstance(size, int):
        return b.aten.full((), float(size), dtype=DType.F32)
    return cast(b, b.rg.dim_value(size), DType.F32)


# -- grids -------------------------------------------------------------------------------------


def _grid_sampler(site: CallSite) -> TensorType:
    """``input[N, C, H, W]`` at ``grid[N, H', W', 2]``."""
    x, grid = require_rank(site, "input", 4), require_rank(site, "grid", 4)
    require_float(site, "input")
    same_dtype(site, (x, grid))
    require_equal(site, x.shape[0], grid.shape[0], "the batch sizes of input and grid")
    require(grid.shape[3] == 2, site, f"the grid is {grid}, expected pairs")
    require(site.int("interpolation_mode") in (0, 1, 2), site, "the interpolation_mode is unknown")
    require(site.int("padding_mode") in (0, 1, 2), site, "the padding_mode is unknown")
    return x.with_shape((*x.shape[:2], *grid.shape[1:3]))


# -- pixels and channels -----------------------------------------------------------------------


def _shuffled(site: CallSite) -> TensorType:
    x, factor = site.type("self"), site.int("upscale_factor")
    require(x.rank >= 3 and factor > 0, site, f"{x} cannot be shuffled by {factor}")
    *lead, channels, height, width = x.shape
    require(mod(channels, factor * factor) == 0, site, f"{channels} channels do not divide by {factor}²")
    return x.with_shape((*lead, floordiv(channels, factor * factor), height * factor, width * factor))


def _shuffle(b: Any, op: Any) -> Any:
    x, factor = op.operand("self"), op.attr("upscale_factor")
    *lead, channels, height, width = x.tensor.shape
    n, inner = len(lead), floordiv(channels, factor * factor)
    split = view(b, x, (*lead, inner, factor, factor, height, width))
    order = (*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return view(b, b.aten.permute(split, order), op.result.tensor.shape)


def _unshuffled(site: CallSite) -> TensorType:
    x, factor = site.type("self"), site.int("downscale_factor")
    require(x.rank >= 3 and factor > 0, site, f"{x} cannot be unshuffled by {factor}")
    *lead, channels, height, width = x.shape
    fits = all(mod(size, factor) == 0 or not isinstance(size, int) for size in (height, width))
    require(fits, site, f"{height} x {width} does not divide by {factor}")
    return x.with_shape(
        (*lead, channels * factor * factor, floordiv(height, factor), floordiv(width, factor))
    )


def _unshuffle(b: Any, op: Any) -> Any:
    x, factor = op.operand("self"), op.attr("downscale_factor")
    *lead, channels, height, width = x.tensor.shape
    n = len(lead)
    split = view(b, x, (*lead, channels, floordiv(height, factor), factor, floordiv(width, factor), factor))
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return view(b, b.aten.permute(split, order), op.result.tensor.shape)


# -- the table ---------------------------------------------------------------------------------


def _scales(count: int) -> str:
    return ", ".join(f"float? {name}=None" for name in _AXES[count])


def _sized(name: str, count: int, aligned: bool) -> str:
    extra = ", bool align_corners" if aligned else ""
    return f"aten.{name}(Tensor self, SymInt[{count}] output_size{extra}, {_scales(count)})"


def _by_factor(name: str, aligned: bool) -> str:
    extra = ", bool align_corners" if aligned else ""
    return f"aten.{name}.vec(Tensor input, SymInt[]? output_size{extra}, float[]? scale_factors)"


_SMOOTH = {
    "upsample_linear1d": 1,
    "upsample_bilinear2d": 2,
    "upsample_trilinear3d": 3,
    "upsample_bicubic2d": 2,
}
_NEAREST = {
    f"aten.{name}{count}d": count
    for name in ("upsample_nearest", "_upsample_nearest_exact")
    for count in (1, 2, 3)
}

#: Stays where it repeats pixels, in two dimensions: convolutions in blocked layouts have a kernel for it.
_PIXELS_REPEATED = "aten.upsample_nearest2d"


def _interpolation() -> tuple[OpDef, ...]:
    smooth = [
        define(_sized(name, n, True), _resized(n), SAFE, per_result(6 if "linear" in name else 40))
        for name, n in _SMOOTH.items()
    ]
    nearest = [
        define(
            _sized(name[5:], n, False),
            _resized(n),
            SAFE,
            decompose=_nearest(n),
            canonical=name == _PIXELS_REPEATED,
        )
        for name, n in _NEAREST.items()
    ]
    named = [(name, n, True) for name, n in _SMOOTH.items()] + [
        (k[5:], n, False) for k, n in _NEAREST.items()
    ]
    by_factor = [spelling(_by_factor(name, a), _rescaled(n), _with_sizes(n)) for name, n, a in named]
    return (*smooth, *nearest, *by_factor)


OPS = (
    *_interpolation(),
    define(
        "aten.grid_sampler_2d(Tensor input, Tensor grid, int interpolation_mode, int padding_mode, "
        "bool align_corners)",
        _grid_sampler,
        SAFE,
        per_result(12),
    ),
    spelling("aten.pixel_shuffle(Tensor self, int upscale_factor)", _shuffled, one(_shuffle)),
    spelling("aten.pixel_unshuffle(Tensor self, int downscale_factor)", _unshuffled, one(_unshuffle)),
)
