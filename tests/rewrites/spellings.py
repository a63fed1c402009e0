"""Other spellings of what the rewrites of linear algebra recognise, three and more for each.

Plain functions over weights that are constants; each names the rewrite that must fire at least once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


X = tensor(5, 16)
X3 = tensor(2, 5, 16)
DOWN, UP, SQUARE, WIDE = tensor(3, 16), tensor(12, 3), tensor(16, 16) / 4, tensor(32, 16) / 4
BACK, BIAS12, BIAS16, BIAS32 = tensor(16, 32) / 5, tensor(12), tensor(16), tensor(32)
IMAGE = tensor(2, 4, 7, 7)
K3, K1, K5 = tensor(4, 4, 3, 3) / 6, tensor(4, 4, 1, 1) / 2, tensor(4, 4, 5, 5) / 10
MEAN, VAR, CHANNEL = tensor(4) / 4, tensor(4).abs() + 0.5, tensor(4, seed=3)
TABLE, IDS = tensor(20, 8), torch.arange(15).view(3, 5) % 20
TO_16 = tensor(16, 8)
UP_16, UP_16_TOO, BLOCKS = tensor(16, 3), tensor(16, 3, seed=1), tensor(4, 4, 4)
ROW_KERNEL, ROW_POINT = tensor(5, 5, 3), tensor(6, 5, 1)


# -- MergedLinear ------------------------------------------------------------------------------


def low_rank_by_einsum(x: Tensor) -> Tensor:
    return torch.einsum("bi,ri,or->bo", x, DOWN, UP).relu()


def low_rank_by_matmul(x: Tensor) -> Tensor:
    return torch.tanh(torch.matmul(torch.matmul(x, DOWN.t()), UP.t()) + BIAS12)


def lora_with_the_scale_inside(x: Tensor) -> Tensor:
    return torch.relu(F.linear(x, SQUARE, BIAS16) + F.linear((x @ DOWN.T) * 0.5, UP_16))


def two_adapters_stacked(x: Tensor) -> Tensor:
    ups = torch.cat([UP_16, UP_16_TOO], dim=1)
    downs = torch.cat([DOWN, DOWN * 2])
    return torch.sigmoid(torch.addmm(F.linear(x, SQUARE), x @ downs.mT, ups.mT))


def block_diagonal_by_loop(x: Tensor) -> Tensor:
    joined = torch.stack([F.linear(x.view(-1, 4, 4)[:, i], BLOCKS[i]) for i in range(4)], dim=1)
    return torch.relu(F.linear(joined.flatten(1), SQUARE))


# -- ProductOrder ------------------------------------------------------------------------------

Q, K, V = tensor(2, 40, 4), tensor(2, 40, 4, seed=1), tensor(2, 40, 4, seed=2)


def kernel_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(q, k.mT), v)


def kernel_attention_by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bqk,bkd->bqd", torch.einsum("bqd,bkd->bqk", q, k), v)


def kernel_attention_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * 0.5) @ k.transpose(1, 2) @ v


# -- SharedProduct -----------------------------------------------------------------------------


def shared_projection_in_a_loop(x: Tensor) -> Tensor:
    total = x.new_zeros(5, 16)
    for expert in range(3):
        total += torch.relu(x + expert) @ SQUARE
    return total


def shared_projection_weighted(x: Tensor) -> Tensor:
    gate = torch.softmax(x[:, :2], -1)
    parts = [gate[:, i : i + 1] * F.linear(torch.tanh(x * (i + 1)), SQUARE) for i in range(2)]
    return torch.relu(parts[0] + parts[1])


def shared_projection_with_changes(x: Tensor) -> Tensor:
    a, b = torch.relu(x), torch.tanh(x)
    first = F.linear(a, SQUARE) + F.linear(F.linear(a, DOWN), UP_16)
    second = F.linear(F.linear(b, DOWN), UP_16_TOO) + F.linear(b, SQUARE)
    return torch.sigmoid(first * x[:, :1] + second * x[:, 1:2])


# -- SumOfOnes ---------------------------------------------------------------------------------


def row_sums_by_ones(x: Tensor) -> Tensor:
    return x @ x.new_ones(16, 3)


def column_sums_by_ones(x: Tensor) -> Tensor:
    return torch.ones(2, 5) @ x


def means_by_a_filled_matrix(x: Tensor) -> Tensor:
    return torch.matmul(x, torch.full((16, 16), 1 / 16))


# -- ScaledLayer -------------------------------------------------------------------------------


def layer_scale_first(x: Tensor) -> Tensor:
    return x + BIAS16 * F.linear(torch.relu(x), SQUARE, BIAS16)


def layer_scale_unsqueezed(x: Tensor) -> Tensor:
    return x + F.linear(torch.relu(x), SQUARE).mul(BIAS16[None, :])


def depth_factor(x: Tensor) -> Tensor:
    return torch.relu(F.linear(x, SQUARE) / 12**0.5)


def path_weight_of_a_vector(x: Tensor) -> Tensor:
    return torch.relu(F.linear(x, SQUARE)) + BIAS12[3] * F.linear(torch.tanh(x), SQUARE * 2)


def heads_scaled_after_the_split(x: Tensor) -> Tensor:
    heads = F.linear(x, SQUARE, BIAS16).view(2, 5, 4, 4).permute(0, 2, 1, 3)
    return torch.softmax(heads * 0.5, -1)


def channels_scaled(image: Tensor) -> Tensor:
    return torch.relu(F.conv2d(image, K3, padding=1) * CHANNEL.reshape(1, 4, 1, 1))


# -- ScaledInput, ShiftedInput -----------------------------------------------------------------


def features_scaled(x: Tensor) -> Tensor:
    return torch.relu(F.linear(BIAS16 * torch.tanh(x), WIDE))


def features_scaled_for_two(x: Tensor) -> Tensor:
    y = torch.tanh(x) * BIAS16
    return torch.relu(y @ WIDE.T) * torch.sigmoid(y @ (2 * WIDE).T)


def width_ratio(x: Tensor) -> Tensor:
    return torch.relu(F.linear(torch.tanh(x) / 4, WIDE, BIAS32))


def features_shifted(x: Tensor) -> Tensor:
    return torch.relu(F.linear(torch.tanh(x) + BIAS16, WIDE))


def features_shifted_by_minus(x: Tensor) -> Tensor:
    return torch.relu(F.linear(torch.tanh(x).add(-BIAS16), WIDE, BIAS32))


def positions_of_one_row(x: Tensor) -> Tensor:
    return torch.relu((torch.tanh(x) + BIAS16.view(1, 1, 16)) @ WIDE.T)


# -- TwinNorm ----------------------------------------------------------------------------------


def parallel_block(x: Tensor) -> Tensor:
    a = F.linear(F.layer_norm(x, (16,), BIAS16, SQUARE[0]), SQUARE)
    b = F.gelu(F.linear(F.layer_norm(x, (16,), SQUARE[1]), WIDE))
    return a + F.linear(b, BACK)


def parallel_block_of_rms(x: Tensor) -> Tensor:
    def norm(weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    return torch.tanh(F.linear(norm(BIAS16), SQUARE)) + F.silu(F.linear(norm(SQUARE[0]), SQUARE * 2))


def parallel_block_of_modules(x: Tensor) -> Tensor:
    a = F.linear(F.rms_norm(x, (16,), BIAS16, 1e-6), SQUARE)
    return torch.tanh(a) + F.silu(F.linear(F.rms_norm(x, (16,), SQUARE[0], 1e-6), SQUARE * 2))


def parallel_block_spelled_out(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    plain = centred / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
    return torch.relu(F.linear(plain * BIAS16 + SQUARE[0], SQUARE)) * F.linear(
        F.layer_norm(x, (16,), SQUARE[2]), SQUARE * 3
    )


# -- convolutions ------------------------------------------------------------------------------


def branches_summed(image: Tensor) -> Tensor:
    return torch.relu(sum((F.conv2d(image, K1), F.conv2d(image, K3, padding=1)), torch.tensor(0.0)))


def branches_same(image: Tensor) -> Tensor:
    return torch.relu(torch.conv2d(image, K5, padding="same").add(torch.conv2d(image, K3, padding="same")))


def branches_weighted(image: Tensor) -> Tensor:
    return torch.relu(0.3 * F.conv2d(image, K3, CHANNEL, padding=1) + 0.7 * F.conv2d(image, K5, padding=2))


def branches_normed(image: Tensor) -> Tensor:
    wide = F.batch_norm(F.conv2d(image, K3, padding=1, stride=2), MEAN, VAR, CHANNEL, MEAN)
    return torch.relu(wide + F.batch_norm(F.conv2d(image, K1, stride=2), MEAN, VAR))


def shifted_channels(image: Tensor) -> Tensor:
    return torch.relu(F.conv2d(image, K3) + CHANNEL.view(4, 1, 1))


def shifted_by_a_number(image: Tensor) -> Tensor:
    return torch.relu(F.conv2d(image, K3, CHANNEL) - 0.5)


def shifted_channels_first(image: Tensor) -> Tensor:
    return torch.relu(CHANNEL[None, :, None, None] + F.conv2d(image, K3, padding=1))


def residual_convolution(image: Tensor) -> Tensor:
    return torch.relu(image + F.conv2d(image, K3, padding=1))


def residual_of_a_norm(image: Tensor) -> Tensor:
    return torch.relu(F.batch_norm(image, MEAN, VAR, CHANNEL, MEAN) + F.conv2d(image, K3, padding=1))


def residual_depthwise(image: Tensor) -> Tensor:
    return torch.relu(F.conv2d(image, K3[:, :1], CHANNEL, padding=1, groups=4).add(image))


def pointwise_behind(image: Tensor) -> Tensor:
    return torch.relu(F.conv2d(F.conv2d(image, K3, CHANNEL), K1, MEAN))


def lora_of_a_convolution(image: Tensor) -> Tensor:
    low = F.conv2d(image, K3[:1], padding=1)
    return torch.relu(F.conv2d(image, K3, CHANNEL, padding=1) + 2.0 * F.conv2d(low, K1[:, :1]))


def pointwise_behind_one_dimension(x: Tensor) -> Tensor:
    return torch.relu(F.conv1d(F.conv1d(x, ROW_KERNEL, padding=1), ROW_POINT))


def norm_before(image: Tensor) -> Tensor:
    return torch.relu(F.conv2d(F.batch_norm(image, MEAN, VAR, CHANNEL, MEAN), K1))


def norm_before_without_affine(image: Tensor) -> Tensor:
    return torch.relu(F.conv2d(F.batch_norm(image, MEAN, VAR), K3, CHANNEL, stride=2))


def norm_before_one_dimension(x: Tensor) -> Tensor:
    return torch.relu(F.conv1d(F.batch_norm(x, BIAS16[:5] / 4, BIAS16[5:10].abs() + 1), ROW_POINT))


# -- feed-forward ------------------------------------------------------------------------------


def mlp_by_addmm(x: Tensor) -> Tensor:
    return torch.addmm(BIAS16, torch.relu(torch.addmm(BIAS32, x, WIDE.t())), BACK.t())


def mlp_with_tanh_gelu(x: Tensor) -> Tensor:
    h = x @ WIDE.T + BIAS32
    h = 0.5 * h * (1.0 + torch.tanh(0.7978845608 * (h + 0.044715 * h**3)))
    return h @ BACK.T


def mlp_with_swish(x: Tensor) -> Tensor:
    h = F.linear(x.flatten(0, 1), WIDE)
    return F.linear(h * h.sigmoid(), BACK, BIAS16).view(2, 5, 16)


MANY = tensor(600, 2)
NARROW_UP, NARROW_DOWN = tensor(32, 2), tensor(3, 32) / 5


def narrow_mlp(x: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, NARROW_UP, BIAS32)), NARROW_DOWN)


def narrow_mlp_of_images(x: Tensor) -> Tensor:
    return torch.tanh(torch.relu(x.view(20, 30, 2) @ NARROW_UP.T) @ NARROW_DOWN.T)


def narrow_mlp_gated(x: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, NARROW_UP)) * F.linear(x, NARROW_UP * 2), NARROW_DOWN)


# -- concatenations and embeddings -------------------------------------------------------------

STATE, ROWS = tensor(1, 6), tensor(5, 10)


def state_repeated(state: Tensor, rows: Tensor) -> Tensor:
    return torch.relu(F.linear(torch.cat([state.repeat(5, 1), rows], 1), WIDE))


def state_expanded_behind(state: Tensor, rows: Tensor) -> Tensor:
    return torch.relu(torch.hstack((rows, state.expand(5, -1))) @ WIDE.T)


def state_broadcast(state: Tensor, rows: Tensor) -> Tensor:
    return torch.relu(F.linear(torch.cat((torch.broadcast_to(state, (5, 6)), rows), dim=-1), WIDE, BIAS32))


def projected_embedding(ids: Tensor) -> Tensor:
    return torch.relu(F.linear(F.embedding(ids, TABLE), TO_16, BIAS16))


def projected_rows(ids: Tensor) -> Tensor:
    return torch.tanh(torch.embedding(TABLE, ids) @ TO_16.T)


def projected_flat_embedding(ids: Tensor) -> Tensor:
    return torch.relu(F.linear(F.embedding(ids, TABLE).view(-1, 8), TO_16)).view(3, 5, 16)


# -- changes that come with the call -----------------------------------------------------------

LEFT, RIGHT = tensor(32, 2), tensor(2, 16)


def adapter_of_the_caller(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.relu(F.linear(x, WIDE + left @ right, BIAS32))


def adapter_scaled(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.relu(F.linear(x, torch.mm(left * 2.0, right) + WIDE))


def adapter_transposed(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.relu(x @ (right.T @ left.T + WIDE.T))


@dataclass(frozen=True)
class Spelling:
    """``rewrite`` must fire on ``function(*inputs)``."""

    rewrite: str
    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]

    def __str__(self) -> str:
        return f"{self.rewrite}-{self.function.__name__}"


_QKV = (Q, K, V)
_TABLE: tuple[tuple[str, tuple[Tensor, ...], tuple[Callable[..., Any], ...]], ...] = (
    ("MergedLinear", (X,), (low_rank_by_einsum, low_rank_by_matmul, lora_with_the_scale_inside)),
    ("MergedLinear", (X,), (two_adapters_stacked, block_diagonal_by_loop)),
    ("ProductOrder", _QKV, (kernel_attention, kernel_attention_by_einsum, kernel_attention_scaled)),
    (
        "SharedProduct",
        (X,),
        (shared_projection_in_a_loop, shared_projection_weighted, shared_projection_with_changes),
    ),
    ("SumOfOnes", (X,), (row_sums_by_ones, column_sums_by_ones, means_by_a_filled_matrix)),
    ("ScaledLayer", (X,), (layer_scale_first, layer_scale_unsqueezed, depth_factor, path_weight_of_a_vector)),
    ("ScaledLayer", (X3,), (heads_scaled_after_the_split,)),
    ("ScaledLayer", (IMAGE,), (channels_scaled,)),
    ("ScaledInput", (X,), (features_scaled, features_scaled_for_two, width_ratio)),
    # One norm already, before it was recovered: what is left are two scales.
    ("ScaledInput", (X3,), (parallel_block_of_rms,)),
    ("ShiftedInput", (X3,), (features_shifted, features_shifted_by_minus, positions_of_one_row)),
    ("TwinNorm", (X3,), (parallel_block, parallel_block_of_modules, parallel_block_spelled_out)),
    ("ConvBranches", (IMAGE,), (branches_summed, branches_same, branches_weighted, branches_normed)),
    ("ConvBias", (IMAGE,), (shifted_channels, shifted_by_a_number, shifted_channels_first)),
    ("ConvIdentity", (IMAGE,), (residual_convolution, residual_of_a_norm, residual_depthwise)),
    ("ConvChain", (IMAGE,), (pointwise_behind, lora_of_a_convolution)),
    ("ConvChain", (X3,), (pointwise_behind_one_dimension,)),
    ("ConvOfBatchNorm", (IMAGE,), (norm_before, norm_before_without_affine)),
    ("ConvOfBatchNorm", (X3,), (norm_before_one_dimension,)),
    ("PlainFFN", (X,), (mlp_by_addmm, mlp_with_tanh_gelu)),
    ("PlainFFN", (X3,), (mlp_with_swish,)),
    ("StreamedFFN", (MANY,), (narrow_mlp, narrow_mlp_of_images, narrow_mlp_gated)),
    ("SplitConcatenation", (STATE, ROWS), (state_repeated, state_expanded_behind, state_broadcast)),
    ("MergedTable", (IDS,), (projected_embedding, projected_rows, projected_flat_embedding)),
    ("LowRankEpilogue", (X, LEFT, RIGHT), (adapter_of_the_caller, adapter_scaled, adapter_transposed)),
)

SPELLINGS = tuple(Spelling(name, function, inputs) for name, inputs, each in _TABLE for function in each)
