"""Conditions between kernels: programs with arms."""

from __future__ import annotations

import gc
import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.errors import ArtefactError, BackendError
from regraft.testing import PathCounts, assert_close

SCALES = (1.0, 30.0, 0.01, -30.0)


def programs(compiled: Any) -> list[str]:
    """The back ends whose executables the plan calls."""
    return [step.executable.backend for step in compiled.plan.steps]


def check(tvm: Any, model: nn.Module, x: Tensor, **options: Any) -> Any:
    """Every call equals eager's, in any order; nothing but one program runs."""
    compiled = regraft.compile(model, (x,), backends=(tvm,), cache=False, **options)
    assert programs(compiled) == ["tvm"]
    given = [scale * x for scale in (*SCALES, *reversed(SCALES))]
    found = [compiled(each) for each in given]
    model.double()
    for each, made in zip(given, found, strict=True):
        wanted = model(each.double())
        pairs = zip(made, wanted, strict=True) if isinstance(made, tuple) else [(made, wanted)]
        for value, reference in pairs:
            assert_close(value, reference, reassociates=True)
    return compiled


class Exits(nn.Module):
    """Conditions within one another; what leaves early is only handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(24, 24) for _ in range(4))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block(x))
            out = self.head(x)
            if out.abs().amax() > 4:
                return out
        return out * 2


class Arms(nn.Module):
    """What an arm may give: an argument, a constant, one value twice, a view, what the other has swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("c", torch.arange(24.0))
        self.one, self.other = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x.exp().clamp(max=9.0)
        if x.sum() > 0:
            a, b, c, d = x, self.c + 0 * x[0], self.one(x), y
            e = c
        else:
            a, b, c, d = y, self.c, self.other(y).T.contiguous().view(x.shape[0], 24), x
            e = self.one(x)
        return a, b, c, d, e, a + d


class Within(nn.Module):
    """Arms that hold scans, lookups and conditions, over weights that both arms have."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.weight = nn.Embedding(7, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        if x.amax() > 3:
            rows = self.table((x[:, :3].abs() * 100).long() % 7).sum(1)
            if x[0, 0] > 0:
                rows = self.weight(rows)
            return rows + x
        return self.weight(x).softmax(-1)


class Skips(nn.Module):
    """A condition after another: the result of one is what the next begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            if x[0, number] > 0:
                x = block(x)
        return x


MODELS = {"exits": Exits, "arms": Arms, "within": Within, "skips": Skips}


@pytest.mark.parametrize("name", MODELS)
def test_values(tvm: Any, name: str) -> None:
    torch.manual_seed(0)
    check(tvm, MODELS[name]().eval(), torch.randn(3, 24))


def test_every_arm_is_counted(tvm: Any) -> None:
    """What arms write to the state of a model, as a count of paths, is there after the call."""
    torch.manual_seed(2)
    paths = PathCounts()
    model, x = Skips().eval(), torch.randn(3, 24)
    check(tvm, model, x, passes=paths.passes)
    assert len(paths.paths) == 6
    paths.assert_all_ran()


def test_sizes_that_vary(tvm: Any) -> None:
    torch.manual_seed(0)
    model, x = Exits().eval(), torch.randn(3, 24)
    compiled = check(tvm, model, x, dynamic_shapes={"x": {0: Dim.AUTO}})
    for rows in (1, 8, 3):
        for scale in SCALES:
            given = scale * torch.randn(rows, 24)
            assert_close(compiled(given), model.double()(given.double()), reassociates=True)


def test_a_predicate_that_comes_with_a_call(tvm: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, is_on: Tensor) -> Tensor:
            return x.relu() * 2 if is_on else x - 1

    model, x = Model().eval(), torch.randn(5)
    compiled = regraft.compile(model, (x, torch.tensor(True)), backends=(tvm,), cache=False)
    assert programs(compiled) == ["tvm"]
    for is_on in (True, False, True):
        assert_close(compiled(x, torch.tensor(is_on)), model(x.double(), torch.tensor(is_on)))


def test_an_index_is_looked_at_where_its_arm_runs(tvm: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)

        def forward(self, x: Tensor, places: Tensor) -> Tensor:
            return self.table(places) if x.sum() > 0 else x

    model, x = Model().eval(), torch.ones(2, 4)
    compiled = regraft.compile(model, (x, torch.tensor([1, 2])), backends=(tvm,), cache=False)
    wrong = torch.tensor([1, 9])
    assert_close(compiled(-x, wrong), -x.double())
    with pytest.raises(BackendError, match="embedding"):
        compiled(x, wrong)
    assert_close(compiled(x, torch.tensor([1, 2])), model(x, torch.tensor([1, 2])).detach().double())


def test_arms_of_integers_and_bools(tvm: Any) -> None:
    class Model(nn.Module):
        def forward(self, n: Tensor) -> tuple[Tensor, Tensor]:
            if n.sum() > 3:
                return n * 2, n > 1
            return n - 1, n.bool()

    model, n = Model().eval(), torch.arange(-2, 5)
    compiled = regraft.compile(model, (n,), backends=(tvm,), cache=False)
    assert programs(compiled) == ["tvm"]
    for given in (n, n - 3, n):
        assert all(map(torch.equal, compiled(given), model(given)))


def test_what_is_large_is_not_copied(tvm: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
            if x.sum() > 0:
                return x.relu(), cache + 1
            return x, cache

    model, x, cache = Model().eval(), torch.randn(4), torch.randn(512, 1024)
    for large, executors in ((cache, {"tvm", "host"}), (cache[:8].clone(), {"tvm"})):
        compiled = regraft.compile(model, (x, large), backends=(tvm,), cache=False)
        assert set(programs(compiled)) == executors
        for given in (x, -x):
            for found, wanted in zip(compiled(given, large), model(given, large), strict=True):
                assert_close(found, wanted.double())


def test_calls_at_once(tvm: Any) -> None:
    torch.manual_seed(0)
    model, x = Exits().eval(), torch.randn(3, 24)
    compiled = regraft.compile(model, (x,), backends=(tvm, "ort"), cache=False)
    assert programs(compiled) == ["tvm"]
    given = [scale * x for scale in SCALES]
    wanted = [compiled(each) for each in given]
    wrong: list[int] = []

    def work(start: int) -> None:
        for turn in range(start, start + 200):
            number = turn % len(given)
            if not torch.equal(compiled(given[number]), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_loop_in_an_arm_is_the_plans(tvm: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                while x.amax() > 1:
                    x = x / 2
            return x

    model, x = Model().eval(), torch.rand(5) + 3
    compiled = regraft.compile(model, (x,), backends=(tvm,), cache=False)
    assert "host" in programs(compiled)
    for scale in SCALES:
        assert_close(compiled(scale * x), model(scale * x.double()))


def test_saved_and_loaded(tvm: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Exits().eval(), torch.randn(3, 24)
    regraft.compile(model, (x,), backends=(tvm,), cache=False).save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model", allow_native=True)
    model.double()
    for scale in SCALES:
        assert_close(loaded(scale * x), model(scale * x.double()), reassociates=True)


def test_code_that_another_version_calls_otherwise_is_not_run(tvm: Any, tmp_path: Path) -> None:
    model, x = Exits().eval(), torch.randn(3, 24)
    folder = tmp_path / "model"
    regraft.compile(model, (x,), backends=(tvm,), cache=False).save(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    record = manifest["plan"]["steps"][0]["record"]
    record.pop("steps")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    loaded = regraft.load(folder, allow_native=True)
    assert programs(loaded) != ["tvm"]
    assert "another version of regraft" in loaded.report.to_dict()["notes"][-1]
    model.double()
    for scale in SCALES:
        assert_close(loaded(scale * x), model(scale * x.double()), reassociates=True)


def test_steps_need_what_runs_them(tvm: Any, tmp_path: Path) -> None:
    """A program of conditions and copies has a library too: a record without one is damaged."""

    def model(flag: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return x if flag else y

    x, y = torch.randn(3, 4), torch.randn(3, 4)
    compiled = regraft.compile(model, (torch.tensor(True), x, y), backends=(tvm,), cache=False)
    assert torch.equal(compiled(torch.tensor(True), x, y), x)
    assert torch.equal(compiled(torch.tensor(False), x, y), y)
    folder = tmp_path / "model"
    compiled.save(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    steps = [step for step in manifest["plan"]["steps"] if step["backend"] == "tvm"]
    assert steps, "the condition is a program of TVM's"
    for step in steps:
        step["record"]["library"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="no library that runs them"):
        regraft.load(folder, allow_native=True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list what is mapped")
def test_kernels_go_with_their_model(tvm: Any) -> None:
    def mapped() -> int:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return sum(".so" in line and tempfile.gettempdir() in line for line in lines)

    gc.collect()
    before = mapped()
    compiled = regraft.compile(Exits().eval(), (torch.randn(3, 24),), backends=(tvm,), cache=False)
    compiled(torch.randn(3, 24))
    assert mapped() > before
    del compiled
    gc.collect()
    assert mapped() <= before
