"""Loops over the steps of a sequence, written in Python: what is left of them, and what they compute."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.ir import Module, parse_module
from regraft.testing import assert_close, randomise
from tests.e2e.exported import run_without_torch, write_case
from tests.recurrences import SelectiveScan
from tests.zoo.dynamic.recurrent import Mamba

STEPS = 40
WIDTH = 6


class Lstm(nn.Module):
    """A cell by hand; returns the state of each step and the last memory."""

    def __init__(self, steps: int = STEPS) -> None:
        super().__init__()
        self.steps = steps
        self.given, self.own = nn.Linear(5, 4 * WIDTH), nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = c = x.new_zeros(x.shape[0], WIDTH)
        states = []
        for t in range(self.steps):
            i, f, g, o = (self.given(x[:, t]) + self.own(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, 1), c


class JoinedGates(Lstm):
    """One product over state and input together, in another order of gates; a head on each state."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.head = nn.Linear(WIDTH + 5, 4 * WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = c = x.new_zeros(x.shape[0], WIDTH)
        states = []
        for t in range(self.steps):
            f, i, o, g = self.both(torch.cat([h, x[:, t]], dim=1)).chunk(4, dim=1)
            c = c * (f + 1.0).sigmoid() + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(self.head(h))
        return torch.stack(states, 1), h


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.given, self.own = nn.Linear(5, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = x.new_zeros(x.shape[0], WIDTH)
        states = []
        for t in range(STEPS):
            gr, gz, gn = self.given(x[:, t]).chunk(3, 1)
            hr, hz, hn = self.own(h).chunk(3, 1)
            r, z = torch.sigmoid(gr + hr), torch.sigmoid(gz + hz)
            n = torch.tanh(gn + r * hn)
            h = (1 - z) * n + z * h
            states.append(h)
        return torch.stack(states, 1), h


class Elman(nn.Module):
    """Backwards through the steps, into a tensor that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.own = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, out = x.new_zeros(x.shape[0], WIDTH), x.new_zeros(x.shape[0], STEPS, WIDTH)
        for t in range(STEPS - 1, -1, -1):
            h = torch.tanh(self.given(x[:, t]) + self.own(h))
            out[:, t] = h
        return out, h


class Peephole(nn.Module):
    """No layer that there is an op for: the gate sees the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.own = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c = x.new_zeros(x.shape[0], WIDTH)
        states = []
        for t in range(STEPS):
            gate = torch.sigmoid(torch.relu(self.given(x[:, t])) + self.own(c) * c)
            c = gate * c + (1 - gate) * t
            states.append(c * 2)
        return torch.stack(states, 1), c


RECURRENT = {"lstm": Lstm, "joined gates": JoinedGates, "gru": Gru, "elman": Elman}
OTHERS = {"selective scan": SelectiveScan, "peephole": Peephole}


def given(make: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    model = randomise(make().eval())
    return model, torch.randn(3, STEPS, 5, generator=torch.Generator().manual_seed(0))


def ops(module: Module) -> Counter[str]:
    return Counter(op.name for op in module.main.walk())


ON = [*((name, "ort") for name in RECURRENT | OTHERS), ("lstm", "eager"), ("selective scan", "eager")]


@pytest.mark.parametrize(("name", "backend"), ON)
def test_computes_what_eager_does(name: str, backend: str) -> None:
    model, x = given((RECURRENT | OTHERS)[name])
    precise = copy.deepcopy(model).double()
    compiled = regraft.compile(model, (x,), backends=(backend,), cache=False)
    other = torch.randn(3, STEPS, 5, generator=torch.Generator().manual_seed(1))
    for each in (x, other):
        with torch.no_grad():
            assert_close(compiled(each), precise(each.double()), eager=model(each), reassociates=True)
    found = ops(parse_module(compiled.ir))
    assert "cf.while" not in found
    assert ("rg.recurrent" in found) == (name in RECURRENT)
    assert ("cf.scan" in found) == (name in OTHERS)


def test_a_trip_computes_only_what_waits_for_the_one_before() -> None:
    model, x = given(SelectiveScan)
    found = parse_module(regraft.compile(model, (x,), cache=False).ir)
    (scan,) = [op for op in found.main.walk() if op.name == "cf.scan"]
    inside = Counter(op.name for op in scan.regions[0].walk())
    assert inside["aten.exp"] == 0
    assert inside["aten.mul.Tensor"] + inside["aten.add.Tensor"] <= 3
    model, x = given(Peephole)
    found = parse_module(regraft.compile(model, (x,), cache=False).ir)
    (scan,) = [op for op in found.main.walk() if op.name == "cf.scan"]
    inside = Counter(op.name for op in scan.regions[0].walk())
    assert (inside["aten.linear"], inside["aten.relu"]) == (1, 0)


def test_what_outgrows_the_caches_is_made_in_the_trip_that_reads_it() -> None:
    """Mamba's reference makes decays and inputs for all steps before its loop."""
    model = randomise(Mamba(64, 16, 4).eval())
    x = torch.randn(1, 512, 64, generator=torch.Generator().manual_seed(0))
    compiled = regraft.compile(model, (x,), cache=False)
    with torch.no_grad():
        assert_close([compiled(x)], [copy.deepcopy(model).double()(x.double())], reassociates=True)
    found = parse_module(compiled.ir).main
    (scan,) = [op for op in found.walk() if op.name == "cf.scan"]
    inside = Counter(op.name for op in scan.regions[0].walk())
    assert (inside["aten.exp"], inside["aten.matmul"], inside["aten.mul.Tensor"]) == (1, 1, 3)
    sizes = [result.tensor.numel for op in found.body.ops for result in op.results]
    assert max(size for size in sizes if isinstance(size, int)) < 512 * 128 * 16


def test_the_graph_does_not_grow_with_the_steps() -> None:
    counts = []
    for steps in (STEPS, 4 * STEPS):
        model = randomise(Lstm(steps).eval())
        counts.append(ops(regraft.capture(model, (torch.randn(1, steps, 5),))))
    assert counts[0] == counts[1]


def test_as_a_file(tmp_path: Path) -> None:
    for name, make in (RECURRENT | OTHERS).items():
        model, x = given(make)
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        regraft.export_onnx(model, (x,), folder / "model.onnx", contrib=False)
        with torch.no_grad():
            first, second = model(x)
        write_case(folder / "case", {"x": x}, {"output_0": first, "output_1": second})
    for name, found in run_without_torch(tmp_path).items():
        assert all(error < 1e-4 for errors in found["errors"].values() for error in errors), name


def _running_sums(x: Tensor, decay: Tensor) -> Tensor:
    h, rows = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = decay * h + x[:, t]
        rows.append(h)
    return torch.stack(rows, 1)


def _averaged(x: Tensor, decay: Tensor) -> Tensor:
    return _running_sums(x, decay) * (1 - decay)


class LoopInAFunction(nn.Module):
    """The loop is in a function of the file, which a function that the model calls calls."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        return _averaged(x, self.decay)


def test_a_loop_in_a_function_of_the_file_is_one_trip() -> None:
    model, x = randomise(LoopInAFunction().eval()), torch.randn(2, 3 * STEPS, 5)
    compiled = regraft.compile(model, (x,), verify=True)
    captured = compiled.report.to_dict()["captured"]
    assert captured["aten.add.Tensor"] < STEPS, captured
