"""The family of LoRA, as the authors write it; LoRA itself is in test_low_rank.

- Block-LoRA: arXiv:2501.16720, equations 4 to 6 (one down projection, up projections summed); no code.
- DoRA: peft, tuners/lora/dora.py (``DoraLinearLayer.forward``), with its base result recomputed.
- MixLoRA: TUDB-Labs/MixLoRA, mixlora/model.py (``_mixtral_forward`` with ``common_gate`` and ``common_up``).
  The dispatch is left out: every expert sees every token, times a weight that is 0 where it was not chosen.
- GenerativeAdapter: chentong0/generative-adapter, fastlora/mistral/modeling_mistral.py (``FastLoraLinear``,
  "aassbb", Frobenius and SVD normalisation), its context fixed; also behind magnitudes as DoRA's.
- EGGROLL: ESHyperscale/HyperscaleES, src/hyperscalees/noiser/eggroll.py (``do_mm``).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import regraft
from regraft.testing import randomise
from tests.zoo.checking import at_sizes, check, normal

SIZES = [{"S": 6}, {"S": 1}, {"S": 33}]


class BlockLoRALinear(nn.Module):
    """``W x + s * sum_i B_i (A_1 x)``."""

    def __init__(self, width: int, out: int, blocks: int = 4, rank: int = 8) -> None:
        super().__init__()
        self.base = nn.Linear(width, out)
        self.shared_a = nn.Parameter(torch.zeros(rank // blocks, width))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(out, rank // blocks)) for _ in range(blocks))
        self.scaling = 16 / rank

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(x, self.shared_a)
        up = sum(F.linear(down, b) for b in self.b)
        return self.base(x) + self.scaling * up


class PeftDoraLinear(nn.Module):
    """``base(x) + (m / ||W + s B A|| - 1) * W x + m / ||W + s B A|| * s B A x``."""

    def __init__(self, width: int, out: int, rank: int = 3) -> None:
        super().__init__()
        self.base_layer = nn.Linear(width, out)
        self.lora_A, self.lora_B = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)
        self.weight = nn.Parameter(torch.ones(out))
        self.scaling = 0.5

    def get_weight_norm(self, weight: Tensor, lora_weight: Tensor) -> Tensor:
        return torch.linalg.norm(weight + self.scaling * lora_weight, dim=1).to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x_eye = torch.eye(self.lora_A.weight.shape[1], dtype=x.dtype)
        lora_weight = self.lora_B(self.lora_A(x_eye)).T
        weight_norm = self.get_weight_norm(self.base_layer.weight, lora_weight.detach()).detach()
        mag_norm_scale = (self.weight / weight_norm).view(1, -1)
        lora_result = self.lora_B(self.lora_A(x))
        base_result = F.linear(x, self.base_layer.weight)
        result_dora = (mag_norm_scale - 1) * base_result + mag_norm_scale * lora_result * self.scaling
        return self.base_layer(x) + result_dora


class MixLoRA(nn.Module):
    """Experts that share the base's three matrices, each with LoRA factors of its own."""

    def __init__(self, dim: int = 16, hidden: int = 32, experts: int = 4, rank: int = 2) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, experts, bias=False)
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.a = nn.ParameterDict({n: torch.zeros(experts, rank, s) for n, s in self.sizes(dim, hidden)})
        self.b = nn.ParameterDict(
            {n: torch.zeros(experts, dim if n == "w2" else hidden, rank) for n, _ in self.sizes(dim, hidden)}
        )
        self.experts, self.scaling = experts, 2.0

    @staticmethod
    def sizes(dim: int, hidden: int) -> list[tuple[str, int]]:
        return [("w1", dim), ("w3", dim), ("w2", hidden)]

    def lora(self, name: str, expert: int, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a[name][expert]), self.b[name][expert]) * self.scaling

    def forward(self, x: Tensor) -> Tensor:
        routing = torch.softmax(self.gate(x), dim=-1)
        top, chosen = torch.topk(routing, 2, dim=-1)
        top = top / top.sum(dim=-1, keepdim=True)
        weights = torch.zeros_like(routing).scatter(-1, chosen, top)
        common_gate, common_up = self.w1(x), self.w3(x)
        final = torch.zeros_like(x)
        for e in range(self.experts):
            gate = common_gate + self.lora("w1", e, x)
            up = common_up + self.lora("w3", e, x)
            act = F.silu(gate) * up
            out = self.w2(act) + self.lora("w2", e, act)
            final = final + out * weights[..., e, None]
        return final


class GenerativeAdapter(nn.Module):
    """A linear layer whose adapter comes from ``context``, which is fixed."""

    def __init__(self, width: int, out: int, context: Tensor, rank: int = 4) -> None:
        super().__init__()
        self.base = nn.Linear(width, out, bias=False)
        self.lora_A1, self.lora_A2, self.lora_A3 = (nn.Linear(width, rank, bias=False) for _ in range(3))
        self.lora_B = nn.Linear(rank, out, bias=False)
        self.register_buffer("context", context)
        self.scaling = 64 / 128

    def normalised(self, states: Tensor) -> Tensor:
        return states / torch.linalg.matrix_norm(states, keepdim=True)

    def states(self) -> Tensor:
        hidden = self.context * torch.rsqrt(self.context.pow(2).mean(-1, keepdim=True) + 1e-6)
        keys, values = self.lora_A2(hidden), self.lora_A3(hidden)
        return self.normalised(keys.transpose(-1, -2) @ values / math.sqrt(hidden.shape[-2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A1(x) @ self.states()) * self.scaling


class SVDGenerativeAdapter(GenerativeAdapter):
    """The states' singular vectors alone, the first ones of them."""

    max_rank = 3

    def normalised(self, states: Tensor) -> Tensor:
        u, _, vh = torch.linalg.svd(states, full_matrices=False)
        return u[..., : self.max_rank] @ vh[..., : self.max_rank, :]


class DoraGenerativeAdapter(SVDGenerativeAdapter):
    """``m (W + s B Sᵀ A) / ||W + s B Sᵀ A||``, the norm that of each output."""

    def __init__(self, width: int, out: int, context: Tensor) -> None:
        super().__init__(width, out, context)
        self.magnitude = nn.Parameter(torch.ones(out))

    def forward(self, x: Tensor) -> Tensor:
        change = self.lora_B.weight @ self.states().transpose(-1, -2) @ self.lora_A1.weight
        norm = torch.linalg.norm(self.base.weight + self.scaling * change, dim=1)
        low = self.lora_B(self.lora_A1(x) @ self.states())
        return (self.base(x) + low * self.scaling) * (self.magnitude / norm)


class EggrollLinear(nn.Module):
    """``x_i W^T + x_i B_i A_i^T``: every row of the batch has a rank-1 delta of its own."""

    def __init__(self, width: int, out: int, population: int, sigma: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out, width))
        self.register_buffer("a", normal(population, out, 1, seed=1))
        self.register_buffer("b", normal(population, width, 1, seed=2))
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        base = x @ self.weight.T
        low = torch.einsum("ni,nir->nr", x, self.b)
        return base + torch.einsum("nr,nor->no", low, self.a) * self.sigma


@pytest.mark.parametrize("layer", [BlockLoRALinear, PeftDoraLinear])
def test_merged_into_the_base(layer: type[nn.Module]) -> None:
    model = nn.Sequential(layer(16, 24), nn.GELU(), layer(24, 16))
    inputs = at_sizes([2, "S", 16], SIZES)
    check(model, *inputs, rewrites={"MergedLinear": 2}, dynamic_shapes=({1: Dim.AUTO},))


def test_mixlora() -> None:
    """The base's last projection runs once for all experts, and its LoRA factors beside it."""
    inputs = at_sizes([2, "S", 16], SIZES)
    check(MixLoRA(), *inputs, rewrites={"SharedProduct": 1}, dynamic_shapes=({1: Dim.AUTO},))
    compiled = regraft.compile(randomise(MixLoRA().eval()), inputs[0], memory_limit=0)
    assert compiled.report.flops["after"] < compiled.report.flops["before"]


@pytest.mark.parametrize("layer", [GenerativeAdapter, SVDGenerativeAdapter, DoraGenerativeAdapter])
def test_generative_adapter_of_a_fixed_context(layer: type[GenerativeAdapter]) -> None:
    """One layer is left: the context, the singular vectors and the norm are in its weight."""
    inputs = at_sizes([2, "S", 16], SIZES)
    model = layer(16, 24, normal(9, 16, seed=3))
    compiled = check(model, *inputs, rewrites={"MergedLinear": 1}, dynamic_shapes=({1: Dim.AUTO},))
    graph = compiled.ir[compiled.ir.index("func @forward") :]
    assert graph.count(" = aten.") == graph.count("aten.linear(") == 1


def test_new_weights_give_another_adapter() -> None:
    model, x = randomise(SVDGenerativeAdapter(16, 24, normal(9, 16, seed=3)).eval()), normal(5, 16)
    compiled = regraft.compile(model, (x,))
    with torch.no_grad():
        model.lora_A2.weight.add_(normal(4, 16, seed=8))
        compiled.refresh(model)
        torch.testing.assert_close(compiled(x), model(x))


def test_eggroll_is_never_merged() -> None:
    """A merged weight would be one for each row: the base matrix stays the only one of its size."""
    compiled = check(EggrollLinear(16, 24, population=4), (normal(4, 16),), rewrites={"MergedLinear": 0})
    assert compiled.report.choices == []
    assert "[4, 24, 16]" not in compiled.ir
    assert "[4, 16, 24]" not in compiled.ir
