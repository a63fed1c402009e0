"""Shipped rewrites with one mistake each, and a model that each one spoils.

A mutant is the rewrite's own module with one piece of its source replaced. It runs before the original, so
that it has the first word where both would apply.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from regraft.ir import Rewrite
from regraft.rewrites import FAMILIES
from tests.compiler import near_misses as near
from tests.compiler.near_misses import HEADS, QKV, TABLES, WEIGHT, X, tensor

SHIPPED = {rewrite.name: rewrite for family in FAMILIES.values() for rewrite in family}


@dataclass(frozen=True)
class Mutant:
    """`rewrite` with `old` replaced by `new` in its module; wrong on `model(*inputs)`."""

    rewrite: str
    mistake: str
    old: str
    new: str
    model: Callable[..., Any]
    inputs: tuple[Tensor, ...]

    @property
    def id(self) -> str:
        return f"{self.rewrite}-{self.mistake.replace(' ', '-')}"

    @property
    def name(self) -> str:
        return f"Mutant{self.rewrite}"

    def make(self) -> Rewrite:
        """The mutant. What it replaces must stand in the class once, or else in the module once."""
        original = type(SHIPPED[self.rewrite])
        module = sys.modules[original.__module__]
        source, own = inspect.getsource(module), inspect.getsource(original)
        if own.count(self.old) == 1:
            source = source.replace(own, own.replace(self.old, self.new))
        else:
            assert source.count(self.old) == 1, (
                f"{self.id}: '{self.old}' stands {source.count(self.old)} times"
            )
            source = source.replace(self.old, self.new)
        namespace: dict[str, Any] = {"__name__": module.__name__}
        exec(compile(source, f"<{self.id}>", "exec"), namespace)
        mutated = namespace[self.rewrite]
        return type(self.name, (mutated,), {"before": (*mutated.before, self.rewrite)})()


# -- models ------------------------------------------------------------------------------------


def gelu_erf(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gelu_of_a_far_root(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 1.3))


def gelu_tanh(x: Tensor, cubic: float = 0.044715) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + cubic * x.pow(3))))


def gelu_tanh_of_a_far_cubic(x: Tensor) -> Tensor:
    return gelu_tanh(x, 0.1)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)


def layer_norm_weighted(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return WEIGHT * (centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5))


def layer_norm_biased(x: Tensor) -> Tensor:
    return functional.layer_norm(x, (16,), WEIGHT) + (WEIGHT + 1)


def rms_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def rms_norm_weighted(x: Tensor) -> Tensor:
    return rms_norm(x) * WEIGHT


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., :4], x[..., 4:]
    return x * cos + torch.cat((-second, first), -1) * sin


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


def attention_divided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(8), -1) @ v


def attention_masked(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).masked_fill(hidden, torch.finfo(torch.float32).min)
    return torch.softmax(scores, -1) @ v


def attention_lowered(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    scores = (q @ k.transpose(-1, -2)).masked_fill(hidden, -2.0)
    return torch.softmax(scores, -1) @ v


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(q.shape[-2])
    return functional.scaled_dot_product_attention(q, k, v, i[None, :] <= i[:, None])


def mask_lowered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(q.shape[-2])
    seen = i[None, :] <= i[:, None]
    mask = torch.where(seen, torch.full((), 0.0), torch.full((), -2.0))
    return functional.scaled_dot_product_attention(q, k, v, mask)


def grouped_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    keys, values = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    return functional.scaled_dot_product_attention(q, keys, values, mask, scale=0.9)


def grouped_heads_expanded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    def repeated(x: Tensor) -> Tensor:
        return x[:, :, None].expand(2, 3, 2, 5, 8).reshape(2, 6, 5, 8)

    return functional.scaled_dot_product_attention(q, repeated(k), repeated(v), mask, scale=0.9)


def ffn(x: Tensor) -> Tensor:
    gate = functional.silu(functional.linear(x, _SMALL))
    return functional.linear(gate * functional.linear(x, _OTHER, WEIGHT), _THIRD)


def ffn_gelu(x: Tensor) -> Tensor:
    gate = functional.gelu(functional.linear(x, _SMALL))
    return functional.linear(gate * functional.linear(x, _OTHER), _THIRD)


def product(x: Tensor) -> Tensor:
    return x @ _SMALL


def folded_linear(x: Tensor) -> Tensor:
    return functional.linear(x.reshape(8, 16), _SMALL, WEIGHT).reshape(2, 4, 16)


def permuted_twice(x: Tensor) -> Tensor:
    return x.permute(1, 0, 2).permute(2, 0, 1)


def sliced_twice(x: Tensor) -> Tensor:
    return x[:, :, 3:15][:, :, 2:9:2]  # a chain of moves takes other slices in before


def scaled_addend(x: Tensor, y: Tensor) -> Tensor:
    return torch.add(x, y, alpha=0.3)


def scaled(x: Tensor) -> Tensor:
    return x * 1.5


def reciprocal_square_root(x: Tensor) -> Tensor:
    return (x.abs() + 1) ** -0.5


def less_a_number(x: Tensor) -> Tensor:
    return x - torch.full((), 2.5)


def plus_a_number(x: Tensor) -> Tensor:
    return x + -0.5


_SMALL, _OTHER, _THIRD = (
    torch.randn(16, 16, generator=torch.Generator().manual_seed(s)) / 4 for s in (1, 2, 3)
)
_HIDDEN = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
_WHOLE_ROW = _HIDDEN | (torch.arange(5)[:, None] == 2)
_GROUPS = (tensor(2, 6, 5, 8), HEADS, HEADS.flip(0))
_GIVEN = (tensor(5, 5),)

MUTANTS = (
    Mutant(
        "GeluErf", "tanh form", "op.aten.gelu(m.x)", 'op.aten.gelu(m.x, approximate="tanh")', gelu_erf, (X,)
    ),
    Mutant(
        "GeluErf",
        "any root",
        'if "root" in m.attrs and',
        'if "roof" in m.attrs and',
        gelu_of_a_far_root,
        (X,),
    ),
    Mutant(
        "GeluErf",
        "any half",
        '(("half", 0.5), ("one", 1.0),',
        '(("one", 1.0),',
        near.gelu_of_another_half,
        (X,),
    ),
    Mutant(
        "GeluErf", "any one", '("one", 1.0), ("half_more"', '("half_more"', near.gelu_of_another_one, (X,)
    ),
    Mutant(
        "GeluTanh", "erf form", 'op.aten.gelu(m.x, approximate="tanh")', "op.aten.gelu(m.x)", gelu_tanh, (X,)
    ),
    Mutant("GeluTanh", "any cubic", '("cubic", _CUBIC), ', "", gelu_tanh_of_a_far_cubic, (X,)),
    Mutant("GeluTanh", "any root", '("root", _ROOT), ', "", near.gelu_tanh_of_another_root, (X,)),
    Mutant(
        "GeluTanh",
        "any power",
        "op.aten.pow.Tensor_Scalar(x, 3)",
        'op.aten.pow.Tensor_Scalar(x, op.attr("power"))',
        near.gelu_tanh_of_a_square,
        (X,),
    ),
    Mutant("SiLU", "any one", 'if m.attrs.get("one", 1) == 1:', "if True:", near.silu_of_another_one, (X,)),
    Mutant("SiLU", "sigmoid alone", "op.aten.silu(m.x)", "op.aten.sigmoid(m.x)", silu, (X,)),
    Mutant(
        "LayerNorm",
        "any axis",
        'if not is_last_dims(m.attr("dim"), m.x.tensor.rank):',
        "if False:",
        near.layer_norm_over_another_axis,
        (X,),
    ),
    Mutant(
        "LayerNorm",
        "any variance",
        'if m.attrs.get("correction", 0) != 0:',
        "if False:",
        near.layer_norm_unbiased,
        (X,),
    ),
    Mutant(
        "LayerNorm", "larger eps", 'float(m.attr("eps")))', 'float(m.attr("eps")) * 1e3)', layer_norm, (X,)
    ),
    Mutant(
        "LayerNorm",
        "no weight",
        '_normalised(m), m.optional("weight"),',
        "_normalised(m), None,",
        layer_norm_weighted,
        (X,),
    ),
    Mutant(
        "LayerNormBias",
        "swapped",
        'm.optional("weight"), m.bias',
        'm.bias, m.optional("weight")',
        layer_norm_biased,
        (X,),
    ),
    Mutant(
        "LayerNormWeight",
        "any shape",
        "if not same_dims(m.weight.tensor.shape,",
        "if False and not same_dims(m.weight.tensor.shape,",
        near.layer_norm_weight_per_row,
        (X, X[:, :, :1]),
    ),
    Mutant(
        "RMSNorm",
        "any axis",
        'if not is_last_dims(m.attr("dim"), type.rank):',
        "if False:",
        near.rms_norm_over_another_axis,
        (X,),
    ),
    Mutant(
        "RMSNorm",
        "any power",
        "op.aten.pow.Tensor_Scalar(x, 2)",
        'op.aten.pow.Tensor_Scalar(x, op.attr("power"))',
        near.rms_norm_of_cubes,
        (X.abs(),),
    ),
    Mutant("RMSNorm", "larger eps", 'float(m.attr("eps")))', 'float(m.attr("eps")) * 1e4)', rms_norm, (X,)),
    Mutant(
        "RMSNormWeight",
        "no weight",
        'm.attr("shape"), m.weight, m.attr("eps")',
        'm.attr("shape"), None, m.attr("eps")',
        rms_norm_weighted,
        (X,),
    ),
    Mutant(
        "Rotary",
        "swapped tables",
        "op.rg.rotary(m.x, m.cos, m.sin)",
        "op.rg.rotary(m.x, m.sin, m.cos)",
        rotary,
        (HEADS, *TABLES),
    ),
    Mutant(
        "Rotary",
        "any parts",
        "if dims.eq(half * 2, shape[-1]) is not True or",
        "if",
        near.rotary_unequal,
        (HEADS, *TABLES),
    ),
    Mutant(
        "Rotary",
        "other sign",
        "op.aten.cat([op.aten.neg(second), first], axis)",
        "op.aten.cat([second, op.aten.neg(first)], axis)",
        near.rotary_negated_first,
        (HEADS, *TABLES),
    ),
    Mutant(
        "SpelledOutAttention",
        "any axis",
        'if m.attr("dim") != rank - 1:',
        "if False:",
        near.attention_over_queries,
        QKV,
    ),
    Mutant(
        "SpelledOutAttention",
        "wrong scale",
        '1 / m.attr("divisor")',
        'm.attr("divisor")',
        attention_divided,
        QKV,
    ),
    Mutant(
        "SpelledOutAttention",
        "own scale",
        'm.attrs.get("scale", 1.0)',
        'm.attrs.get("scale", 0.5)',
        attention,
        QKV,
    ),
    Mutant(
        "SpelledOutAttention",
        "inverted mask",
        "seen = op.aten.bitwise_not(hidden)",
        "seen = hidden",
        attention_masked,
        (*QKV, _HIDDEN),
    ),
    Mutant(
        "SpelledOutAttention", "any number", "<= FAR_BELOW", "<= -1.0", attention_lowered, (*QKV, _HIDDEN)
    ),
    Mutant(
        "SpelledOutAttention",
        "hidden row",
        'm.attr("below") == -math.inf and not sees_a_key(',
        "False and not sees_a_key(",
        near.attention_of_a_hidden_row,
        (*QKV, _WHOLE_ROW),
    ),
    Mutant(
        "CausalMask",
        "shifted",
        "frozenset({Affine(0, coefficients)})",
        "frozenset({Affine(-1, coefficients)})",
        near.mask_nearly_causal,
        QKV,
    ),
    Mutant(
        "CausalMask",
        "no mask",
        "_with_mask(op, m, None, is_causal=True)",
        "_with_mask(op, m, None)",
        causal,
        QKV,
    ),
    Mutant(
        "TrueMask",
        "any mask",
        "if not isinstance(where, Where) or not where.is_always:",
        "if False:",
        near.mask_of_the_caller,
        (*QKV, ~_HIDDEN),
    ),
    Mutant("AdditiveMask", "any number", "<= FAR_BELOW:", "<= -1.0:", mask_lowered, QKV),
    Mutant(
        "AdditiveMask", "hidden row", "if not sees_a_key(m.seen):", "if False:", near.mask_without_a_key, QKV
    ),
    Mutant(
        "GroupedHeads",
        "any repeat",
        "    if in_a_row:",
        "    if True:",
        near.heads_repeated_as_blocks,
        _GROUPS,
    ),
    Mutant(
        "GroupedHeads",
        "no scale",
        '            scale=m.attr("scale"),\n            enable_gqa=True',
        "            enable_gqa=True",
        grouped_heads_expanded,
        (*_GROUPS, *_GIVEN),
    ),
    Mutant(
        "GroupedHeads",
        "no mask",
        '            m.optional("mask"),',
        "            None,",
        grouped_heads_expanded,
        (*_GROUPS, *_GIVEN),
    ),
    Mutant("GatedFFN", "up for gate", "gate_weight=m.gate,", "gate_weight=m.up,", ffn, (X,)),
    Mutant("GatedFFN", "no bias", 'up_bias=m.optional("up_bias"),', "", ffn, (X,)),
    Mutant(
        "GatedFFN",
        "other gelu",
        'm.attr("approximate") == "tanh"',
        'm.attr("approximate") == "none"',
        ffn_gelu,
        (X,),
    ),
    Mutant("MatmulWithWeight", "not transposed", "op.aten.permute(matrix, (1, 0))", "matrix", product, (X,)),
    Mutant(
        "UnfoldedLinear",
        "no bias",
        'm.weight, m.optional("bias"))\n',
        "m.weight, None)\n",
        folded_linear,
        (X,),
    ),
    Mutant(
        "PermuteOfPermute",
        "other order",
        'tuple(inner[axis] for axis in m.attr("outer"))',
        'tuple(m.attr("outer")[axis] for axis in inner)',
        permuted_twice,
        (tensor(3, 3, 3),),
    ),
    Mutant(
        "SliceOfSlice",
        "start forgotten",
        'start + m.attr("c"), start + m.attr("d")',
        'm.attr("c"), m.attr("d")',
        sliced_twice,
        (X,),
    ),
    Mutant(
        "ScaledAddend",
        "other operand",
        '(m.x, op.aten.mul.Scalar(m.y, m.attr("alpha")))',
        '(m.y, op.aten.mul.Scalar(m.x, m.attr("alpha")))',
        scaled_addend,
        (X, X + 1),
    ),
    Mutant("MulOne", "any number", 'm.attr("one") == 1', 'm.attr("one") > 0', scaled, (X,)),
    Mutant(
        "Root", "other sign", 'm.attr("exponent") > 0', 'm.attr("exponent") < 0', reciprocal_square_root, (X,)
    ),
    Mutant("NumberAsScalar", "sign forgotten", "-float(number) if", "float(number) if", less_a_number, (X,)),
    Mutant(
        "AddZero", "any number", 'if other != 0 or m.attr("alpha") != 1:', "if False:", plus_a_number, (X,)
    ),
)
