"""Recurrences written as Python loops over time: LSTM, GRU, Mamba, GLA and Aaren.

LSTM and GRU step by step, as hand-written cells have it (the equations of torch's ``nn.LSTM`` and ``nn.GRU``;
the steps of FlashRNN, github.com/NX-AI/flashrnn). Mamba: Gu and Dao, arXiv:2312.00752;
github.com/state-spaces/mamba, ``ops/selective_scan_interface.py``, ``selective_scan_ref``, in the block of
``modules/mamba_simple.py``. GLA: Yang et al., arXiv:2312.06635; github.com/fla-org/flash-linear-attention,
``fla/ops/gla/naive.py``, ``naive_recurrent_gla``, in the layer of ``fla/layers/gla.py``. Aaren: Feng et al.,
arXiv:2405.13956, attention as an RNN (section 3.1) with a learned query.
The path does not depend on the data; the number of trips is the length of the input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.dynamic.record import DynamicNetwork, Form, no_decisions, normal


class LSTMLoop(nn.Module):
    """The projection of the input is inside the loop. Returns all states and the last one."""

    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.input = nn.Linear(inside, 4 * hidden)
        self.recurrent = nn.Linear(hidden, 4 * hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = x.new_zeros(x.size(0), self.hidden_size)
        c = x.new_zeros(x.size(0), self.hidden_size)
        outputs = []
        for t in range(x.size(1)):
            gates = self.input(x[:, t]) + self.recurrent(h)
            i, f, g, o = gates.chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h, c)


class GRULoop(nn.Module):
    """The loop is over the sequence's first axis, as ``for step in x``. Returns all states."""

    def __init__(self, inside: int, hidden: int) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.input = nn.Linear(inside, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(0), self.hidden_size)
        outputs = []
        for step in x.transpose(0, 1):
            reset_x, update_x, new_x = self.input(step).chunk(3, -1)
            reset_h, update_h, new_h = self.recurrent(h).chunk(3, -1)
            reset = torch.sigmoid(reset_x + reset_h)
            update = torch.sigmoid(update_x + update_h)
            new = torch.tanh(new_x + reset * new_h)
            h = (1 - update) * new + update * h
            outputs += [h]
        return torch.stack(outputs).transpose(0, 1)


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    """Over u [b, d, l], delta likewise, A [d, n], B and C [b, n, l], D [d], gated by z [b, d, l]."""
    delta_a = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    delta_b_u = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    x = A.new_zeros((u.shape[0], u.shape[1], A.shape[1]))
    ys = []
    for i in range(u.shape[2]):
        x = delta_a[:, :, i] * x + delta_b_u[:, :, i]
        y = torch.einsum("bdn,bn->bd", x, C[:, :, i])
        ys.append(y)
    y = torch.stack(ys, dim=2)
    return (y + u * D[:, None]) * F.silu(z)


class Mamba(nn.Module):
    """A block, twice as wide inside, with a state of ``state`` a channel."""

    def __init__(self, width: int, state: int, rank: int) -> None:
        super().__init__()
        inner = 2 * width
        self.rank, self.state = rank, state
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, state + 1).repeat(inner, 1)))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        length = hidden_states.size(1)
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
        x = F.silu(self.conv1d(x)[..., :length])
        dt, B, C = self.x_proj(x.transpose(1, 2)).split([self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(self.dt_proj(dt)).transpose(1, 2)
        A = -torch.exp(self.A_log)
        y = selective_scan(x, delta, A, B.transpose(1, 2), C.transpose(1, 2), self.D, z)
        return self.out_proj(y.transpose(1, 2))


class GatedLinearAttention(nn.Module):
    """Outputs are written into a tensor made before the loop."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.g_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.gk_proj = nn.Sequential(nn.Linear(width, 16, bias=False), nn.Linear(16, width))
        self.g_norm = nn.RMSNorm(width // heads, eps=1e-5)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        batch, length, width = hidden_states.shape
        q, k, v, gk = (
            project(hidden_states).view(batch, length, self.heads, -1).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj, self.gk_proj)
        )
        gk = F.logsigmoid(gk) / 16
        scale = q.shape[-1] ** -0.5
        o = torch.zeros_like(v)
        h = q.new_zeros(batch, self.heads, q.shape[-1], v.shape[-1])
        for i in range(length):
            q_i = q[:, :, i, :] * scale
            k_i = k[:, :, i]
            v_i = v[:, :, i, :]
            gk_i = gk[:, :, i].exp()
            kv_i = k_i[..., None] * v_i[..., None, :]
            h = h * gk_i[..., None] + kv_i
            o_i = (q_i[..., None] * h).sum(-2)
            o[:, :, i] = o_i
        o = self.g_norm(o.transpose(1, 2)).reshape(batch, length, width)
        return self.o_proj(o * F.silu(self.g_proj(hidden_states)))


class Aaren(nn.Module):
    """Softmax attention of one learned query over the tokens so far, by running sums and maximum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        keys, values = self.key(x), self.value(x)
        scores = keys @ self.query / keys.size(-1) ** 0.5
        a = torch.zeros_like(values[:, 0])
        c = torch.zeros_like(scores[:, 0])
        m = torch.full_like(scores[:, 0], -torch.inf)
        outputs = []
        for k in range(x.size(1)):
            previous, m = m, torch.maximum(m, scores[:, k])
            kept, weight = torch.exp(previous - m), torch.exp(scores[:, k] - m)
            a = a * kept[:, None] + values[:, k] * weight[:, None]
            c = c * kept + weight
            outputs.append(a / c[:, None])
        return torch.stack(outputs, dim=1)


_ONE_PATH = {(): 0}

NETWORKS = (
    DynamicNetwork(
        "lstm_loop",
        "an LSTM of 256 as a loop, x [1, 512, 128]",
        Form(lambda: LSTMLoop(6, 8), normal(2, 40, 6), _ONE_PATH),
        Form(lambda: LSTMLoop(128, 256), normal(1, 512, 128), _ONE_PATH),
        no_decisions,
    ),
    DynamicNetwork(
        "gru_loop",
        "a GRU of 256 as a loop, x [1, 512, 128]",
        Form(lambda: GRULoop(6, 8), normal(2, 40, 6), _ONE_PATH),
        Form(lambda: GRULoop(128, 256), normal(1, 512, 128), _ONE_PATH),
        no_decisions,
    ),
    DynamicNetwork(
        "mamba_loop",
        "a Mamba block, 256 wide, its scan as a loop, x [1, 1024, 256]",
        Form(lambda: Mamba(8, 4, 2), normal(2, 40, 8), _ONE_PATH),
        Form(lambda: Mamba(256, 16, 16), normal(1, 1024, 256), _ONE_PATH),
        no_decisions,
    ),
    DynamicNetwork(
        "gla_loop",
        "gated linear attention, 256 wide, 4 heads, as a loop, x [1, 512, 256]",
        Form(lambda: GatedLinearAttention(16, 2), normal(2, 40, 16), _ONE_PATH),
        Form(lambda: GatedLinearAttention(256, 4), normal(1, 512, 256), _ONE_PATH),
        no_decisions,
    ),
    DynamicNetwork(
        "aaren_loop",
        "Aaren, 256 wide, as a loop, x [1, 512, 256]",
        Form(lambda: Aaren(8), normal(2, 40, 8), _ONE_PATH),
        Form(lambda: Aaren(256), normal(1, 512, 256), _ONE_PATH),
        no_decisions,
    ),
)
