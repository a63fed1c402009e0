"""Mistakes in the rewrites of what stands around layers: moves, sums, slices, factors."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.rewrites import spellings_around_layers as spelled
from tests.rewrites.mutants import Mutant
from tests.rewrites.spellings import IMAGE, X3, K, Q, V, X


def attention_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(q, k.mT) * 0.5, v)


AROUND_LAYERS = (
    Mutant(
        "ChannelLinear",
        "no bias",
        'm.x, kernel, m.optional("b"))',
        "m.x, kernel)",
        spelled.channels_by_movedim,
        (IMAGE,),
    ),
    Mutant(
        "ConvOfScale",
        "factor forgotten",
        "times_inputs(op, m.w, m.s)",
        "m.w",
        spelled.channels_scaled_before,
        (IMAGE,),
    ),
    Mutant(
        "ConvOfShift",
        "sign forgotten",
        'op.aten.neg(m.c) if moved.name == "aten.sub.Tensor" else m.c',
        "m.c",
        spelled.mean_taken_off,
        (IMAGE,),
    ),
    Mutant(
        "DivisionByConstant",
        "not inverted",
        "op.aten.reciprocal(m.divisor)",
        "m.divisor",
        spelled.divided_result,
        (X,),
    ),
    Mutant("LowRankGatedFFN", "x for y", "gate_input=m.y,", "gate_input=m.x,", spelled.gated_slices, (X,)),
    Mutant(
        "MovedFull",
        "always ones",
        'm.root.result.tensor.shape, m.attr("value"),',
        "m.root.result.tensor.shape, 1,",
        spelled.twos_in_a_batch,
        (X3,),
    ),
    Mutant(
        "MovedWithoutOnes",
        "not moved",
        'tuple(kept.index(axis) for axis in m.attr("dims") if axis in kept)',
        "tuple(range(len(kept)))",
        spelled.one_through_a_layer,
        (X3,),
    ),
    Mutant(
        "PointwiseLinear",
        "no bias",
        'op.aten.linear(value, matrix, m.optional("b"))',
        "op.aten.linear(value, matrix)",
        spelled.position_wise,
        (X3,),
    ),
    Mutant(
        "ProductOrder",
        "factor forgotten",
        "value = op.create(scale.name, (), arguments).result",
        "assert arguments",
        attention_scaled,
        (Q, K, V),
    ),
    Mutant(
        "SlicedLayer",
        "no bias",
        "None if bias is None else part(bias)",
        "None",
        spelled.narrowed_result,
        (X,),
    ),
    Mutant(
        "SumOfProduct",
        "mean for sum",
        "op.aten.sum.dim_IntList(m.b, (m.b",
        "op.aten.mean.dim(m.b, (m.b",
        spelled.normalised_by_sums,
        (Q, K, V),
    ),
    Mutant(
        "SummedStack",
        "first factor for all",
        "place, place + 1, 1)",
        "0, 1, 1)",
        spelled.branches_weighed,
        (X3,),
    ),
)
