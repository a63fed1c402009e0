"""HRM: two recurrent modules at two rates, and a head that decides after each segment whether to halt.

Wang et al., "Hierarchical Reasoning Model", arXiv:2506.21734; github.com/sapientinc/HRM,
``models/hrm/hrm_act_v1.py`` (``..._Inner.forward``, ``ACTV1.forward``) with the loop of ``evaluate.py``,
which goes on until every sequence has halted. States travel in dataclasses, made anew each segment. The
repository halts in training only and runs all segments when it evaluates; the paper's inference halts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.dynamic.record import Decisions, DynamicNetwork, Form, tokens

VOCABULARY = 12


@dataclass
class InnerCarry:
    z_H: Tensor
    z_L: Tensor


@dataclass
class Carry:
    inner_carry: InnerCarry
    steps: Tensor
    halted: Tensor


def rms_norm(hidden_states: Tensor, variance_epsilon: float) -> Tensor:
    input_dtype = hidden_states.dtype
    variance = hidden_states.square().mean(-1, keepdim=True)
    return (hidden_states * torch.rsqrt(variance + variance_epsilon)).to(input_dtype)


def rotate_half(x: Tensor) -> Tensor:
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class Block(nn.Module):
    """Attention with rotary positions and a SwiGLU, norms after the sums."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.gate_up_proj = nn.Linear(width, 4 * width, bias=False)
        self.down_proj = nn.Linear(2 * width, width, bias=False)

    def attention(self, cos: Tensor, sin: Tensor, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3 * self.heads, -1).transpose(1, 2)
        query, key, value = qkv.chunk(3, dim=1)
        query = query * cos + rotate_half(query) * sin
        key = key * cos + rotate_half(key) * sin
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))

    def forward(self, cos_sin: tuple[Tensor, Tensor], hidden_states: Tensor) -> Tensor:
        hidden_states = rms_norm(hidden_states + self.attention(*cos_sin, hidden_states), 1e-5)
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return rms_norm(hidden_states + self.down_proj(F.silu(gate) * up), 1e-5)


class ReasoningModule(nn.Module):
    def __init__(self, layers: Sequence[Block]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states: Tensor, input_injection: Tensor, **kwargs: object) -> Tensor:
        hidden_states = hidden_states + input_injection
        for layer in self.layers:
            hidden_states = layer(hidden_states=hidden_states, **kwargs)
        return hidden_states


class Inner(nn.Module):
    """One segment: ``h_cycles`` updates of the high level, each after ``l_cycles`` of the low one."""

    def __init__(
        self, width: int, heads: int, layers: int, length: int, h_cycles: int, l_cycles: int
    ) -> None:
        super().__init__()
        self.h_cycles, self.l_cycles = h_cycles, l_cycles
        self.embed_scale = math.sqrt(width)
        self.embed_tokens = nn.Embedding(VOCABULARY, width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.q_head = nn.Linear(width, 2)
        self.H_level = ReasoningModule([Block(width, heads) for _ in range(layers)])
        self.L_level = ReasoningModule([Block(width, heads) for _ in range(layers)])
        self.register_buffer("H_init", torch.randn(width))
        self.register_buffer("L_init", torch.randn(width))
        inv_freq = 1.0 / (10000.0 ** (torch.arange(0, width // heads, 2) / (width // heads)))
        freqs = torch.outer(torch.arange(length), inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        self.register_buffer("cos_cached", emb.cos(), persistent=False)
        self.register_buffer("sin_cached", emb.sin(), persistent=False)

    def reset_carry(self, reset_flag: Tensor, carry: InnerCarry) -> InnerCarry:
        return InnerCarry(
            z_H=torch.where(reset_flag.view(-1, 1, 1), self.H_init, carry.z_H),
            z_L=torch.where(reset_flag.view(-1, 1, 1), self.L_init, carry.z_L),
        )

    def forward(self, carry: InnerCarry, inputs: Tensor) -> tuple[InnerCarry, Tensor, tuple[Tensor, Tensor]]:
        seq_info = {"cos_sin": (self.cos_cached, self.sin_cached)}
        input_embeddings = self.embed_scale * self.embed_tokens(inputs.to(torch.int32))
        with torch.no_grad():
            z_H, z_L = carry.z_H, carry.z_L
            for _H_step in range(self.h_cycles):
                for _L_step in range(self.l_cycles):
                    if not ((_H_step == self.h_cycles - 1) and (_L_step == self.l_cycles - 1)):
                        z_L = self.L_level(z_L, z_H + input_embeddings, **seq_info)
                if _H_step != self.h_cycles - 1:
                    z_H = self.H_level(z_H, z_L, **seq_info)
        assert not z_H.requires_grad
        assert not z_L.requires_grad
        z_L = self.L_level(z_L, z_H + input_embeddings, **seq_info)
        z_H = self.H_level(z_H, z_L, **seq_info)
        new_carry = InnerCarry(z_H=z_H.detach(), z_L=z_L.detach())
        output = self.lm_head(z_H)
        q_logits = self.q_head(z_H[:, 0]).to(torch.float32)
        return new_carry, output, (q_logits[..., 0], q_logits[..., 1])


class HRM(nn.Module):
    """For one sequence. Returns the logits [1, length, vocabulary] and the number of segments."""

    def __init__(self, inner: Inner, width: int, halt_max_steps: int) -> None:
        super().__init__()
        self.inner = inner
        self.width = width
        self.halt_max_steps = halt_max_steps

    def initial_carry(self, inputs: Tensor) -> Carry:
        """All count as halted, so that the first segment starts from the initial states."""
        batch_size, dtype = inputs.shape[0], self.inner.H_init.dtype
        return Carry(
            inner_carry=InnerCarry(
                z_H=torch.empty((*inputs.shape, self.width), dtype=dtype),
                z_L=torch.empty((*inputs.shape, self.width), dtype=dtype),
            ),
            steps=torch.zeros((batch_size,), dtype=torch.int32),
            halted=torch.ones((batch_size,), dtype=torch.bool),
        )

    def segment(self, carry: Carry, inputs: Tensor) -> tuple[Carry, dict[str, Tensor]]:
        new_inner_carry = self.inner.reset_carry(carry.halted, carry.inner_carry)
        new_steps = torch.where(carry.halted, 0, carry.steps)
        new_inner_carry, logits, (q_halt_logits, q_continue_logits) = self.inner(new_inner_carry, inputs)
        outputs = {
            "logits": logits,
            "q_halt_logits": q_halt_logits,
            "q_continue_logits": q_continue_logits,
        }
        new_steps = new_steps + 1
        is_last_step = new_steps >= self.halt_max_steps
        halted = is_last_step | (q_halt_logits > q_continue_logits)
        return Carry(new_inner_carry, new_steps, halted), outputs

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        carry = self.initial_carry(inputs)
        while True:
            carry, outputs = self.segment(carry, inputs)
            if carry.halted.all():
                break
        return outputs["logits"], carry.steps


def _segments(result: tuple[Tensor, Tensor]) -> Decisions:
    return tuple(result[1].tolist())


def _hrm(width: int, heads: int, layers: int, length: int, cycles: tuple[int, int], longest: int) -> HRM:
    return HRM(Inner(width, heads, layers, length, *cycles), width, longest)


NETWORKS = (
    DynamicNetwork(
        "hrm",
        "HRM, 512 wide, 4 + 4 layers, 2 x 2 cycles, at most 8 segments, tokens [1, 81]",
        Form(
            lambda: _hrm(16, 2, 1, 6, (2, 2), 4),
            tokens(VOCABULARY, 1, 6),
            {(1,): 0, (2,): 98, (3,): 25, (4,): 19},
        ),
        Form(
            lambda: _hrm(512, 8, 4, 81, (2, 2), 8),
            tokens(VOCABULARY, 1, 81),
            {(1,): 2, (2,): 3, (3,): 7, (4,): 23},
        ),
        _segments,
    ),
)
