"""Approximations that a user asks for: layers of lower rank, and sub-layers left out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.pytorch_utils import Conv1D

import regraft
from regraft import Exactness, LowRank, WithoutLayers, rank_layers
from regraft.errors import NumericsMismatch, OptionError, RegraftError
from regraft.testing import assert_close, randomise, relative_error

WIDTH, HIDDEN = 32, 64


class FFN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), Conv1D(WIDTH, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def nearly_low_rank(rank: int = 3, noise: float = 1e-3) -> FFN:
    model = randomise(FFN().eval())
    with torch.no_grad():
        for seed, parameter in enumerate((model.up.weight, model.down.weight)):
            rows, columns = parameter.shape
            product = normal(rows, rank, seed=seed) @ normal(rank, columns, seed=seed + 9) / 10
            parameter.copy_(product + noise * normal(rows, columns, seed=seed + 20))
    return model


def truncated(model: FFN, rank: int) -> FFN:
    """The model with the best approximation of each weight."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (model.up.weight, model.down.weight):
            u, s, v = torch.linalg.svd(parameter.double(), full_matrices=False)
            parameter.copy_((u[:, :rank] * s[:rank]) @ v[:rank])
    return model


LOOSE = Exactness.APPROX(0.1)


@pytest.mark.parametrize(
    "asked", [{"energy": 0.999}, {"rank": 3}, {"ranks": {"up.weight": 3, "down.weight": 3}}]
)
def test_factors_are_the_best_of_their_rank(asked: dict[str, Any]) -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    approximation = LowRank(**asked)
    compiled = regraft.compile(
        model,
        (x,),
        dynamic_shapes=({0: Dim.AUTO},),
        plugins=[approximation],
        exactness=LOOSE,
        verify=True,
        memory_limit=0,
    )
    assert [layer.rank for layer in approximation.layers] == [3, 3]
    assert all(0 < layer.error < 0.05 for layer in approximation.layers)
    assert "at rank 3, 0.14 of the size, error 0.0" in str(approximation)
    assert 0 < compiled.report.error < 0.1
    best = truncated(model, 3)
    for rows in (7, 1, 20):
        x = normal(rows, WIDTH, seed=rows)
        with torch.no_grad():
            assert_close(compiled(x), copy.deepcopy(best).double()(x.double()), best(x), reassociates=True)


def test_a_refresh_takes_the_new_weights() -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    compiled = regraft.compile(model, (x,), plugins=[LowRank(rank=3)], exactness=LOOSE)
    with torch.no_grad():
        for parameter in (model.up.weight, model.down.weight):
            parameter.copy_(parameter.flip(0))
    compiled.refresh(model)
    with torch.no_grad():
        assert relative_error(compiled(x), model(x)) < 0.1


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    compiled = regraft.compile(model, (x,), plugins=[LowRank(rank=3)], exactness=LOOSE)
    compiled.save(tmp_path / "ffn")
    assert torch.equal(regraft.load(tmp_path / "ffn")(x), compiled(x))


def test_layers_that_would_not_be_smaller_stay() -> None:
    model, x = randomise(FFN().eval()), normal(7, WIDTH)
    approximation = LowRank(rank=30)
    compiled = regraft.compile(model, (x,), plugins=[approximation], exactness=LOOSE, verify=True)
    assert approximation.layers == []
    assert compiled.report.error < 1e-5
    assert str(approximation) == "no layer became smaller"


def test_it_must_be_allowed_and_within_the_tolerance() -> None:
    model, x = randomise(FFN().eval()), normal(7, WIDTH)
    with pytest.raises(RegraftError, match=r"Exactness.APPROX\(tolerance\)"):
        regraft.compile(model, (x,), plugins=[LowRank(rank=2)])
    with pytest.raises(NumericsMismatch):
        regraft.compile(model, (x,), plugins=[LowRank(rank=2)], exactness=Exactness.APPROX(1e-3), verify=True)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "one of 'energy', 'rank' and 'ranks'"),
        ({"energy": 0.9, "rank": 3}, "one of 'energy', 'rank' and 'ranks'"),
        ({"energy": 0.0}, "a number above 0"),
        ({"energy": 1.5}, "a number above 0"),
        ({"energy": True}, "a number above 0"),
        ({"rank": 0}, "a positive int"),
        ({"ranks": {"up.weight": -1}}, "a positive int"),
    ],
)
def test_bad_ranks(asked: dict[str, Any], expected: str) -> None:
    with pytest.raises(OptionError, match=expected):
        LowRank(**asked)


def test_an_unknown_weight() -> None:
    with pytest.raises(RegraftError, match=r"up\.weight"):
        regraft.compile(
            FFN().eval(), (normal(7, WIDTH),), plugins=[LowRank(ranks={"upp.weight": 3})], exactness=LOOSE
        )


class Branch(nn.Module):
    """What is added to the residual: a pair, as attentions return one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.tanh(self.inner(self.norm(x))), None


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = Branch(), Branch()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)[0]
        return x + self.mlp(x)[0]


def stack(depth: int = 3) -> nn.Sequential:
    model = randomise(nn.Sequential(*(Layer() for _ in range(depth))).eval())
    with torch.no_grad():
        model[1].mlp.inner.weight.mul_(0.01)
        model[1].mlp.inner.bias.mul_(0.01)
        model[2].attention.inner.weight.mul_(0.1)
        model[2].attention.inner.bias.mul_(0.1)
    return model


class Zero(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(x), None


def test_layers_left_out() -> None:
    model, x = stack(), normal(2, 5, WIDTH)
    plugin = WithoutLayers(["1.mlp", "2.attention"])
    compiled = regraft.compile(
        model,
        (x,),
        dynamic_shapes=({1: Dim.AUTO},),
        plugins=[plugin],
        exactness=Exactness.APPROX(0.5),
        verify=True,
    )
    assert 0 < compiled.report.error < 0.5
    assert compiled.ir.count("aten.tanh(") == 4, "nothing of the two is left"
    assert compiled.ir.count("aten.full(") == 0
    model[1].mlp, model[2].attention = Zero(), Zero()
    for length in (5, 1, 9):
        x = normal(2, length, WIDTH, seed=length)
        with torch.no_grad():
            assert_close(compiled(x), copy.deepcopy(model).double()(x.double()), model(x), reassociates=True)


def test_layers_ranked_by_what_their_absence_changes() -> None:
    model = stack()
    names = [f"{i}.{part}" for i in range(3) for part in ("attention", "mlp")]
    examples = [(normal(2, 5, WIDTH, seed=s),) for s in range(3)]
    ranking = rank_layers(model, examples, names, count=3)
    assert [each.name for each in ranking[:2]] == ["1.mlp", "2.attention"]
    changes = [each.change for each in ranking]
    assert changes == sorted(changes)
    assert 0 < changes[0] < 0.05
    assert not any(module._forward_hooks for module in model.modules()), "the model is as it was"
    chosen = [each.name for each in ranking[:1]]
    compiled = regraft.compile(
        model, examples[0], plugins=[WithoutLayers(chosen)], exactness=LOOSE, verify=True
    )
    assert compiled.report.error < 0.1


def test_bad_layers() -> None:
    model, x = stack(), normal(2, 5, WIDTH)
    with pytest.raises(RegraftError, match=r"1\.mlp"):
        regraft.compile(model, (x,), plugins=[WithoutLayers("1.mlpp")], exactness=LOOSE)
    with pytest.raises(RegraftError, match="APPROX"):
        regraft.compile(model, (x,), plugins=[WithoutLayers("1.mlp")])
    with pytest.raises(OptionError, match="paths of submodules"):
        WithoutLayers([])
    with pytest.raises(OptionError, match=r"1\.mlp"):
        rank_layers(model, [(x,)], ["1.mlpp"])
    with pytest.raises(OptionError, match="needs names of layers and examples"):
        rank_layers(model, [], ["1.mlp"])


def test_not_from_the_cache(tmp_path: Path) -> None:
    model, x = nearly_low_rank(), normal(7, WIDTH)
    for _ in range(2):
        approximation = LowRank(rank=3)
        compiled = regraft.compile(model, (x,), plugins=[approximation], exactness=LOOSE, cache=tmp_path)
        assert compiled.report.cache.status == "not cached"
        assert len(approximation.layers) == 2
