"""Models that a shipped rewrite almost applies to. In each, `# <-` marks the line that is to blame."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import regraft

Model = Callable[..., Any]


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).to(dtype)


X = tensor(2, 4, 16)
HEADS = tensor(2, 3, 5, 8)
WEIGHT, SQUARE = tensor(16), tensor(16, 16)


def layer_norm_over_another_axis(x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)  # <-
    variance = x.var(1, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def layer_norm_unbiased(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = x.var(-1, keepdim=True)  # <-
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def layer_norm_of_another_mean(x: Tensor) -> Tensor:
    mean = x.relu().mean(-1, keepdim=True)  # <-
    variance = x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5)


def layer_norm_weight_per_row(x: Tensor, weight: Tensor) -> Tensor:
    return functional.layer_norm(x, (16,)) * weight  # <-


def layer_norm_bias_per_row(x: Tensor, bias: Tensor) -> Tensor:
    normal = functional.layer_norm(x, (16,), WEIGHT)
    return normal + bias  # <-


def rms_norm_eps_outside(x: Tensor) -> Tensor:
    square = x.pow(2).mean(-1, keepdim=True)
    return x * (torch.rsqrt(square) + 1e-6)  # <-


def rms_norm_eps_outside_the_root(x: Tensor) -> Tensor:
    square = x.pow(2).mean(-1, keepdim=True)  # <-
    return x / torch.sqrt(square)


def rms_norm_over_another_axis(x: Tensor) -> Tensor:
    square = x.pow(2).mean(1, keepdim=True)  # <-
    return x * torch.rsqrt(square + 1e-6)


def rms_norm_of_cubes(x: Tensor) -> Tensor:
    cube = x.pow(3)  # <-
    return x * torch.rsqrt(cube.mean(-1, keepdim=True) + 1e-6)


def rms_norm_of_another_value(x: Tensor, y: Tensor) -> Tensor:
    square = y.pow(2)  # <-
    return x * torch.rsqrt(square.mean(-1, keepdim=True) + 1e-6)


def rms_norm_scale_returned(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)  # <-
    return x * scale, scale


def rms_norm_weight_per_row(x: Tensor, weight: Tensor) -> Tensor:
    normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    return normal * weight  # <-


def gelu_of_another_root(x: Tensor) -> Tensor:
    gate = torch.erf(x / 1.4142)  # <-
    return 0.5 * x * (1 + gate)


def gelu_of_another_half(x: Tensor) -> Tensor:
    half = 0.51 * x  # <-
    return half * (1 + torch.erf(x / math.sqrt(2)))


def gelu_of_another_one(x: Tensor) -> Tensor:
    gate = torch.erf(x / math.sqrt(2)) + 1.5  # <-
    return x * 0.5 * gate


def gelu_tanh_of_another_cubic(x: Tensor) -> Tensor:
    cube = 0.0447 * x.pow(3)  # <-
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + cube)))


def gelu_tanh_of_another_root(x: Tensor) -> Tensor:
    inner = 0.8 * (x + 0.044715 * x.pow(3))  # <-
    return 0.5 * x * (1 + torch.tanh(inner))


def gelu_tanh_of_a_square(x: Tensor) -> Tensor:
    square = x.pow(2)  # <-
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * square)))


def quick_gelu(x: Tensor) -> Tensor:
    scaled = 1.702 * x  # <-
    return x * torch.sigmoid(scaled)


def silu_gate_returned(x: Tensor) -> tuple[Tensor, Tensor]:
    gate = torch.sigmoid(x)  # <-
    return x * gate, gate


def silu_of_another_one(x: Tensor) -> Tensor:
    below = 2 + torch.exp(-x)  # <-
    return x / below


def rotary_of_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., :4], x[..., 4:]
    even = second[..., ::1].flip(-1)  # <-
    return x * cos + torch.cat((-even, first), -1) * sin


def rotary_unequal(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., :3], x[..., 3:]  # <-
    return x * cos + torch.cat((-second, first), -1) * sin


def rotary_negated_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., :4], x[..., 4:]  # <-
    return x * cos + torch.cat((second, -first), -1) * sin


def attention_scaled_after_the_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) + mask  # <-
    return torch.softmax(scores * 0.35, -1) @ v


def attention_over_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2)) * 0.35
    weights = torch.softmax(scores, -2)  # <-
    return weights @ v


def attention_masked_a_little(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2)
    scores = scores.masked_fill(hidden, -1e4)  # <-
    return torch.softmax(scores, -1) @ v


def attention_of_a_hidden_row(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2)
    scores = scores.masked_fill(hidden, -math.inf)  # <-
    return torch.softmax(scores, -1) @ v


def attention_weights_returned(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores = (q @ k.transpose(-1, -2)) * 0.35
    weights = torch.softmax(scores, -1)  # <-
    return weights @ v, weights


def mask_nearly_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(q.shape[-2])
    seen = i[None, :] <= i[:, None] + 1  # <-
    return functional.scaled_dot_product_attention(q, k, v, seen)


def mask_of_the_caller(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, seen)  # <-


def mask_added_a_little(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(q.shape[-2])
    seen = i[None, :] <= i[:, None]
    mask = torch.where(seen, torch.full((), 0.0), torch.full((), -1e4))  # <-
    return functional.scaled_dot_product_attention(q, k, v, mask)


def mask_without_a_key(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(q.shape[-2])
    seen = i[None, :] < i[:, None]  # <-
    mask = torch.where(seen, torch.full((), 0.0), torch.full((), torch.finfo(torch.float32).min))
    return functional.scaled_dot_product_attention(q, k, v, mask)


def heads_repeated_as_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys = k[:, None].expand(2, 2, 3, 5, 8)  # <-
    values = v[:, None].expand(2, 2, 3, 5, 8)
    return functional.scaled_dot_product_attention(q, keys.reshape(2, 6, 5, 8), values.reshape(2, 6, 5, 8))


def ffn_hidden_returned(x: Tensor) -> tuple[Tensor, Tensor]:
    hidden = functional.silu(functional.linear(x, SQUARE)) * functional.linear(x, SQUARE + 1)  # <-
    return functional.linear(hidden, SQUARE + 2), hidden


def ffn_of_two_inputs(x: Tensor, y: Tensor) -> Tensor:
    gate = functional.silu(functional.linear(x, SQUARE))
    up = functional.linear(y, SQUARE + 1)  # <-
    return functional.linear(gate * up, SQUARE + 2)


def ffn_of_another_activation(x: Tensor) -> Tensor:
    gate = torch.exp(functional.linear(x, SQUARE))  # <-
    up = functional.linear(x, SQUARE + 1)
    return functional.linear(gate * up, SQUARE + 2)


def product_with_an_argument(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight  # <-


def bias_of_the_caller(x: Tensor, bias: Tensor) -> Tensor:
    return functional.linear(x, SQUARE) + bias  # <-


def linears_of_two_biases(x: Tensor) -> Tensor:
    left = functional.linear(x, SQUARE, WEIGHT)  # <-
    right = functional.linear(x, SQUARE + 1, WEIGHT + 1)
    return left + right


def cast_that_rounds(x: Tensor) -> Tensor:
    half = x.to(torch.bfloat16)  # <-
    return half.to(torch.float32)


class ParallelSum(regraft.Rewrite):
    """x @ a.T + x @ b.T = x @ (a + b).T"""

    exactness = regraft.Exactness.REASSOCIATES

    def pattern(self, op: Any, x: Any, a: Any, b: Any) -> Any:
        return op.aten.add.Tensor(op.aten.linear(x, a), op.aten.linear(x, b))

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.linear(m.x, op.aten.add.Tensor(m.a, m.b))


@dataclass(frozen=True)
class NearMiss:
    """What `explain` must say of `rewrite` at the nearest place in `model`."""

    rewrite: str
    model: Model
    inputs: tuple[Tensor, ...]
    reason: str
    culprit: str
    progress: str = "partial"

    @property
    def line(self) -> int:
        """The marked line of the model."""
        lines, first = inspect.getsourcelines(self.model)
        (marked,) = (number for number, text in enumerate(lines) if text.rstrip().endswith("# <-"))
        return first + marked


QKV = (HEADS, HEADS + 1, HEADS + 2)
HIDDEN = tensor(5, 5) > 0
TABLES = (tensor(5, 8), tensor(5, 8) + 1)
CHECK, USE = "declined", "outside_use"

NEAR_MISSES = (
    NearMiss("LayerNorm", layer_norm_over_another_axis, (X,), "not over the last", "aten.mean.dim", CHECK),
    NearMiss("LayerNorm", layer_norm_unbiased, (X,), "not the biased one", "aten.var.correction", CHECK),
    NearMiss("LayerNorm", layer_norm_of_another_mean, (X,), "two different values", "aten.relu"),
    NearMiss("LayerNormWeight", layer_norm_weight_per_row, (X, X[:, :, :1]), "shape", "input weight", CHECK),
    NearMiss("LayerNormBias", layer_norm_bias_per_row, (X, X[:, :, :1]), "shape", "input bias", CHECK),
    NearMiss("RMSNorm", rms_norm_eps_outside, (X,), "expected aten.rsqrt, found", "aten.add.Scalar"),
    NearMiss("RMSNorm", rms_norm_eps_outside_the_root, (X,), "expected aten.add.Scalar", "aten.mean.dim"),
    NearMiss("RMSNorm", rms_norm_over_another_axis, (X,), "not over the last", "aten.mean.dim", CHECK),
    NearMiss("RMSNorm", rms_norm_of_cubes, (X,), "'exponent' is 3, expected 2", "aten.pow.Tensor_Scalar"),
    NearMiss("RMSNorm", rms_norm_of_another_value, (X, X), "two different values", "input y"),
    NearMiss("RMSNorm", rms_norm_scale_returned, (X,), "users outside the match", "aten.rsqrt", USE),
    NearMiss("RMSNormWeight", rms_norm_weight_per_row, (X, X[:, :, :1]), "shape", "input weight", CHECK),
    NearMiss("GeluErf", gelu_of_another_root, (X,), "not of x / √2", "aten.div.Scalar", CHECK),
    NearMiss("GeluErf", gelu_of_another_half, (X,), "0.51 stands where", "aten.mul.Scalar", CHECK),
    NearMiss("GeluErf", gelu_of_another_one, (X,), "1.5 stands where gelu has 1.0", "aten.add.Scalar", CHECK),
    NearMiss("GeluTanh", gelu_tanh_of_another_cubic, (X,), "0.0447 stands", "aten.mul.Scalar", CHECK),
    NearMiss("GeluTanh", gelu_tanh_of_another_root, (X,), "0.8 stands where", "aten.mul.Scalar", CHECK),
    NearMiss("GeluTanh", gelu_tanh_of_a_square, (X,), "expected 3", "aten.pow.Tensor_Scalar"),
    NearMiss("SiLU", quick_gelu, (X,), "two different values", "aten.mul.Scalar"),
    NearMiss("SiLU", silu_gate_returned, (X,), "users outside the match", "aten.sigmoid", USE),
    NearMiss("SiLU", silu_of_another_one, (X,), "not 1", "aten.add.Scalar", CHECK),
    NearMiss("Rotary", rotary_of_pairs, (HEADS, *TABLES), "expected aten.slice.Tensor", "aten.flip"),
    NearMiss("Rotary", rotary_unequal, (HEADS, *TABLES), "not the two halves", "aten.slice.Tensor", CHECK),
    NearMiss("Rotary", rotary_negated_first, (HEADS, *TABLES), "expected aten.neg", "aten.slice.Tensor"),
    NearMiss(
        "SpelledOutAttention",
        attention_scaled_after_the_mask,
        (*QKV, tensor(5, 5)),
        "expected aten.matmul, found aten.add.Tensor",
        "aten.add.Tensor",
    ),
    NearMiss(
        "SpelledOutAttention", attention_over_queries, QKV, "not over the keys", "aten.softmax.int", CHECK
    ),
    NearMiss(
        "SpelledOutAttention",
        attention_masked_a_little,
        (*QKV, HIDDEN),
        "masked scores are -10000.0",
        "aten.full",
        CHECK,
    ),
    NearMiss(
        "SpelledOutAttention",
        attention_of_a_hidden_row,
        (*QKV, HIDDEN),
        "may hide a whole row",
        "input hidden",
        CHECK,
    ),
    NearMiss(
        "SpelledOutAttention", attention_weights_returned, QKV, "users outside", "aten.softmax.int", USE
    ),
    NearMiss("CausalMask", mask_nearly_causal, QKV, "not proved to be causal", "aten.le.Tensor", CHECK),
    NearMiss("TrueMask", mask_of_the_caller, (*QKV, HIDDEN), "not proved to be all", "input seen", CHECK),
    NearMiss("AdditiveMask", mask_added_a_little, QKV, "the mask adds -10000.0", "aten.full", CHECK),
    NearMiss("AdditiveMask", mask_without_a_key, QKV, "a query might see no key", "aten.lt.Tensor", CHECK),
    NearMiss(
        "GroupedHeads",
        heads_repeated_as_blocks,
        (tensor(2, 6, 5, 8), HEADS, HEADS + 1),
        "not repeated in a row",
        "aten.view",
        CHECK,
    ),
    NearMiss("GatedFFN", ffn_hidden_returned, (X,), "users outside the match", "aten.mul.Tensor", USE),
    NearMiss("GatedFFN", ffn_of_two_inputs, (X, X), "two different values", "input y"),
    NearMiss("GatedFFN", ffn_of_another_activation, (X,), "expected aten.silu, found aten.exp", "aten.exp"),
    NearMiss(
        "MatmulWithWeight", product_with_an_argument, (X, SQUARE), "must be constant", "input weight", CHECK
    ),
    NearMiss("AddBias", bias_of_the_caller, (X, WEIGHT), "not constant", "input bias", CHECK),
    NearMiss("ParallelSum", linears_of_two_biases, (X,), "'bias' is there, expected none", "constant"),
    NearMiss("CastOfCast", cast_that_rounds, (X,), "the inner cast rounds", "aten._to_copy", CHECK),
)
