"""Products with a constant between two others that must stay apart.

- MFA (Step-3): vllm, vllm/model_executor/models/step3_text.py (``Step3TextAttention.forward``): one down
  projection for queries, keys and values, a norm over the low-rank queries, many query heads on one KV head.
- GLA: fla-org/flash-linear-attention, fla/layers/gla.py: ``gk_proj``, two linear layers of rank 16.
- Mamba: state-spaces/mamba, mamba_simple.py: ``x_proj`` is cut into ``dt``, ``B`` and ``C``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check

SIZES = [{"S": 6}, {"S": 1}, {"S": 17}]


class MultiMatrixFactorisedAttention(nn.Module):
    """Rotary positions are left out."""

    def __init__(self, dim: int = 24, rank: int = 16, heads: int = 4, head: int = 8) -> None:
        super().__init__()
        self.rank, self.heads, self.head = rank, heads, head
        self.qkv_proj = nn.Linear(dim, rank + 2 * head, bias=False)
        self.inter_norm = nn.RMSNorm(rank, eps=1e-5)
        self.wq, self.o_proj = (
            nn.Linear(rank, heads * head, bias=False),
            nn.Linear(heads * head, dim, bias=False),
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        b, n, _ = hidden_states.shape
        q, k, v = self.qkv_proj(hidden_states).split([self.rank, self.head, self.head], dim=-1)
        q = self.wq(self.inter_norm(q)).view(b, n, self.heads, self.head).transpose(1, 2)
        k, v = k.unsqueeze(1).expand(-1, self.heads, -1, -1), v.unsqueeze(1).expand(-1, self.heads, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(b, n, -1))


class DeltaPath(nn.Module):
    """``softplus(dt_proj(dt)) * (B . C)``: the scan's inputs, without the scan."""

    def __init__(self, dim: int = 32, rank: int = 4, state: int = 8) -> None:
        super().__init__()
        self.rank, self.state = rank, state
        self.x_proj, self.dt_proj = nn.Linear(dim, rank + 2 * state, bias=False), nn.Linear(rank, dim)

    def forward(self, x: Tensor) -> Tensor:
        dt, b, c = torch.split(self.x_proj(x), [self.rank, self.state, self.state], dim=-1)
        return F.softplus(self.dt_proj(dt)) * (b * c).sum(-1, keepdim=True)


class ForgetGate(nn.Module):
    def __init__(self, dim: int = 256, rank: int = 16) -> None:
        super().__init__()
        self.gk_proj = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.logsigmoid(self.gk_proj(x)) / 16


def test_mfa_is_not_merged_across_its_norm() -> None:
    inputs = at_sizes([2, "S", 24], SIZES)
    check(
        MultiMatrixFactorisedAttention(),
        *inputs,
        rewrites={"MergedLinear": 0},
        dynamic_shapes=({1: Dim.AUTO},),
    )


def test_what_is_read_elsewhere_stays() -> None:
    inputs = at_sizes([2, "S", 32], SIZES)
    check(DeltaPath(), *inputs, rewrites={"MergedLinear": 0}, dynamic_shapes=({1: Dim.AUTO},))


def test_a_rank_far_below_break_even_stays_factored() -> None:
    compiled = check(ForgetGate(), *at_sizes([2, "S", 256], [{"S": 600}]), rewrites={"MergedLinear": 1})
    (choice,) = compiled.report.choices
    assert choice.order == (0,)
