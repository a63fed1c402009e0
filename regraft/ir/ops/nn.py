"""Layers: norms, attention, gated units. Convolutions and pooling are in ``conv.py``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir.dims import Dim, floordiv, mod, product
from regraft.ir.dtypes import DType
from regraft.ir.opdef import SAFE, CallSite
from regraft.ir.ops.conv import full_zeros
from regraft.ir.ops.rules import (
    axis_of,
    broadcast,
    define,
    one,
    per_element,
    refuse,
    replaced,
    require,
    require_equal,
    require_float,
    same_dtype,
    spelling,
)
from regraft.ir.ops.views import take
from regraft.ir.types import TensorType

# -- norms -------------------------------------------------------------------------------------


def _normalised(site: CallSite) -> TensorType:
    """The input's type, after checking ``normalized_shape`` and the parameters against it."""
    x = require_float(site, "input")
    shape = site.dims("normalized_shape")
    require(0 < len(shape) <= x.rank, site, f"normalized_shape {shape} does not fit {x}")
    for size, wanted in zip(x.shape[x.rank - len(shape) :], shape, strict=True):
        require_equal(site, size, wanted, "the input's and the normalized size")
    for name in ("weight", "bias"):
        parameter = _parameter(site, name)
        if parameter is not None and parameter.shape != shape:
            refuse(site, f"the {name} is {parameter}, expected the shape {list(shape)}")
    same_dtype(site, (x, _parameter(site, "weight"), _parameter(site, "bias")))
    return x


def _parameter(site: CallSite, name: str) -> TensorType | None:
    known = any(o.name == name for o in site.definition.operands)
    return site.optional(name) if known else None


def _native_layer_norm(site: CallSite) -> Sequence[TensorType]:
    x = _normalised(site)
    kept = x.rank - len(site.dims("normalized_shape"))
    moment = x.with_shape((*x.shape[:kept], *(1,) * (x.rank - kept)))
    return x, moment, moment


def _group_norm(site: CallSite) -> TensorType:
    x, groups = require_float(site, "input"), site.int("num_groups")
    require(x.rank >= 2, site, f"the input has rank {x.rank}, expected at least 2")
    require(mod(x.shape[1], groups) == 0, site, f"{groups} groups do not divide {x.shape[1]} channels")
    _require_channels(site, x)
    return x


def _require_channels(site: CallSite, x: TensorType) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        parameter = _parameter(site, name)
        if parameter is not None:
            require(parameter.rank == 1, site, f"the {name} has rank {parameter.rank}, expected 1")
            require_equal(site, parameter.shape[0], x.shape[1], f"the channels of input and {name}")
            same_dtype(site, (x, parameter))


def _batch_norm(site: CallSite) -> TensorType:
    x = require_float(site, "input")
    require(x.rank >= 2, site, f"the input has rank {x.rank}, expected at least 2")
    require(site.attrs.get("training") is not True, site, "regraft compiles models in eval mode")
    _require_channels(site, x)
    return x


def _instance_norm(site: CallSite) -> TensorType:
    x = require_float(site, "input")
    require(x.rank >= 2, site, f"the input has rank {x.rank}, expected at least 2")
    follows = any(site.optional(name) is not None for name in ("running_mean", "running_var"))
    # Its write to them is in no type.
    require(
        not (site.attrs.get("use_input_stats") is True and follows),
        site,
        "it writes to running statistics, which its export does not say: compile the model itself",
    )
    _require_channels(site, x)
    return x


def _native_batch_norm(site: CallSite) -> Sequence[TensorType]:
    x = _batch_norm(site)
    return x, x.with_shape((0,)), x.with_shape((0,))


def _layer_norm_parts(b: Any, op: Any) -> Sequence[Any]:
    """The norm and its mean and reciprocal deviation; what is not used goes away as dead code."""
    x, shape = op.operand("input"), op.attr("normalized_shape")
    axes = tuple(range(x.tensor.rank - len(shape), x.tensor.rank))
    result = b.aten.layer_norm(x, shape, op.optional("weight"), op.optional("bias"), op.attr("eps"))
    mean = b.aten.mean.dim(x, axes, True)
    variance = b.aten.var.correction(x, axes, correction=0, keepdim=True)
    return result, mean, b.aten.rsqrt(b.aten.add.Scalar(variance, op.attr("eps")))


def _batch_norm_parts(b: Any, op: Any) -> Sequence[Any]:
    args = op.arguments()
    result = b.aten.batch_norm(
        args["input"],
        args["weight"],
        args["bias"],
        args["running_mean"],
        args["running_var"],
        False,
        args["momentum"],
        args["eps"],
        True,
    )
    empty = full_zeros(b, (0,), op.results[1].tensor.dtype)
    return result, empty, empty


def _instance_norm_by_groups(b: Any, op: Any) -> Any:
    """Each channel of each element is a group of its own, unless the statistics are given."""
    args = op.arguments()
    x, weight, bias, eps = (args[name] for name in ("input", "weight", "bias", "eps"))
    if args["use_input_stats"]:
        return b.aten.group_norm(x, x.tensor.shape[1], weight, bias, eps)
    statistics = (args["running_mean"], args["running_var"])
    return b.aten.batch_norm(x, weight, bias, *statistics, False, args["momentum"], eps, True)


# -- attention ---------------------------------------------------------------------------------


def _attention(site: CallSite) -> TensorType:
    """``query[..., H, T, D]``, ``key[..., Hk, S, D]``, ``value[..., Hk, S, V]`` -> ``[..., H, T, V]``."""
    query, key, value = (require_float(site, name) for name in ("query", "key", "value"))
    dtype = same_dtype(site, (query, key, value))
    for name, found in (("query", query), ("key", key), ("value", value)):
        require(found.rank >= 2, site, f"the {name} has rank {found.rank}, expected at least 2")
    require_equal(site, query.shape[-1], key.shape[-1], "the head sizes of query and key")
    require_equal(site, key.shape[-2], value.shape[-2], "the lengths of key and value")
    require(site.attr("dropout_p") == 0, site, "regraft compiles models in eval mode")
    batch = _attention_batch(site, query, key, value)
    mask = site.optional("attn_mask")
    if mask is not None:
        require(
            mask.dtype in (DType.BOOL, dtype), site, f"the mask is {mask.dtype}, expected bool or {dtype}"
        )
        require(not site.attr("is_causal"), site, "is_causal with a mask")
        scores = (*batch, query.shape[-2], key.shape[-2])
        require(len(broadcast(site, [scores, mask.shape])) == len(scores), site, "the mask has too many axes")
    return TensorType(dtype, (*batch, query.shape[-2], value.shape[-1]), query.device)


def _attention_batch(
    site: CallSite, query: TensorType, key: TensorType, value: TensorType
) -> tuple[Dim, ...]:
    shapes = [t.shape[:-2] for t in (query, key, value)]
    if not site.attr("enable_gqa"):
        return broadcast(site, shapes)
    require(query.rank >= 3, site, "enable_gqa needs an axis of heads")
    heads = query.shape[-3]
    for name, found in (("key", key), ("value", value)):
        require(
            mod(heads, found.shape[-3]) == 0, site, f"the {name}'s heads do not divide the query's {heads}"
        )
    return (*broadcast(site, [shape[:-1] for shape in shapes]), heads)


def _attention_flops(site: CallSite) -> Dim:
    """Both products, over all pairs: what a mask skips is the back end's gain."""
    query, value = site.type("query"), site.type("value")
    pairs = product(_attention(site).shape[:-1]) * value.shape[-2]
    return 2 * pairs * (query.shape[-1] + value.shape[-1])


# -- gated linear unit -------------------------------------------------------------------------


def _glu(site: CallSite) -> TensorType:
    x = require_float(site, "self")
    axis = axis_of(site, site.attr("dim"), x.rank)
    require(mod(x.shape[axis], 2) == 0, site, f"the axis {axis} of {x} cannot be halved")
    return x.with_shape(replaced(x.shape, axis, floordiv(x.shape[axis], 2)))


def _glu_by_halves(b: Any, op: Any) -> Any:
    x = op.operand("self")
    axis = op.attr("dim") % x.tensor.rank
    half = op.result.tensor.shape[axis]
    return b.aten.mul.Tensor(take(b, x, axis, 0, half), b.aten.sigmoid(take(b, x, axis, half, half)))


# -- the table ---------------------------------------------------------------------------------

OPS = (
    define(
        "aten.layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, "
        "float eps=1e-05, bool cudnn_enable=True)",
        _normalised,
        SAFE,
        per_element("input", 8),
    ),
    define(
        "aten.rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None)",
        _normalised,
        SAFE,
        per_element("input", 5),
    ),
    define(
        "aten.group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, "
        "float eps=1e-05, bool cudnn_enabled=True)",
        _group_norm,
        SAFE,
        per_element("input", 8),
    ),
    define(
        "aten.batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, "
        "Tensor? running_var, bool training, float momentum, float eps, bool cudnn_enabled)",
        _batch_norm,
        SAFE,
        per_element("input", 4),
    ),
    define(
        "aten.scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, "
        "float dropout_p=0.0, bool is_causal=False, *, float? scale=None, bool enable_gqa=False)",
        _attention,
        SAFE,
        _attention_flops,
    ),
    spelling(
        "aten.native_layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, "
        "Tensor? bias, float eps)",
        _native_layer_norm,
        _layer_norm_parts,
    ),
    spelling(
        "aten._native_batch_norm_legit_no_training(Tensor input, Tensor? weight, Tensor? bias, "
        "Tensor running_mean, Tensor running_var, float momentum, float eps)",
        _native_batch_norm,
        _batch_norm_parts,
    ),
    spelling(
        "aten.instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, "
        "Tensor? running_var, bool use_input_stats, float momentum, float eps, bool cudnn_enabled)",
        _instance_norm,
        one(_instance_norm_by_groups),
    ),
    spelling("aten.glu(Tensor self, int dim=-1)", _glu, one(_glu_by_halves)),
)
