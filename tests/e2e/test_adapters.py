"""Several adapters over one base, switched between calls."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.pytorch_utils import Conv1D

import regraft
from regraft.errors import ArtefactError, OptionError
from regraft.testing import assert_close, randomise

WIDTH, HIDDEN = 24, 32


class Block(nn.Module):
    """An FFN behind a norm, and a layer that holds its weight as ``[in, out]``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH, bias=False)
        self.mix = Conv1D(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(torch.relu(self.up(y)) * self.mix(y))


def block() -> Block:
    return randomise(Block().eval())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(layer: str, inner: int, outer: int, rank: int, seed: int = 0) -> dict[str, Tensor]:
    return {
        f"{layer}.lora_A.weight": normal(rank, inner, seed=seed) / 4,
        f"{layer}.lora_B.weight": normal(outer, rank, seed=seed + 1) / 4,
    }


ADAPTERS: dict[str, dict[str, Any]] = {
    "french": {**factors("up", WIDTH, HIDDEN, 2), **factors("mix", WIDTH, HIDDEN, 2, 5), "scaling": 2.0},
    "german": {
        **factors("base_model.model.up", WIDTH, HIDDEN, 3, 10),
        **factors("down", HIDDEN, WIDTH, 1, 12),
        "norm.bias": normal(WIDTH, seed=3) / 4,
        "down.weight": normal(WIDTH, HIDDEN, seed=4) / 8,
    },
}


def merged(model: Block, name: str | None) -> Block:
    """The model with the adapter's changes in its weights."""
    model = copy.deepcopy(model)
    if name is None:
        return model
    adapter = {key.removeprefix("base_model.model."): value for key, value in ADAPTERS[name].items()}
    with torch.no_grad():
        for layer in ("up", "down", "mix"):
            if f"{layer}.lora_A.weight" in adapter:
                product = adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]
                product = product * adapter.get("scaling", 1.0)
                getattr(model, layer).weight += product.T if layer == "mix" else product
        for parameter, delta in model.named_parameters():
            if parameter in adapter:
                delta += adapter[parameter]
    return model


def assert_like(compiled: Any, model: Block, x: Tensor) -> None:
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        assert_close(compiled(x), expected, model(x), reassociates=True)


NAMES = (None, "french", "german", "french", None)


@pytest.mark.parametrize("dynamic", [False, True])
def test_switching(dynamic: bool) -> None:
    model, x = block(), normal(5, WIDTH)
    shapes = ({0: Dim.AUTO},) if dynamic else None
    compiled = regraft.compile(model, (x,), dynamic_shapes=shapes, adapters=ADAPTERS, verify=True)
    assert compiled.adapter_names == ("french", "german")
    assert compiled.active_adapter is None
    plan = compiled.plan
    for name in NAMES:
        compiled.set_adapter(name)
        assert compiled.active_adapter == name
        for rows in (1, 5, 11) if dynamic else (5,):
            assert_like(compiled, merged(model, name), normal(rows, WIDTH, seed=rows))
    assert compiled.plan is plan, "nothing is compiled anew"


def test_low_ranks_are_epilogues(tmp_path: Path) -> None:
    """The base weights stay constants of the products; only the small factors are picked in a call."""
    adapters = {"a": factors("up", WIDTH, HIDDEN, 2), "b": factors("mix", WIDTH, HIDDEN, 1, 5)}
    compiled = regraft.compile(block(), (normal(5, WIDTH),), adapters=adapters, verify="each")
    assert compiled.report.rewrites["LowRankEpilogue"].hits == 2
    assert any("2 adapters over 2 weights" in note for note in compiled.report.notes)
    again = regraft.compile(block(), (normal(5, WIDTH),), adapters=adapters, cache=tmp_path)
    assert again.report.cache.status == "not cached"


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = block(), normal(5, WIDTH)
    compiled = regraft.compile(model, (x,), adapters=ADAPTERS)
    compiled.set_adapter("german")
    compiled.save(tmp_path / "block")
    loaded = regraft.load(tmp_path / "block")
    assert loaded.active_adapter == "german"
    for name in NAMES:
        loaded.set_adapter(name)
        assert_like(loaded, merged(model, name), x)
    assert compiled.active_adapter == "german", "what is loaded has a switch of its own"
    manifest = tmp_path / "block" / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"french"', '"german", "x", "y"').replace('"adapters"', '"a"')
    )
    assert regraft.load(tmp_path / "block").adapter_names == ()


def test_an_artefact_without_its_switch_is_refused(tmp_path: Path) -> None:
    compiled = regraft.compile(nn.ReLU().eval(), (normal(3),))
    compiled.save(tmp_path / "relu")
    manifest = tmp_path / "relu" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"adapters": []', '"adapters": ["a"]'))
    with pytest.raises(ArtefactError, match="nothing says which adapter applies"):
        regraft.load(tmp_path / "relu")


def test_refresh_keeps_the_adapters() -> None:
    model, x = block(), normal(5, WIDTH)
    compiled = regraft.compile(model, (x,), adapters=ADAPTERS)
    compiled.set_adapter("french")
    with torch.no_grad():
        model.up.weight.mul_(0.5)
    compiled.refresh(model)
    assert compiled.active_adapter == "french"
    assert_like(compiled, merged(model, "french"), x)


def test_tied_weights_change_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    model, x = randomise(Tied().eval()), normal(3, WIDTH)
    adapter = factors("second", WIDTH, WIDTH, 2)
    compiled = regraft.compile(model, (x,), adapters={"a": adapter})
    compiled.set_adapter("a")
    with torch.no_grad():
        model.first.weight.add_(adapter["second.lora_B.weight"] @ adapter["second.lora_A.weight"])
        expected = copy.deepcopy(model).double()(x.double())
        assert_close(compiled.plan and _run(compiled, x), expected, model(x), reassociates=True)


def _run(compiled: Any, x: Tensor) -> Tensor:
    """The results of the plan: a call would notice that the weights were written to."""
    return compiled.effects.run(compiled.plan, [x], {})[0]


def test_in_a_bundle(tmp_path: Path) -> None:
    model, x = block(), normal(5, WIDTH)
    adapted, plain = regraft.compile(model, (x,), adapters=ADAPTERS), regraft.compile(model, (x,))
    regraft.Bundle({"adapted": adapted, "plain": plain}).save(tmp_path / "both")
    loaded = regraft.load(tmp_path / "both")
    loaded.adapted.set_adapter("french")
    assert_like(loaded.adapted, merged(model, "french"), x)
    assert_like(loaded.plain, model, x)


A, B = normal(2, WIDTH), normal(HIDDEN, 2)
BAD = {
    "no dict": ([], "dict of state dicts"),
    "empty": ({}, "dict of state dicts"),
    "no state dict": ({"a": A}, "a state dict"),
    "no name": ({1: {}}, "names of adapters"),
    "half a pair": ({"a": {"up.lora_A.weight": A}}, "no 'up.lora_B'"),
    "wrong layer": ({"a": {"upp.lora_A.weight": A, "upp.lora_B.weight": B}}, "up.weight"),
    "wrong weight": ({"a": {"norm.scale": A}}, "no weight 'norm.scale'"),
    "wrong rank": ({"a": {"up.lora_A": A, "up.lora_B": normal(HIDDEN, 3)}}, r"\[rank, in\]"),
    "wrong size": ({"a": {"up.lora_A": normal(2, 7), "up.lora_B": B}}, r"\[32, 24\]"),
    "flipped": ({"a": {"up.lora_A": B.T, "up.lora_B": A.T}}, r"\[32, 24\]"),
    "wrong delta": ({"a": {"up.weight": normal(3, 3)}}, "as the weight"),
    "no tensor": ({"a": {"up.weight": 3}}, "a tensor of floats"),
    "integers": ({"a": {"up.weight": torch.zeros(HIDDEN, WIDTH, dtype=torch.int64)}}, "a tensor of floats"),
    "no scaling": ({"a": {"scaling": "big"}}, "lora_alpha / r"),
    "a scaling of nan": (
        {"a": {"scaling": math.nan}},
        r"adapters\[.a.\]\[.scaling.\]: expected a finite number",
    ),
    "a scaling of inf": ({"a": {"scaling": -math.inf}}, "a finite number, lora_alpha"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    adapters, expected = BAD[case]
    with pytest.raises(OptionError, match=expected):
        regraft.compile(block(), (normal(5, WIDTH),), adapters=adapters)


def test_unknown_adapters() -> None:
    model, x = block(), normal(5, WIDTH)
    compiled = regraft.compile(model, (x,), adapters=ADAPTERS)
    with pytest.raises(OptionError, match="french"):
        compiled.set_adapter("frensh")
    with pytest.raises(OptionError, match="compiled without adapters"):
        regraft.compile(model, (x,)).set_adapter("french")
