"""LoRA and its family, spelled by somebody who had not seen what recognises them.

Not edited to suit a recogniser. The originals are in ``test_low_rank`` and ``test_adapters`` one folder up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from tests.zoo.checking import at_sizes, check, normal

SIZES = [{"S": 6}, {"S": 1}, {"S": 19}]
Layer = Callable[[int, int], nn.Module]


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


class LoRAFirst(nn.Module):
    """The adapter's branch first, its scale in front."""

    def __init__(self, width: int, out: int, rank: int = 4) -> None:
        super().__init__()
        self.weight, self.bias = zeros(out, width), zeros(out)
        self.a, self.b = zeros(rank, width), zeros(out, rank)

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * F.linear(F.linear(x, self.a), self.b) + F.linear(x, self.weight, self.bias)


class LoRAAddmm(nn.Module):
    """Flat rows; the branch is added by ``addmm`` with the scale as ``alpha``."""

    def __init__(self, width: int, out: int, rank: int = 4) -> None:
        super().__init__()
        self.weight, self.bias = zeros(width, out), zeros(out)
        self.a, self.b = zeros(width, rank), zeros(rank, out)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        base = torch.addmm(self.bias, rows, self.weight)
        return torch.addmm(base, rows @ self.a, self.b, alpha=0.25).view(*x.shape[:-1], -1)


class LoRAInPlace(nn.Module):
    """A learned scale between the factors, the branch added in place."""

    def __init__(self, width: int, out: int, rank: int = 4) -> None:
        super().__init__()
        self.base = nn.Linear(width, out)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        out += self.up(self.down(x).mul_(self.scale))
        return out


class BlockLoRAStack(nn.Module):
    def __init__(self, width: int, out: int, blocks: int = 3, rank: int = 2) -> None:
        super().__init__()
        self.base, self.down = nn.Linear(width, out), nn.Linear(width, rank, bias=False)
        self.ups = nn.ModuleList(nn.Linear(rank, out, bias=False) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        low = self.down(x)
        return self.base(x) + torch.stack([up(low) for up in self.ups]).sum(dim=0) / 2


class BlockLoRAEinsum(nn.Module):
    """The blocks' sum is one einsum over two indices."""

    def __init__(self, width: int, out: int, blocks: int = 3, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(width, out)
        self.a, self.b = zeros(rank, width), zeros(blocks, out, rank)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.einsum("btd,rd->btr", x, self.a)
        return self.base(x) + 0.5 * torch.einsum("btr,nor->bto", low, self.b)


class BlockLoRALoop(nn.Module):
    def __init__(self, width: int, out: int, blocks: int = 3, rank: int = 2) -> None:
        super().__init__()
        self.base, self.a = nn.Linear(width, out), zeros(width, rank)
        self.b = zeros(blocks, rank, out)

    def forward(self, x: Tensor) -> Tensor:
        y, low = self.base(x), x @ self.a
        for block in self.b.unbind(0):
            y += 0.5 * (low @ block)
        return y


class DoraBeside(nn.Module):
    """The norm by hand, one magnitude for each output behind both branches."""

    def __init__(self, width: int, out: int, rank: int = 3) -> None:
        super().__init__()
        self.weight, self.bias, self.m = zeros(out, width), zeros(out), nn.Parameter(torch.ones(out))
        self.a, self.b = zeros(width, rank), zeros(rank, out)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.weight + 0.5 * (self.a @ self.b).T
        norm = torch.sqrt((merged**2).sum(dim=1))
        y = x @ self.weight.T + (x @ self.a) @ self.b * 0.5
        return y * (self.m / norm) + self.bias


@pytest.mark.parametrize(
    "layer",
    [LoRAFirst, LoRAAddmm, LoRAInPlace, BlockLoRAStack, BlockLoRAEinsum, BlockLoRALoop, DoraBeside],
)
def test_merged_into_the_base(layer: Layer) -> None:
    model = nn.Sequential(layer(16, 24), nn.GELU(), layer(24, 16))
    inputs = at_sizes([2, "S", 16], SIZES)
    compiled = check(model, *inputs, rewrites={"MergedLinear": 2}, dynamic_shapes=({1: Dim.AUTO},))
    assert [choice.order for choice in compiled.report.choices] == [(1,), (1,)], "merging never costs here"


class DoraNormalize(nn.Module):
    def __init__(self, width: int, out: int, rank: int = 3) -> None:
        super().__init__()
        self.weight, self.m = zeros(out, width), nn.Parameter(torch.ones(out, 1))
        self.a, self.b = zeros(rank, width), zeros(out, rank)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight + 2.0 * self.b @ self.a, dim=1) * self.m)


class DoraWeightNorm(nn.Module):
    def __init__(self, width: int, out: int, rank: int = 3) -> None:
        super().__init__()
        self.weight, self.m, self.bias = zeros(out, width), nn.Parameter(torch.ones(out, 1)), zeros(out)
        self.a, self.b = zeros(rank, width), zeros(out, rank)

    def forward(self, x: Tensor) -> Tensor:
        adapted = torch.addmm(self.weight, self.b, self.a, alpha=0.5)
        return F.linear(x, torch._weight_norm(adapted, self.m, 0), self.bias)


class DoraColumns(nn.Module):
    """Weights ``[in, out]``: the norm is over the first axis."""

    def __init__(self, width: int, out: int, rank: int = 3) -> None:
        super().__init__()
        self.weight, self.m = zeros(width, out), nn.Parameter(torch.ones(out))
        self.a, self.b = zeros(width, rank), zeros(rank, out)

    def forward(self, x: Tensor) -> Tensor:
        adapted = self.weight + torch.einsum("ir,ro->io", self.a, self.b)
        return x @ (adapted / adapted.norm(dim=0) * self.m)


@pytest.mark.parametrize("layer", [DoraNormalize, DoraWeightNorm, DoraColumns])
def test_dora_is_a_weight(layer: Layer) -> None:
    model = nn.Sequential(layer(16, 24), nn.GELU(), layer(24, 16))
    compiled = check(model, *at_sizes([2, "S", 16], SIZES), dynamic_shapes=({1: Dim.AUTO},))
    graph = compiled.ir[compiled.ir.index("func @forward") :]
    assert graph.count("rg.ffn(") == 1, "two layers and nothing else"
    assert "norm" not in graph


class LowRankDelta(nn.Module):
    def __init__(self, width: int, out: int, rank: int = 2) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) * 2.0


class SharedExperts(nn.Module):
    """MixLoRA's experts over one SwiGLU; how they are weighed is up to ``mix``."""

    def __init__(self, mix: str, dim: int = 16, hidden: int = 32, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(dim, experts, bias=False)
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.gates = nn.ModuleList(LowRankDelta(dim, hidden) for _ in range(experts))
        self.ups = nn.ModuleList(LowRankDelta(dim, hidden) for _ in range(experts))
        self.downs = nn.ModuleList(LowRankDelta(hidden, dim) for _ in range(experts))
        self.mix = mix

    def weights(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(-1)
        top, chosen = scores.topk(2, dim=-1)
        if self.mix == "where":
            kept = torch.where(scores >= top[..., -1:], scores, torch.zeros_like(scores))
            return kept / kept.sum(-1, keepdim=True)
        top = top / top.sum(-1, keepdim=True)
        return (F.one_hot(chosen, scores.shape[-1]) * top.unsqueeze(-1)).sum(-2)

    def forward(self, x: Tensor) -> Tensor:
        weights, gate, up = self.weights(x), self.gate(x), self.up(x)
        outs = []
        for g, u, d in zip(self.gates, self.ups, self.downs, strict=True):
            h = F.silu(gate + g(x)) * (up + u(x))
            outs.append(self.down(h) + d(h))
        if self.mix == "stack":
            return (torch.stack(outs, dim=-2) * weights.unsqueeze(-1)).sum(dim=-2)
        if self.mix == "where":
            return sum(w.unsqueeze(-1) * out for w, out in zip(weights.unbind(-1), outs, strict=True))
        total = torch.zeros_like(x)
        for e, out in enumerate(outs):
            total += out * weights[..., e : e + 1]
        return total


@pytest.mark.parametrize("mix", ["stack", "where", "in place"])
def test_experts_share_the_last_product(mix: str) -> None:
    inputs = at_sizes([2, "S", 16], SIZES)
    check(SharedExperts(mix), *inputs, rewrites={"SharedProduct": 1}, dynamic_shapes=({1: Dim.AUTO},))


class Generated(nn.Module):
    """An adapter out of a fixed context, which ``states`` makes a matrix of."""

    def __init__(self, width: int, out: int, rank: int = 4) -> None:
        super().__init__()
        self.base = nn.Linear(width, out)
        self.a1, self.a2, self.a3 = zeros(rank, width), zeros(rank, width), zeros(rank, width)
        self.b = zeros(out, rank)
        self.register_buffer("context", normal(2, 9, width, seed=5))

    def states(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        low = torch.einsum("btd,rd->btr", x, self.a1)
        return self.base(x) + 0.5 * F.linear(low @ self.states(), self.b)


class GeneratedByEinsum(Generated):
    def states(self) -> Tensor:
        context = F.rms_norm(self.context[0], self.context.shape[-1:], eps=1e-6)
        states = torch.einsum("md,rd,me,se->rs", context, self.a2, context, self.a3)
        return states / (math.sqrt(context.shape[0]) * states.norm())


class GeneratedByWindows(Generated):
    """One window of the context after the other is added to the state."""

    def states(self) -> Tensor:
        states = torch.zeros(4, 4, dtype=self.context.dtype)
        for window in self.context:
            states += (window @ self.a2.T).T @ (window @ self.a3.T)
        return F.normalize(states.flatten(), dim=0).view(4, 4)


class GeneratedInABatch(Generated):
    """The context keeps a batch axis of 1, over which the states broadcast."""

    def states(self) -> Tensor:
        context = self.context[:1]
        states = torch.bmm(F.linear(context, self.a2).mT, F.linear(context, self.a3)) / 3
        return states / torch.linalg.matrix_norm(states)[:, None, None]


@pytest.mark.parametrize("layer", [GeneratedByEinsum, GeneratedByWindows, GeneratedInABatch])
def test_generated_adapter_of_a_fixed_context(layer: Layer) -> None:
    model = nn.Sequential(layer(16, 24), nn.ReLU(), layer(24, 16))
    inputs = at_sizes([2, "S", 16], SIZES)
    check(model, *inputs, rewrites={"MergedLinear": 2}, dynamic_shapes=({1: Dim.AUTO},))


class RowDelta(nn.Module):
    """EGGROLL: a rank-1 change of the weight for each row of the batch."""

    def __init__(self, form: str, width: int = 16, out: int = 24, population: int = 4) -> None:
        super().__init__()
        self.weight = zeros(out, width)
        self.register_buffer("a", normal(population, out, seed=1))
        self.register_buffer("b", normal(population, width, seed=2))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        base = F.linear(x, self.weight)
        if self.form == "elementwise":
            return base + (x * self.b).sum(dim=-1, keepdim=True) * self.a * 0.1
        if self.form == "bmm":
            low = torch.bmm(x.unsqueeze(1), self.b.unsqueeze(-1))
            return base.add(torch.bmm(low, self.a.unsqueeze(1)).squeeze(1), alpha=0.1)
        return torch.addcmul(base, torch.einsum("ni,ni->n", x, self.b)[:, None], self.a, value=0.1)


@pytest.mark.parametrize("form", ["elementwise", "bmm", "addcmul"])
def test_a_delta_of_each_row_is_never_merged(form: str) -> None:
    compiled = check(RowDelta(form), (normal(4, 16),), rewrites={"MergedLinear": 0})
    assert compiled.report.choices == []
    assert "[4, 24, 16]" not in compiled.ir
    assert "[4, 16, 24]" not in compiled.ir
