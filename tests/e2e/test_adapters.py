"""Several adapters over one base, switched between calls."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.pytorch_utils import Conv1D

import regraft
from regraft.errors import ArtefactError, NumericsMismatch, OptionError
from regraft.testing import PathCounts, assert_close, randomise

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


def test_no_message_shows_all_of_a_tensor() -> None:
    for adapters in (
        [normal(64, 64)],
        {"a": normal(64, 64)},
        {"a": {"up.weight": torch.ones(64, dtype=torch.int64)}},
    ):
        with pytest.raises(OptionError) as caught:
            regraft.compile(block(), (normal(5, WIDTH),), adapters=adapters)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 200
    assert "got a Tensor of torch.int64 [64]" in str(caught.value)


@pytest.mark.parametrize("scaling", [torch.tensor(2.0), torch.tensor(2), np.float32(2.0), 2])
def test_a_scaling_may_be_any_kind_of_number(scaling: Any) -> None:
    model, x = block(), normal(5, WIDTH)
    compiled = regraft.compile(model, (x,), adapters={"french": {**ADAPTERS["french"], "scaling": scaling}})
    compiled.set_adapter("french")
    assert_like(compiled, merged(model, "french"), x)


@pytest.mark.parametrize("scaling", [torch.ones(2), torch.tensor(True), torch.tensor(math.nan), 1j, None])
def test_a_scaling_that_is_no_number(scaling: Any) -> None:
    with pytest.raises(OptionError, match="a finite number, lora_alpha"):
        regraft.compile(block(), (normal(5, WIDTH),), adapters={"a": {"scaling": scaling}})


# -- weights with two names ----------------------------------------------------------------------


class Twice(nn.Module):
    """One layer under two names, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = self.first
        self.third, self.fourth = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.fourth.weight = self.third.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        return self.fourth(torch.relu(self.third(x)))


@pytest.mark.parametrize("layer", ["first", "second", "third", "fourth"])
@pytest.mark.parametrize("exported", [False, True])
def test_a_weight_is_found_under_each_of_its_names(layer: str, exported: bool) -> None:
    model, x = randomise(Twice().eval()), normal(3, WIDTH)
    source = torch.export.export(model, (x,)) if exported else model
    args = () if exported else (x,)
    adapter = factors(layer, WIDTH, WIDTH, 2)
    change = adapter[f"{layer}.lora_B.weight"] @ adapter[f"{layer}.lora_A.weight"]
    if exported:  # a square weight, of which nobody knows that it is an nn.Linear's
        adapter = {f"{layer}.weight": change}
    compiled = regraft.compile(source, args, adapters={"a": adapter}, verify=True)
    compiled.set_adapter("a")
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_submodule(layer).weight.add_(change)
        assert_close(compiled(x), copy.deepcopy(changed).double()(x.double()), changed(x), reassociates=True)


def test_an_adapter_changes_a_tied_weight_under_one_name() -> None:
    model, x = randomise(Twice().eval()), normal(3, WIDTH)
    both = {f"{layer}.weight": normal(WIDTH, WIDTH) for layer in ("third", "fourth")}
    with pytest.raises(OptionError, match=r"'third.weight' and 'fourth.weight', which are one tied weight"):
        regraft.compile(model, (x,), adapters={"a": both})
    apart = {name[0]: {name: change / 8} for name, change in both.items()}
    regraft.compile(model, (x,), adapters=apart, verify=True)


# -- in conditions and loops ---------------------------------------------------------------------


class Steps(nn.Module):
    """Layers in arms, in an arm within a trip, in the test of a loop, and around all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.step, self.test = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.first(x))
        if x.sum() > 0:
            x = self.second(x)
        else:
            x = self.first(x) - 1
        count = torch.zeros((), dtype=torch.int64)
        while torch.sigmoid(self.test(x)).mean() < 0.9 and count < 5:
            if x.mean() > 0:
                x = torch.tanh(self.step(x)) / 2
            else:
                x = self.second(x) + 0.3
            count = count + 1
        return x, count


STEPS: dict[str, dict[str, Any]] = {
    "one": {
        **factors("first", WIDTH, WIDTH, 2),
        **factors("step", WIDTH, WIDTH, 2, 5),
        "test.bias": torch.full((1,), 0.25),
    },
    "two": {**factors("second", WIDTH, WIDTH, 1, 9), "step.weight": normal(WIDTH, WIDTH, seed=4) / 8},
}


def changed(model: nn.Module, name: str | None) -> nn.Module:
    model = copy.deepcopy(model)
    state = STEPS[name] if name is not None else {}
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            layer = path.removesuffix(".weight")
            if f"{layer}.lora_A.weight" in state:
                parameter += state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]
            if path in state:
                parameter += state[path]
    return model


@pytest.mark.parametrize("backends", [("ort",), ("tvm", "ort")])
def test_weights_in_conditions_and_loops(backends: tuple[str, ...], with_one_tvm: Any) -> None:
    model, paths = randomise(Steps().eval()), PathCounts()
    compiled = regraft.compile(
        model,
        (normal(3, WIDTH),),
        adapters=STEPS,
        backends=with_one_tvm(backends),
        passes=paths.passes,
        verify=True,
    )
    trips = set()
    for name in (None, "one", "two", "one"):
        compiled.set_adapter(name)
        for seed in range(8):
            x = normal(3, WIDTH, seed=seed)
            eager = changed(model, name)
            with torch.no_grad():
                expected = copy.deepcopy(eager).double()(x.double())
                assert_close(compiled(x), expected, eager(x), reassociates=True)
            trips.add((name, int(expected[1])))
    assert {count for _, count in trips} >= {5}
    paths.assert_all_ran()


def test_weights_in_conditions_and_loops_saved_and_loaded(tmp_path: Path) -> None:
    model, x = randomise(Steps().eval()), normal(3, WIDTH)
    compiled = regraft.compile(model, (x,), adapters=STEPS)
    compiled.save(tmp_path / "steps")
    loaded = regraft.load(tmp_path / "steps")
    loaded.set_adapter("two")
    with torch.no_grad():
        eager = changed(model, "two")
        assert_close(loaded(x), copy.deepcopy(eager).double()(x.double()), eager(x), reassociates=True)


# -- verification --------------------------------------------------------------------------------


def test_each_adapter_is_verified() -> None:
    model, x = block(), normal(5, WIDTH)
    compiled = regraft.compile(model, (x,), adapters=ADAPTERS, verify=True)
    (note,) = [note for note in compiled.report.notes if note.startswith("verified")]
    assert note.startswith("verified as it is and under each adapter: french ")
    assert ", german " in note
    assert compiled.report.error is not None
    assert compiled.report.error < 1e-4
    assert compiled.active_adapter is None
    assert_like(compiled, model, x)
    plain = regraft.compile(model, (x,), verify=True)
    assert not any("verified" in note for note in plain.report.notes)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_adapters_of_what_is_wrapped_are_verified(wrap: Callable[[nn.Module], Any]) -> None:
    report = regraft.compile(wrap(block()), (normal(5, WIDTH),), adapters=ADAPTERS, verify=True).report
    assert any(note.startswith("verified as it is and under each adapter") for note in report.notes)


class WrongPick(regraft.Rewrite):
    """Twice the factors of an adapter; where none applies they are zeros."""

    exactness = regraft.Exactness.REASSOCIATES

    def pattern(self, op: Any, x: Any, number: Any) -> Any:
        return op.aten.index.Tensor(x, [number])

    def check(self, m: Any) -> Any:
        return m.decline("it is done", m.x) if "WrongPick" in m.root.loc.made_by else None

    def rewrite(self, op: Any, m: Any) -> Any:
        return op.aten.mul.Scalar(op.aten.index.Tensor(m.x, [m.number]), 2)


def _of_self(adapters: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The adapters as a method's weights are called."""
    return {
        name: {
            key if key == "scaling" else f"self.{key.removeprefix('base_model.model.')}": value
            for key, value in state.items()
        }
        for name, state in adapters.items()
    }


@pytest.mark.parametrize("method", [False, True])
def test_an_adapter_that_is_wrong_is_found_and_named(method: bool) -> None:
    model, x = block(), normal(5, WIDTH)
    state = {name: (p.data_ptr(), p._version, p.clone()) for name, p in model.named_parameters()}
    source, adapters = (model.forward, _of_self(ADAPTERS)) if method else (model, ADAPTERS)
    regraft.compile(source, (x,), adapters=adapters, verify=True)
    options: dict[str, Any] = {"adapters": adapters, "rewrites": [WrongPick]}
    assert regraft.compile(source, (x,), **options).report.rewrites["WrongPick"].hits
    with pytest.raises(NumericsMismatch, match="output 0 under the adapter 'french'"):
        regraft.compile(source, (x,), verify=True, **options)
    for name, parameter in model.named_parameters():
        pointer, version, value = state[name]
        assert (parameter.data_ptr(), parameter._version) == (pointer, version), "the model is as it was"
        assert torch.equal(parameter, value)
