"""Convolutions and pooling over ``[N, C, ...]`` (or ``[C, ...]``, without the batch axis)."""

from __future__ import annotations

from typing import Any

from regraft.ir.dims import Dim, product
from regraft.ir.opdef import SAFE, CallSite, CountRule, InferRule
from regraft.ir.ops.rules import (
    Shape,
    define,
    is_negative,
    one,
    per_result,
    refuse,
    require,
    require_equal,
    require_rank,
    result_types,
    same_dtype,
    spelling,
    spread,
    window_size,
)
from regraft.ir.types import TensorType

# -- convolution -------------------------------------------------------------------------------


def _convolution(count: int) -> InferRule:
    """``input[N, C, ...]``, ``weight[O, C / groups, ...]`` with ``count`` spatial axes."""

    def infer(site: CallSite) -> TensorType:
        x = require_rank(site, "input", count + 1, count + 2)
        require_rank(site, "weight", count + 2)
        return _convolved(site, x, count, [_padding(site, i, count) for i in range(count)])

    return infer


def _convolved(site: CallSite, x: TensorType, count: int, padding: list[Dim | None]) -> TensorType:
    weight, bias, groups = site.type("weight"), site.optional("bias"), site.int("groups")
    channels, spatial = x.shape[-count - 1], x.shape[-count:]
    require_equal(site, channels, weight.shape[1] * groups, "the channels of input and weight")
    if bias is not None:
        require(bias.shape == weight.shape[:1], site, f"the bias is {bias}, the weight {weight}")
    stride, dilation = spread(site, "stride", count), spread(site, "dilation", count)
    sizes = tuple(
        size if pad is None else window_size(size, kernel, step, pad, wide)
        for size, kernel, step, pad, wide in zip(
            spatial, weight.shape[2:], stride, padding, dilation, strict=True
        )
    )
    if any(is_negative(size) for size in sizes):
        refuse(site, f"the kernel {weight} is larger than the padded input {x}")
    dtype = same_dtype(site, (x, weight, bias))
    return TensorType(dtype, (*x.shape[: -count - 1], weight.shape[0], *sizes), x.device)


def _padding(site: CallSite, axis: int, count: int) -> Dim | None:
    """Padding of a spatial axis on either side; None when the output keeps the input's size."""
    padding = site.attr("padding")
    if padding == "valid":
        return 0
    if padding == "same":
        require(all(s == 1 for s in site.dims("stride")), site, "padding='same' with a stride")
        return None
    return spread(site, "padding", count)[axis]


def _any_convolution(site: CallSite) -> TensorType:
    x = site.type("input")
    count = site.type("weight").rank - 2
    if site.attr("transposed"):
        refuse(site, "transposed convolutions are not typed")
    require(count in (1, 2) and x.rank == count + 2, site, f"{count} spatial axes, expected 1 or 2")
    return _convolved(site, x, count, [*spread(site, "padding", count)])


def _convolution_flops(site: CallSite) -> Dim:
    """A multiply-add per output element, kernel element and input channel of the group."""
    (result,) = result_types(site)
    assert isinstance(result, TensorType)
    return 2 * result.numel * product(site.type("weight").shape[1:])


def _explicit_padding(b: Any, op: Any) -> Any:
    """``padding='same'`` or ``'valid'`` as numbers; an odd total is padded first, more on the right."""
    args = op.arguments()
    x, weight = args["input"], args["weight"]
    count = weight.tensor.rank - 2
    totals = [0] * count
    if args["padding"] == "same":
        dilation = spread(op.site, "dilation", count)
        totals = [d * (k - 1) for d, k in zip(dilation, weight.tensor.shape[2:], strict=True)]
    if any(total % 2 for total in totals):
        pads = [pad for total in reversed(totals) for pad in (total // 2, total - total // 2)]
        x, totals = b.aten.constant_pad_nd(x, tuple(pads), 0), [0] * count
    symmetric = tuple(total // 2 for total in totals)
    rest = (args["stride"], symmetric, args["dilation"], args["groups"])
    return b.call(f"aten.conv{count}d", (x, weight, args["bias"], *rest), {})


def _by_rank(b: Any, op: Any) -> Any:
    args = op.arguments()
    count = args["weight"].tensor.rank - 2
    rest = (args["stride"], args["padding"], args["dilation"], args["groups"])
    return b.call(f"aten.conv{count}d", (args["input"], args["weight"], args["bias"], *rest), {})


def full_zeros(b: Any, shape: Shape, dtype: Any) -> Any:
    return b.aten.full(shape, 0.0 if dtype.is_float else 0, dtype=dtype)


# -- pooling and padding -----------------------------------------------------------------------


def _pool(site: CallSite) -> TensorType:
    """Windows over the last two axes; an empty stride is the kernel's size."""
    x = require_rank(site, "self", 3, 4)
    kernel, padding = spread(site, "kernel_size", 2), spread(site, "padding", 2)
    stride = spread(site, "stride", 2) if site.attr("stride") != () else kernel
    dilation = spread(site, "dilation", 2) if "dilation" in site.attrs else (1, 1)
    ceil_mode = bool(site.attr("ceil_mode"))
    sizes = tuple(
        window_size(size, k, s, p, d, ceil_mode)
        for size, k, s, p, d in zip(x.shape[-2:], kernel, stride, padding, dilation, strict=True)
    )
    if any(is_negative(size - 1) for size in sizes):
        refuse(site, f"the window {list(kernel)} is larger than the padded input {x}")
    return x.with_shape((*x.shape[:-2], *sizes))


def _pool_flops(site: CallSite) -> Dim:
    return _pool(site).numel * product(spread(site, "kernel_size", 2))


def _adaptive_pool(site: CallSite) -> TensorType:
    x = require_rank(site, "self", 3, 4)
    return x.with_shape((*x.shape[:-2], *spread(site, "output_size", 2)))


def _adaptive_pool_flops(site: CallSite) -> Dim:
    return site.type("self").numel


def _pad(site: CallSite) -> TensorType:
    x, pads = site.type("self"), site.dims("pad")
    require(len(pads) % 2 == 0 and len(pads) <= 2 * x.rank, site, f"pad {pads} does not fit {x}")
    shape = list(x.shape)
    for i in range(len(pads) // 2):
        shape[-1 - i] = shape[-1 - i] + pads[2 * i] + pads[2 * i + 1]
        require(not is_negative(shape[-1 - i]), site, f"pad {pads} removes more than there is in {x}")
    return x.with_shape(tuple(shape))


def _pad_mode(site: CallSite) -> TensorType:
    require(site.attr("mode") == "constant", site, f"mode {site.attr('mode')!r} is not typed")
    return _pad(site)


def _constant_pad(b: Any, op: Any) -> Any:
    value = op.attr("value")
    return b.aten.constant_pad_nd(op.operand("self"), op.attr("pad"), 0 if value is None else value)


# -- the table ---------------------------------------------------------------------------------


def _conv(name: str, count: int, padding: str) -> str:
    return (
        f"aten.{name}(Tensor input, Tensor weight, Tensor? bias=None, SymInt[{count}] stride={[1] * count}, "
        f"{padding}, SymInt[{count}] dilation={[1] * count}, SymInt groups=1)"
    )


_FLOPS: CountRule = _convolution_flops
_WINDOW = "int[2] kernel_size, int[2] stride=[], int[2] padding=[0, 0]"

OPS = (
    define(_conv("conv1d", 1, "SymInt[1] padding=[0]"), _convolution(1), SAFE, _FLOPS),
    define(_conv("conv2d", 2, "SymInt[2] padding=[0, 0]"), _convolution(2), SAFE, _FLOPS),
    define(
        f"aten.max_pool2d(Tensor self, {_WINDOW}, int[2] dilation=[1, 1], bool ceil_mode=False)",
        _pool,
        SAFE,
        _pool_flops,
    ),
    define(
        f"aten.avg_pool2d(Tensor self, {_WINDOW}, bool ceil_mode=False, bool count_include_pad=True, "
        "int? divisor_override=None)",
        _pool,
        SAFE,
        _pool_flops,
    ),
    define(
        "aten.adaptive_avg_pool2d(Tensor self, SymInt[2] output_size)",
        _adaptive_pool,
        SAFE,
        _adaptive_pool_flops,
    ),
    define("aten.constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0)", _pad, SAFE, per_result()),
    spelling(_conv("conv1d.padding", 1, 'str padding="valid"'), _convolution(1), one(_explicit_padding)),
    spelling(_conv("conv2d.padding", 2, 'str padding="valid"'), _convolution(2), one(_explicit_padding)),
    spelling(
        "aten.convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
        "SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups)",
        _any_convolution,
        one(_by_rank),
    ),
    spelling(
        "aten._adaptive_avg_pool2d(Tensor self, SymInt[2] output_size)",
        _adaptive_pool,
        one(lambda b, op: b.aten.adaptive_avg_pool2d(op.operand("self"), op.attr("output_size"))),
    ),
    spelling(
        "aten.pad(Tensor self, SymInt[] pad, str mode='constant', float? value=None)",
        _pad_mode,
        one(_constant_pad),
    ),
)
