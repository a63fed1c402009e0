"""Sub-models that slice the weights of a larger one in each forward, and linear layers over concatenations.

- MatFormer: RAIVNLab/MatFormer-OLMo, olmo/model.py (``OlmoSequentialBlock.forward``).
- LightHuBERT: mechanicalsea/lighthubert, lighthubert/modules/scaling_linear.py (``SLinear``) and
  scaling_layernorm.py (``SLayerNorm``): ``_sample_parameters`` in each forward.
- Hydra: zankner/Hydra, hydra/model/hydra_heads/mlp_head.py (``ResBlock`` over ``cat(hidden, embeddings)``).
- Chimera: kafkayu/Chimera, chimera/model/Chimera_model.py (trigram encoder, head over two hidden states).
- Activator and NiNformer: Abdullah-88/Activator, activator.py; Abdullah-88/NiNformer, ninformer.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import regraft
from regraft.testing import randomise
from tests.zoo.checking import at_sizes, check, normal

SIZES = [{"S": 6}, {"S": 1}, {"S": 17}]


class MatFormerBlock(nn.Module):
    """A pre-norm FFN of which the first ``1 / factor`` of the hidden features are used."""

    def __init__(self, dim: int = 16, hidden: int = 64, factor: int = 1) -> None:
        super().__init__()
        self.ff_norm = nn.LayerNorm(dim)
        self.ff_proj, self.ff_out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        og_x = x
        x = self.ff_norm(x)
        if self.factor == 1:
            return og_x + self.ff_out(F.gelu(self.ff_proj(x)))
        k = int(self.ff_proj.weight.shape[0] / self.factor)
        w_proj, b_proj = self.ff_proj.weight[:k], self.ff_proj.bias[:k]
        x = F.gelu(F.linear(x, w_proj, b_proj))
        return og_x + F.linear(x, self.ff_out.weight[:, :k], self.ff_out.bias)


class SLinear(nn.Linear):
    """``_sample_parameters``: prefixes of the super weight, copied in each forward."""

    def set_sample_config(self, sample_in: int, sample_out: int) -> None:
        self.sample_in, self.sample_out = sample_in, sample_out

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight[:, : self.sample_in][: self.sample_out, :].contiguous()
        return F.linear(x, weight, self.bias[: self.sample_out].contiguous())


class SLayerNorm(nn.LayerNorm):
    def set_sample_config(self, dim: int) -> None:
        self.sample_dim = dim

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight[: self.sample_dim], self.bias[: self.sample_dim]
        return F.layer_norm(x, (self.sample_dim,), weight, bias, self.eps)


class LightHuBERTLayer(nn.Module):
    """A post-norm encoder layer of ``dim`` features, inside a larger one."""

    def __init__(self, dim: int = 16, heads: int = 3, ratio: float = 2.0, super_dim: int = 24) -> None:
        super().__init__()
        self.heads, inner = heads, heads * 4
        self.q, self.k, self.v = (SLinear(super_dim, super_dim) for _ in range(3))
        self.out, self.norm1, self.norm2 = (
            SLinear(super_dim, super_dim),
            SLayerNorm(super_dim),
            SLayerNorm(super_dim),
        )
        self.fc1, self.fc2 = SLinear(super_dim, 4 * super_dim), SLinear(4 * super_dim, super_dim)
        for layer in (self.q, self.k, self.v):
            layer.set_sample_config(dim, inner)
        self.out.set_sample_config(inner, dim)
        self.fc1.set_sample_config(dim, int(dim * ratio))
        self.fc2.set_sample_config(int(dim * ratio), dim)
        for norm in (self.norm1, self.norm2):
            norm.set_sample_config(dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, self.heads, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class HydraHead(nn.Module):
    """``x + silu(linear(x))`` over the base's hidden state, the same for all paths, and embeddings."""

    def __init__(self, vocab: int = 40, dim: int = 16, tokens: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        wide = (tokens + 1) * dim
        self.linear, self.res_connection = nn.Linear(wide, dim), nn.Linear(wide, dim)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        paths = ids.shape[1]
        parts = [hidden.expand(-1, paths, -1), *(self.embed(ids[..., i]) for i in range(ids.shape[-1]))]
        x = torch.cat(parts, dim=-1)
        return self.head(self.res_connection(x) + F.silu(self.linear(x)))


class ChimeraHead(nn.Module):
    """A trigram encoder and a head over ``cat(hidden, encoded)``."""

    def __init__(self, vocab: int = 40, dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.res = nn.Linear(3 * dim, 3 * dim)
        self.down = nn.Linear(3 * dim, dim)
        self.head = nn.Linear(2 * dim, vocab, bias=False)

    def forward(self, hidden: Tensor, ids: Tensor) -> Tensor:
        e = self.embed(ids)
        trigram = torch.cat([e[:, :-2], e[:, 1:-1], e[:, 2:]], dim=-1)
        encoded = self.down(trigram + F.silu(self.res(trigram)))
        return self.head(torch.cat([hidden, encoded], dim=-1))


class Activator(nn.Module):
    """``P3(LN(gelu(P1 y)) * LN(P2 y)) + x``: two projections of one input, one norm used twice."""

    def __init__(self, dim: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.norm, self.act_norm = nn.LayerNorm(dim), nn.LayerNorm(hidden)
        self.proj_1, self.proj_2 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.proj_3 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.norm(x)
        u, v = self.act_norm(F.gelu(self.proj_1(x))), self.act_norm(self.proj_2(x))
        return self.proj_3(u * v) + residual


class MixerBlock(nn.Module):
    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.norm_tokens, self.norm_channels = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm_tokens(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm_channels(x))


class NiNBlock(nn.Module):
    """A gate from a mixer; the same norm before the gating unit and before the FFN."""

    def __init__(self, dim: int = 16, tokens: int = 6) -> None:
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.mixer = MixerBlock(dim, tokens)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.norm(x)
        x = self.proj(x) * self.mixer(x) + residual
        return x + self.ffn(self.norm(x))


def test_matformer() -> None:
    for factor in (1, 2, 4):
        inputs = at_sizes([2, "S", 16], SIZES)
        check(MatFormerBlock(factor=factor), *inputs, dynamic_shapes=({1: Dim.AUTO},))


def test_matformer_sub_models_share_one_weight_file(tmp_path: Path) -> None:
    model = randomise(MatFormerBlock().eval())
    x = normal(2, 5, 16)
    functions, eager = {}, {}
    for factor in (1, 2, 4):
        model.factor = factor
        functions[f"part{factor}"] = regraft.compile(model, (x,))
        eager[f"part{factor}"] = model(x).detach()
    regraft.Bundle(functions).save(tmp_path / "all")
    loaded = regraft.load(tmp_path / "all")
    for name, expected in eager.items():
        torch.testing.assert_close(loaded[name](x), expected)
    weights = sum(p.nbytes for p in model.parameters())
    stored = (tmp_path / "all" / "weights.safetensors").stat().st_size
    assert stored < 2.5 * weights


def test_lighthubert() -> None:
    model = LightHuBERTLayer()
    compiled = check(model, *at_sizes([2, "S", 16], SIZES), dynamic_shapes=({1: Dim.AUTO},))
    graph = compiled.ir[compiled.ir.index("func @forward") :]
    assert "aten.slice" not in graph, "slices of weights are constants"


def test_hydra() -> None:
    generator = torch.Generator().manual_seed(0)
    arguments = [
        (normal(1, 1, 16, seed=p), torch.randint(0, 40, (1, p, 2), generator=generator)) for p in (8, 1, 20)
    ]
    shapes = {"hidden": None, "ids": {1: Dim.AUTO}}
    fired = {"SplitConcatenation": 2}
    check(HydraHead(), *arguments, rewrites=fired, dynamic_shapes=shapes)


def test_chimera() -> None:
    generator = torch.Generator().manual_seed(0)
    arguments = [(normal(2, 5, 16), torch.randint(0, 40, (2, 7), generator=generator))]
    check(ChimeraHead(), *arguments, rewrites={"SplitConcatenation": 0})


class ProjectedEmbedding(nn.Module):
    """ALBERT's factorised embedding: a narrow table and a projection (arXiv:1909.11942, section 3.1)."""

    def __init__(self, vocab: int = 40, narrow: int = 8, dim: int = 32) -> None:
        super().__init__()
        self.word_embeddings, self.projection = nn.Embedding(vocab, narrow), nn.Linear(narrow, dim)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.projection(self.word_embeddings(ids)))


def test_a_table_of_results_where_memory_allows() -> None:
    model = randomise(ProjectedEmbedding().eval())
    ids = torch.randint(0, 40, (2, 30), generator=torch.Generator().manual_seed(0))
    check(model, (ids,), (ids[:1],), rewrites={"MergedTable": 1}, dynamic_shapes=({0: Dim.AUTO},))
    for limit, form in ((None, "table"), (0, "as written")):
        compiled = regraft.compile(model, (ids,), memory_limit=limit)
        (choice,) = compiled.report.choices
        assert choice.forms[choice.order[0]] == form
        torch.testing.assert_close(compiled(ids), model(ids).detach())


def test_activator() -> None:
    check(Activator(), *at_sizes([2, "S", 16], SIZES), dynamic_shapes=({1: Dim.AUTO},))


def test_ninformer() -> None:
    check(NiNBlock(), (normal(2, 6, 16),), (normal(2, 6, 16, seed=1),))
