"""Other spellings of what stands around layers: moves, sums, slices, factors before convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.rewrites.spellings import (
    BIAS16,
    BIAS32,
    CHANNEL,
    IMAGE,
    K1,
    K3,
    SQUARE,
    WIDE,
    X3,
    K,
    Q,
    Spelling,
    V,
    X,
    tensor,
)

ROW_WISE, ROW_WISE_TOO, ROW_BIAS = tensor(12, 16, 1) / 4, tensor(16, 12, 1) / 4, tensor(12)
DIVISOR = tensor(16, seed=9).abs() + 0.5
POINTS = CHANNEL.view(4, 1, 1)


# -- ChannelLinear -----------------------------------------------------------------------------


def channels_by_linear(image: Tensor) -> Tensor:
    y = F.conv2d(image, K3).relu().square()
    return F.linear(F.conv2d(y, K1).permute(0, 2, 3, 1), SQUARE[:5, :4]).permute(0, 3, 1, 2)


def channels_by_einsum(image: Tensor) -> Tensor:
    return torch.einsum("bchw,oc->bohw", F.conv2d(image, K3), SQUARE[:5, :4])


def channels_by_movedim(image: Tensor) -> Tensor:
    return (F.conv2d(image, K3).movedim(1, -1) @ SQUARE[:4, :5] + BIAS16[:5]).movedim(-1, 1)


# -- ConvOfScale and ConvOfShift ---------------------------------------------------------------


def channels_scaled_before(image: Tensor) -> Tensor:
    return F.conv2d(torch.sin(image) * POINTS, K3, padding=1)


def channels_scaled_by_einsum(image: Tensor) -> Tensor:
    return F.conv2d(torch.einsum("bchw,c->bchw", torch.sin(image), CHANNEL), K1)


def channels_divided_before(image: Tensor) -> Tensor:
    return F.conv2d(torch.sin(image).div(POINTS.abs() + 1), K1)


def mean_taken_off(image: Tensor) -> Tensor:
    return F.conv2d(image - POINTS, K3, CHANNEL)


def shifted_in_place(image: Tensor) -> Tensor:
    return F.conv2d(torch.sin(image).add_(POINTS[None]), K1)


def shifted_by_addcmul(image: Tensor) -> Tensor:
    return F.conv2d(torch.addcmul(POINTS, image, POINTS), K3)


# -- DivisionByConstant ------------------------------------------------------------------------


def divided_features(x: Tensor) -> Tensor:
    return F.linear(torch.sin(x) / DIVISOR, SQUARE)


def divided_result(x: Tensor) -> Tensor:
    return F.linear(x, SQUARE).div_(DIVISOR)


def divided_by_true_divide(x: Tensor) -> Tensor:
    return torch.true_divide(x.sin(), DIVISOR.sqrt()[None]) @ SQUARE


# -- LowRankGatedFFN ---------------------------------------------------------------------------

NARROW, NARROW_TOO, RAISED, LOWERED = tensor(2, 16), tensor(2, 16, seed=1), tensor(32, 2), tensor(2, 32)


def gated_slices(x: Tensor) -> Tensor:
    gate, up = F.linear(x[:, :2], RAISED), F.linear(x[:, 4:6], RAISED, BIAS32)
    return F.linear(F.gelu(gate, approximate="tanh") * up, LOWERED)


def gated_factors_packed(x: Tensor) -> Tensor:
    first, second = (x @ torch.cat([NARROW, NARROW_TOO]).T).split(2, dim=-1)
    return ((second @ RAISED.T) * torch.relu(torch.addmm(BIAS32, first, RAISED.T))) @ LOWERED.T


def gated_by_another(x: Tensor) -> Tensor:
    """What gates is no projection of the same value."""
    return F.linear(torch.sigmoid(F.linear(x[:, :1].exp(), RAISED[:, :1])).mul(x[:, 1:3] @ RAISED.T), LOWERED)


# -- MovedFull ---------------------------------------------------------------------------------


def ones_transposed(x: Tensor) -> Tensor:
    return x @ x.new_ones(3, 16).T


def ones_by_einsum(x: Tensor) -> Tensor:
    return torch.einsum("bnc,mc->bnm", x, torch.ones(3, 16))


def twos_in_a_batch(x: Tensor) -> Tensor:
    return x @ x.new_full((2, 3, 16), 2.0).mT


# -- MovedWithoutOnes --------------------------------------------------------------------------

LINE, VOLUME = tensor(2, 4, 9), tensor(2, 4, 3, 4, 5)
LINE_KERNEL, VOLUME_KERNEL = tensor(4, 4, 3) / 4, tensor(4, 4, 1, 2, 2) / 4


def channels_of_a_line_by_einsum(line: Tensor) -> Tensor:
    return torch.einsum("bcs,oc->bos", F.conv1d(line, LINE_KERNEL), SQUARE[:5, :4])


def channels_of_a_volume_by_einsum(volume: Tensor) -> Tensor:
    return torch.einsum("bcdhw,oc->bodhw", F.conv3d(volume, VOLUME_KERNEL), SQUARE[:5, :4])


def one_through_a_layer(x: Tensor) -> Tensor:
    return F.linear(x.unsqueeze(1), WIDE).permute(0, 3, 1, 2).squeeze(2)


# -- PointwiseLinear ---------------------------------------------------------------------------


def position_wise(x: Tensor) -> Tensor:
    hidden = F.gelu(F.conv1d(x.transpose(1, 2), ROW_WISE, ROW_BIAS))
    return F.conv1d(hidden, ROW_WISE_TOO).transpose(1, 2)


def position_wise_by_permute(x: Tensor) -> Tensor:
    return F.conv1d(x.permute(0, 2, 1).tanh(), ROW_WISE, padding="valid").relu().permute(0, 2, 1)


def position_wise_in_an_image(x: Tensor) -> Tensor:
    kernel = ROW_WISE[:, :4, :, None]
    return F.conv2d(x.unflatten(-1, (4, 4)).movedim(-1, 1), kernel).movedim(1, -1)


# -- SlicedLayer -------------------------------------------------------------------------------


def first_half_of_a_result(x: Tensor) -> Tensor:
    return F.linear(x, WIDE)[..., :16].relu()


def narrowed_result(x: Tensor) -> Tensor:
    return torch.tanh((x @ SQUARE + BIAS16).narrow(-1, 4, 8))


def every_other_output(x: Tensor) -> Tensor:
    return F.linear(x, SQUARE, BIAS16)[:, ::2].exp()


# -- SumOfProduct ------------------------------------------------------------------------------


def normalised_by_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.bmm(q.exp(), k.exp().mT)
    return torch.bmm(weights / weights.sum(2, keepdim=True), v)


def normalised_by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bnd,bmd->bnm", q.exp(), k.exp())
    return torch.einsum("bnm,bmd->bnd", weights / weights.sum(-1)[..., None], v)


def normalised_columns(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = q.exp() @ k.exp().transpose(1, 2)
    return (weights / weights.sum(dim=1, keepdim=True)) @ v


# -- SummedStack -------------------------------------------------------------------------------


def branches_stacked(x: Tensor) -> Tensor:
    return torch.stack([F.linear(x, SQUARE), torch.tanh(x)]).sum(0)


def branches_weighed(x: Tensor) -> Tensor:
    weights = x[..., :2].softmax(-1)
    return (torch.stack((x.sin(), x.cos()), dim=-2) * weights.unsqueeze(-1)).sum(dim=-2)


def branches_side_by_side(x: Tensor) -> Tensor:
    return torch.cat([x.sin().unsqueeze(2), x.cos().unsqueeze(2)], 2).sum(2, keepdim=True)


_TABLE: tuple[tuple[str, tuple[Tensor, ...], tuple[Callable[..., Any], ...]], ...] = (
    ("ChannelLinear", (IMAGE,), (channels_by_linear, channels_by_einsum, channels_by_movedim)),
    (
        "ConvOfScale",
        (IMAGE,),
        (channels_scaled_before, channels_scaled_by_einsum, channels_divided_before),
    ),
    ("ConvOfShift", (IMAGE,), (mean_taken_off, shifted_in_place, shifted_by_addcmul)),
    ("DivisionByConstant", (X,), (divided_features, divided_result, divided_by_true_divide)),
    ("LowRankGatedFFN", (X,), (gated_slices, gated_factors_packed, gated_by_another)),
    ("MovedFull", (X3,), (ones_transposed, ones_by_einsum, twos_in_a_batch)),
    ("MovedWithoutOnes", (LINE,), (channels_of_a_line_by_einsum,)),
    ("MovedWithoutOnes", (VOLUME,), (channels_of_a_volume_by_einsum,)),
    ("MovedWithoutOnes", (X3,), (one_through_a_layer,)),
    ("PointwiseLinear", (X3,), (position_wise, position_wise_by_permute, position_wise_in_an_image)),
    ("SlicedLayer", (X,), (first_half_of_a_result, narrowed_result, every_other_output)),
    ("SumOfProduct", (Q, K, V), (normalised_by_sums, normalised_by_einsum, normalised_columns)),
    ("SummedStack", (X3,), (branches_stacked, branches_weighed, branches_side_by_side)),
)

AROUND_LAYERS = tuple(Spelling(name, function, inputs) for name, inputs, each in _TABLE for function in each)
