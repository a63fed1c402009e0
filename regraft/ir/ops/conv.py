"""Convolutions over ``[N, C, ...]`` (or ``[C, ...]``, without the batch axis)."""

from __future__ import annotations

from typing import Any

from regraft.ir.dims import Dim, product
from regraft.ir.opdef import SAFE, CallSite, CountRule, InferRule
from regraft.ir.ops.rules import (
    Shape,
    define,
    is_negative,
    one,
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


def _transposed(count: int) -> InferRule:
    """``input[N, C, ...]``, ``weight[C, O / groups, ...]`` with ``count`` spatial axes."""

    def infer(site: CallSite) -> TensorType:
        x = require_rank(site, "input", count + 1, count + 2)
        require_rank(site, "weight", count + 2)
        return _widened(site, x, count)

    return infer


def _widened(site: CallSite, x: TensorType, count: int) -> TensorType:
    weight, bias = site.type("weight"), site.optional("bias")
    channels = weight.shape[1] * site.int("groups")
    require_equal(site, x.shape[-count - 1], weight.shape[0], "the channels of input and weight")
    if bias is not None:
        require(bias.shape == (channels,), site, f"the bias is {bias}, expected {channels} values")
    names = ("stride", "padding", "dilation", "output_padding")
    sizes = tuple(
        (size - 1) * stride - 2 * pad + wide * (kernel - 1) + extra + 1
        for size, kernel, stride, pad, wide, extra in zip(
            x.shape[-count:], weight.shape[2:], *(spread(site, name, count) for name in names), strict=True
        )
    )
    if any(is_negative(size - 1) for size in sizes):
        refuse(site, f"the padding removes more than the convolution of {x} with {weight} makes")
    dtype = same_dtype(site, (x, weight, bias))
    return TensorType(dtype, (*x.shape[: -count - 1], channels, *sizes), x.device)


def _any_convolution(site: CallSite) -> TensorType:
    x = site.type("input")
    count = site.type("weight").rank - 2
    require(count in (1, 2, 3) and x.rank == count + 2, site, f"{count} spatial axes, expected 1 to 3")
    if site.attr("transposed"):
        return _widened(site, x, count)
    return _convolved(site, x, count, [*spread(site, "padding", count)])


def _convolution_flops(site: CallSite) -> Dim:
    """A multiply-add per output element, kernel element and input channel of the group."""
    (result,) = result_types(site)
    assert isinstance(result, TensorType)
    return 2 * result.numel * product(site.type("weight").shape[1:])


def _transposed_flops(site: CallSite) -> Dim:
    """A multiply-add per input element, kernel element and output channel of the group."""
    return 2 * site.type("input").numel * product(site.type("weight").shape[1:])


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
    tensors = (args["input"], args["weight"], args["bias"], args["stride"], args["padding"])
    if args["transposed"]:
        rest = (args["output_padding"], args["groups"], args["dilation"])
        return b.call(TRANSPOSED[count], (*tensors, *rest), {})
    return b.call(f"aten.conv{count}d", (*tensors, args["dilation"], args["groups"]), {})


def full_zeros(b: Any, shape: Shape, dtype: Any) -> Any:
    return b.aten.full(shape, 0.0 if dtype.is_float else 0, dtype=dtype)


# -- the table ---------------------------------------------------------------------------------

#: Number of spatial axes -> the transposed convolution.
TRANSPOSED = {
    1: "aten.conv_transpose1d",
    2: "aten.conv_transpose2d.input",
    3: "aten.conv_transpose3d.input",
}


def _conv(name: str, count: int, padding: str = "") -> str:
    padding = padding or f"SymInt[{count}] padding={[0] * count}"
    return (
        f"aten.{name}(Tensor input, Tensor weight, Tensor? bias=None, SymInt[{count}] stride={[1] * count}, "
        f"{padding}, SymInt[{count}] dilation={[1] * count}, SymInt groups=1)"
    )


def _conv_transpose(count: int) -> str:
    zeros, ones = [0] * count, [1] * count
    return (
        f"{TRANSPOSED[count]}(Tensor input, Tensor weight, Tensor? bias=None, SymInt[{count}] stride={ones}, "
        f"SymInt[{count}] padding={zeros}, SymInt[{count}] output_padding={zeros}, SymInt groups=1, "
        f"SymInt[{count}] dilation={ones})"
    )


_COUNTS = (1, 2, 3)
_FLOPS: CountRule = _convolution_flops

OPS = (
    *(define(_conv(f"conv{n}d", n), _convolution(n), SAFE, _FLOPS) for n in _COUNTS),
    *(define(_conv_transpose(n), _transposed(n), SAFE, _transposed_flops) for n in _COUNTS),
    *(
        spelling(
            _conv(f"conv{n}d.padding", n, 'str padding="valid"'), _convolution(n), one(_explicit_padding)
        )
        for n in _COUNTS
    ),
    spelling(
        "aten.convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, "
        "SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups)",
        _any_convolution,
        one(_by_rank),
    ),
)
