"""Pooling and padding over ``[N, C, ...]`` (or ``[C, ...]``, without the batch axis)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir.dims import Dim, ceildiv, le, product
from regraft.ir.dtypes import DType
from regraft.ir.opdef import SAFE, CallSite, InferRule
from regraft.ir.ops.rules import (
    Shape,
    define,
    is_negative,
    one,
    per_element,
    per_result,
    refuse,
    require,
    require_rank,
    spelling,
    spread,
    window_size,
)
from regraft.ir.ops.views import take, view
from regraft.ir.types import TensorType

# -- windows -----------------------------------------------------------------------------------


def _pool(count: int) -> InferRule:
    """Windows over the last ``count`` axes; an empty stride is the kernel's size."""
    return lambda site: _pooled(site, require_rank(site, "self", count + 1, count + 2), count)


def _pooled(site: CallSite, x: TensorType, count: int) -> TensorType:
    kernel, padding = spread(site, "kernel_size", count), spread(site, "padding", count)
    stride = spread(site, "stride", count) if site.attr("stride") != () else kernel
    dilation = spread(site, "dilation", count) if "dilation" in site.attrs else (1,) * count
    ceil_mode = bool(site.attr("ceil_mode"))
    sizes = tuple(
        window_size(size, k, s, p, d, ceil_mode)
        for size, k, s, p, d in zip(x.shape[-count:], kernel, stride, padding, dilation, strict=True)
    )
    if any(is_negative(size - 1) for size in sizes):
        refuse(site, f"the window {list(kernel)} is larger than the padded input {x}")
    return x.with_shape((*x.shape[:-count], *sizes))


def _pool_with_indices(count: int) -> Any:
    def infer(site: CallSite) -> Sequence[TensorType]:
        found = _pooled(site, require_rank(site, "self", count + 1, count + 2), count)
        return found, found.with_dtype(DType.I64)

    return infer


def _pool_flops(count: int) -> Any:
    def flops(site: CallSite) -> Dim:
        x = site.type("self")
        return _pooled(site, x, count).numel * product(spread(site, "kernel_size", count))

    return flops


def _adaptive_pool(count: int) -> InferRule:
    def infer(site: CallSite) -> TensorType:
        x = require_rank(site, "self", count + 1, count + 2)
        return x.with_shape((*x.shape[:-count], *spread(site, "output_size", count)))

    return infer


def _adaptive_with_indices(count: int) -> Any:
    def infer(site: CallSite) -> Sequence[TensorType]:
        found = _adaptive_pool(count)(site)
        assert isinstance(found, TensorType)
        return found, found.with_dtype(DType.I64)

    return infer


def _pool_line(b: Any, op: Any) -> Any:
    """A line as an image of one row."""
    args = op.arguments()
    x = args.pop("self")
    image = view(b, x, (*x.tensor.shape[:-1], 1, x.tensor.shape[-1]))
    neutral = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    stride = args["stride"] or args["kernel_size"]
    windows = {**args, "stride": stride}
    for name in neutral.keys() & windows.keys():
        windows[name] = (neutral[name], *windows[name])
    found = b.call(op.name.replace("1d", "2d"), (image,), windows)
    return view(b, found, op.result.tensor.shape)


def _bins(b: Any, size: Dim, count: Dim) -> Any:
    """``i64[count, k]``: the elements of each of torch's adaptive bins, the last one repeated to fill up."""
    counter = b.aten.arange.start_step(0, count, 1, dtype=DType.I64)
    start = _ratio(b, counter, size, count)
    ahead = b.aten.add.Scalar(b.aten.mul.Tensor(b.aten.add.Scalar(counter, 1), _number(b, size)), -1)
    last = b.aten.div.Tensor_mode(ahead, _number(b, count), rounding_mode="floor")
    width = _widest_bin(size, count)
    inner = b.aten.arange.start_step(0, width, 1, dtype=DType.I64)
    return b.aten.minimum(b.aten.add.Tensor(view(b, start, (count, 1)), inner), view(b, last, (count, 1)))


def _ratio(b: Any, counter: Any, size: Dim, count: Dim) -> Any:
    scaled = b.aten.mul.Tensor(counter, _number(b, size))
    return b.aten.div.Tensor_mode(scaled, _number(b, count), rounding_mode="floor")


def _number(b: Any, size: Dim) -> Any:
    return b.aten.full((), size, dtype=DType.I64) if isinstance(size, int) else b.rg.dim_value(size)


def _widest_bin(size: Dim, count: Dim) -> Dim:
    if isinstance(size, int) and isinstance(count, int):
        return max((-(-(i + 1) * size // count) - i * size // count for i in range(count)), default=0)
    return ceildiv(size, count) + 1


def _adaptive_max(count: int) -> Any:
    """The bins of all axes gathered side by side, and the largest of each."""

    def rule(b: Any, op: Any) -> Sequence[Any]:
        x, result = op.operand("self"), op.results[0].tensor
        lead, sizes, counts = x.tensor.shape[:-count], x.tensor.shape[-count:], result.shape[-count:]
        tables = [_bins(b, size, number) for size, number in zip(sizes, counts, strict=True)]
        widths = tuple(table.tensor.shape[1] for table in tables)
        picks: list[Any] = []
        flat = _number(b, 0)
        for axis, table in enumerate(tables):
            shape: list[Dim] = [1] * (2 * count)
            shape[axis], shape[count + axis] = counts[axis], widths[axis]
            picks.append(view(b, table, tuple(shape)))
            flat = b.aten.add.Tensor(b.aten.mul.Tensor(flat, _number(b, sizes[axis])), picks[-1])
        windows = b.aten.index.Tensor(x, (*(None,) * len(lead), *picks))
        windows = view(b, windows, (*lead, *counts, product(widths)))
        values, places = b.aten.max.dim(windows, len(lead) + count)
        places = view(b, places, (*lead, *counts, 1))
        everywhere = view(b, flat, (*(1,) * len(lead), *counts, product(widths)))
        everywhere = b.aten.expand(everywhere, (*lead, *counts, product(widths)))
        found = b.aten.gather(everywhere, len(lead) + count, places)
        return values, view(b, found, result.shape)

    return rule


# -- padding -----------------------------------------------------------------------------------


def _pad(site: CallSite) -> TensorType:
    x, pads = site.type("self"), site.dims("pad")
    return _padded(site, x, pads)


def _padded(site: CallSite, x: TensorType, pads: Sequence[Dim]) -> TensorType:
    require(len(pads) % 2 == 0 and len(pads) <= 2 * x.rank, site, f"pad {pads} does not fit {x}")
    shape = list(x.shape)
    for i in range(len(pads) // 2):
        shape[-1 - i] = shape[-1 - i] + pads[2 * i] + pads[2 * i + 1]
        require(not is_negative(shape[-1 - i]), site, f"pad {pads} removes more than there is in {x}")
    return x.with_shape(tuple(shape))


def _reflected(count: int) -> InferRule:
    """A reflection repeats no edge, so it is shorter than its axis."""

    def infer(site: CallSite) -> TensorType:
        x, pads = require_rank(site, "self", count + 1, count + 2), site.dims("padding")
        require(len(pads) == 2 * count, site, f"pad {pads} does not fit {count} axes")
        for i, pad in enumerate(pads):
            if le(x.shape[-1 - i // 2], pad) is True:
                refuse(site, f"a reflection of {pad} is not shorter than its axis of {x}")
        return _padded(site, x, pads)

    return infer


def _replicated(count: int) -> InferRule:
    def infer(site: CallSite) -> TensorType:
        x, pads = require_rank(site, "self", count + 1, count + 2), site.dims("padding")
        require(len(pads) == 2 * count, site, f"pad {pads} does not fit {count} axes")
        return _padded(site, x, pads)

    return infer


_MODES = {"reflect": "reflection", "replicate": "replication"}


def _pad_mode(site: CallSite) -> TensorType:
    mode, x, pads = site.attr("mode"), site.type("self"), site.dims("pad")
    if mode == "constant":
        return _padded(site, x, pads)
    require(mode in (*_MODES, "circular"), site, f"mode {mode!r} is not one of torch's")
    count = len(pads) // 2
    require(count in (1, 2, 3) and x.rank in (count + 1, count + 2), site, f"pad {pads} does not fit {x}")
    return _padded(site, x, pads)


def _pad_by_mode(b: Any, op: Any) -> Any:
    x, pads, mode, value = op.operand("self"), op.attr("pad"), op.attr("mode"), op.attr("value")
    if mode == "constant":
        return b.aten.constant_pad_nd(x, pads, 0 if value is None else value)
    if mode == "circular":
        return _wrapped(b, x, pads)
    return b.call(f"aten.{_MODES[mode]}_pad{len(pads) // 2}d", (x, pads), {})


def _wrapped(b: Any, x: Any, pads: Shape) -> Any:
    """Each axis continued by its other end."""
    for i in range(len(pads) // 2):
        axis, low, high = x.tensor.rank - 1 - i, pads[2 * i], pads[2 * i + 1]
        size = x.tensor.shape[axis]
        parts = [take(b, x, axis, size - low, low)] if low != 0 else []
        parts.append(x)
        parts += [take(b, x, axis, 0, high)] if high != 0 else []
        x = b.aten.cat(tuple(parts), axis) if len(parts) > 1 else x
    return x


# -- the table ---------------------------------------------------------------------------------


def _window(count: int) -> str:
    return f"int[{count}] kernel_size, int[{count}] stride=[], int[{count}] padding={_default(count, 0)}"


def _default(count: int, value: int) -> Any:
    return [value] * count


def _max_pool(name: str, count: int) -> str:
    return (
        f"aten.{name}(Tensor self, {_window(count)}, int[{count}] dilation={_default(count, 1)}, "
        "bool ceil_mode=False)"
    )


def _avg_pool(count: int) -> str:
    divisor = ", int? divisor_override=None" if count > 1 else ""
    return (
        f"aten.avg_pool{count}d(Tensor self, {_window(count)}, bool ceil_mode=False, "
        f"bool count_include_pad=True{divisor})"
    )


def _adaptive(kind: str, count: int) -> str:
    name = "int" if kind == "max" else "SymInt"
    return f"aten.adaptive_{kind}_pool{count}d(Tensor self, {name}[{count}] output_size)"


OPS = (
    *(define(_max_pool(f"max_pool{n}d", n), _pool(n), SAFE, _pool_flops(n)) for n in (2, 3)),
    *(
        define(_max_pool(f"max_pool{n}d_with_indices", n), _pool_with_indices(n), SAFE, _pool_flops(n))
        for n in (2, 3)
    ),
    *(define(_avg_pool(n), _pool(n), SAFE, _pool_flops(n)) for n in (2, 3)),
    *(define(_adaptive("avg", n), _adaptive_pool(n), SAFE, per_element("self")) for n in (2, 3)),
    define("aten.constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0)", _pad, SAFE, per_result()),
    *(
        define(f"aten.{kind}_pad{n}d(Tensor self, SymInt[{2 * n}] padding)", rule(n), SAFE, per_result())
        for n in (1, 2, 3)
        for kind, rule in (("reflection", _reflected), ("replication", _replicated))
    ),
    spelling(_max_pool("max_pool1d", 1), _pool(1), one(_pool_line)),
    spelling(_avg_pool(1), _pool(1), one(_pool_line)),
    *(
        spelling(
            f"aten._adaptive_avg_pool{n}d(Tensor self, SymInt[{n}] output_size)",
            _adaptive_pool(n),
            one(lambda b, op: b.call(f"aten.{op.name[6:]}", tuple(op.arguments().values()), {})),
        )
        for n in (2, 3)
    ),
    *(spelling(_adaptive("max", n), _adaptive_with_indices(n), _adaptive_max(n)) for n in (2, 3)),
    spelling(
        "aten.pad(Tensor self, SymInt[] pad, str mode='constant', float? value=None)",
        _pad_mode,
        one(_pad_by_mode),
    ),
)
