"""torch's own samples (``op_db``) of the ops in the table: which they are, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from regraft.ir import OPS

PACKETS = sorted({name.split(".")[1] for name in OPS if name.startswith("aten.")})
DTYPES = (torch.float32, torch.int64, torch.bool)

#: Ops that the samples of ops with other names call.
CALLED_BY: Mapping[str, str] = {
    "__and__": "__rand__",
    "__or__": "__ror__",
    "__xor__": "__rxor__",
    "_prelu_kernel": "nn.functional.prelu",
    "_to_copy": "to",
    "alias": "alias_copy",
    "index": "__getitem__",
    "_unique2": "unique",
    **{
        f"{how}_pad{n}d": f"nn.functional.pad.{mode}"
        for how, mode in (("reflection", "reflect"), ("replication", "replicate"))
        for n in (1, 2, 3)
    },
    **{
        f"upsample_{mode}{n}d": f"nn.functional.interpolate.{mode}"
        for mode, n in (("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3))
    },
    **{f"upsample_nearest{n}d": "nn.functional.interpolate.nearest" for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": "nn.functional.interpolate.nearest-exact" for n in (1, 2, 3)},
}

#: Ops without samples in op_db -> why they need none, or where else they are tried.
NOT_IN_OP_DB: Mapping[str, str] = {
    **dict.fromkeys(("__lshift__", "__rshift__"), "spellings of bitwise_left_shift and bitwise_right_shift"),
    **dict.fromkeys(("_softmax", "_log_softmax", "_unsafe_view"), "what softmax, log_softmax, view become"),
    **dict.fromkeys(("_adaptive_avg_pool2d", "_adaptive_avg_pool3d"), "what adaptive_avg_pool becomes"),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), "what max_pool becomes"),
    "_native_batch_norm_legit_no_training": "what batch_norm becomes",
    "convolution": "what conv1d, conv2d and conv3d become",
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "tests/ops/window_samples.py"),
    **dict.fromkeys(("copy", "zero", "detach", "lift_fresh_copy", "type_as"), "tests/ops/samples.py"),
    "_assert_tensor_metadata": "an assertion, which has no result",
}

#: Ops whose results are not to be compared -> why.
UNDEFINED: Mapping[str, str] = {
    **dict.fromkeys(
        ("empty", "empty_like", "empty_permuted", "new_empty"), "they give whatever was in memory"
    ),
    "dropout": "it draws random numbers",
}

#: Ops of which some samples are left to eager, or refused -> words of each reason.
LIMITS: Mapping[str, tuple[str, ...]] = {
    "avg_pool1d": ("no i64 kernel for AveragePool",),
    **{
        f"avg_pool{n}d": ("no i64 kernel for AveragePool", "divisor_override together with ceil_mode")
        for n in (2, 3)
    },
    **{f"conv{n}d": ("no i64 kernel for Conv",) for n in (1, 2, 3)},
    "conv_transpose1d": ("no i64 kernel for ConvTranspose",),
    **{
        f"conv_transpose{n}d": ("no i64 kernel for ConvTranspose", "output_padding is not smaller")
        for n in (2, 3)
    },
    **{f"max_pool{n}d": ("no i64 kernel for MaxPool",) for n in (2, 3)},
    **{
        f"{how}_pad{n}d": ("padding of an empty tensor",)
        for how in ("reflection", "replication")
        for n in (1, 2, 3)
    },
    "pad": ("padding of an empty tensor",),
    "_unique2": ("aten.unique_dim", "no bool kernel for Unique"),
    **{f"add{product}": (f"aten.add{product}: there is no lowering",) for product in ("bmm", "mv")},
    "baddbmm": ("aten.baddbmm: there is no lowering",),
    "arange": (
        "aten.arange.start_step: the op table does not cover",
        "aten.arange.start: there is no lowering",
    ),
    "batch_norm": ("aten._native_batch_norm_legit",),  # in training
    "copysign": ("aten.copysign.Scalar: there is no lowering",),
    "diff": ("aten.diff: there is no lowering",),  # of bools
    "embedding": ("aten.embedding_renorm",),  # max_norm writes to the weights
    "gather": ("the op table does not cover this use",),  # an index of no elements, of another rank
    "hardtanh": ("aten.hardtanh: there is no lowering",),  # of integers by fractions
    "index_add": ("aten.index_add: there is no lowering", "a sum of bools"),
    "index_copy": ("aten.index_copy: there is no lowering",),
    "index_fill": (
        "aten.index_fill.int_Scalar: there is no lowering",
        "aten.index_fill.int_Tensor: there is no lowering",
    ),
    "index_put": ("a sum of bools",),
    "instance_norm": ("writes to its running statistics",),  # called as an op of aten's
    "logsumexp": ("aten.logsumexp: there is no lowering",),  # of integers
    "masked_fill": ("aten.masked_fill.Scalar: there is no lowering",),
    # torch.export takes the mask for no larger than the tensor, and asserts it.
    "masked_select": ("sizes that values decide do not fit",),
    "median": ("aten.nanmedian.dim: there is no lowering",),
    "narrow": ("PendingUnbackedSymbolNotFound",),  # torch.export fails on a start that is a tensor
    "one_hot": ("the value of a tensor decides here",),  # as many classes as the values say
    "pow": ("computes powers of i64 in f64",),
    "scatter": (
        "aten.scatter.src: the op table does not cover",
        "a reduction of bools",
        "aten.scatter.reduce: there is no lowering",
        "aten.scatter.value: there is no lowering",
    ),
    "scatter_add": ("a reduction of bools",),
    "scatter_reduce": ("a reduction of bools", "a mean of integers"),
    "searchsorted": (
        "aten.searchsorted.Tensor: there is no lowering",
        "aten.searchsorted.Scalar: there is no lowering",
    ),
    "unfold": ("aten.unfold: there is no lowering",),  # of a number
}


@dataclass(frozen=True)
class Call:
    op: Callable[..., Any]
    sample: Any


def infos(packet: str) -> Iterator[Any]:
    """torch's descriptions of the ops called ``packet``, in all their variants."""
    # Importing it takes seconds, which a run that leaves this table out should not pay.
    from torch.testing._internal.common_methods_invocations import op_db

    for info in op_db:
        if packet in CALLED_BY:
            found = CALLED_BY[packet] in (info.name, f"{info.name}.{info.variant_test_name}")
        else:
            names = {info.aten_name, info.name.rpartition(".")[2], *(alias.name for alias in info.aliases)}
            found = packet in names and not info.name.startswith("sparse.")
        if found and not set(DTYPES).isdisjoint(info.supported_dtypes("cpu")):
            yield info


def calls_of(packet: str, most: int) -> list[Call]:
    """Samples of ``packet``: for each type at most ``most``, spread evenly over those that torch has."""
    from torch.testing._internal.common_utils import set_rng_seed

    calls: list[Call] = []
    for dtype in DTYPES:
        set_rng_seed(0)
        found = [
            Call(info.op, sample)
            for info in infos(packet)
            if dtype in info.supported_dtypes("cpu")
            for sample in info.sample_inputs("cpu", dtype, requires_grad=False)
            if _defined(packet, dtype, sample)
        ]
        taken = min(most, len(found))
        calls += [_within_range(packet, found[i * len(found) // taken]) for i in range(taken)]
    return calls


def _defined(packet: str, dtype: torch.dtype, sample: Any) -> bool:
    """Whether torch says what the sample's result is."""
    if packet == "scaled_dot_product_attention":
        return not sample.kwargs.get("dropout_p")
    if packet in ("sort", "kthvalue", "topk") and dtype != torch.float32:  # which of equal elements it finds
        return bool(sample.kwargs.get("stable"))
    return True


def _within_range(packet: str, call: Call) -> Call:
    """Not below -7: at -8 ONNX Runtime's kernel of the logistic function is off by more than 1e-4 of it."""
    if packet in ("sigmoid", "silu") and call.sample.input.dtype != torch.bool:
        call.sample.input = call.sample.input.clamp(min=-7)
    return call
