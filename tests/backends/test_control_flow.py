"""Control flow that the plan decides, over a back end that has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.errors import ArtefactError, OptionError, RegraftError, UnsupportedOpError
from regraft.ir import Function, Op
from regraft.testing import PathCounts, assert_close
from tests.backends.straight import Straight
from tests.models import in_double


class Exits(nn.Module):
    """A condition, in its arm another one, and a loop behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.first(x))
        if x[0, 0] > 0:
            y = self.second(y)
            y = y.tanh() if x[0, 1] > 0 else -y
        steps = torch.zeros((), dtype=torch.int64)
        while y.abs().sum() > 1:
            y, steps = y * 0.5, steps + 1
        return y, steps


class Kept(nn.Module):
    """An arm that gives what it was given, and a loop that hands a value through."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = x if x.sum() > 0 else x + 1
        a, b, n = x, x, x.sum()
        while n > 1:
            a, b, n = b, a + 1, n - 1
        return y, a, b


class Recurrent(nn.Module):
    """A loop over steps, whatever their number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, rows = x.new_zeros(x.shape[0], 6), []
        for t in range(x.shape[1]):
            h = torch.sin(self.inner(x[:, t]) + self.outer(h)) * h / 2 + 1
            rows.append(h)
        return torch.stack(rows, 1), h


class Counted(nn.Module):
    """What is behind a condition is as long as its values say, on one path."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x[x > 0] if x.sum() > 0 else x
        return y * 2, torch.arange(y.shape[0])


def compiled_for(model: nn.Module, x: Tensor, **options: Any) -> Any:
    return regraft.compile(model.eval(), (x,), backends=[Straight()], **options)


def check(model: nn.Module, compiled: Callable[..., Any], *inputs: Tensor) -> None:
    for x in inputs:
        found, expected = compiled(x), in_double(model, x)
        assert_close(list(found), list(expected), list(model(x)), reassociates=True)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
#: For each path of ``Exits``.
INPUTS = [X * torch.tensor([a, b, 1, 1, 1, 1, 1, 1]) for a in (-50, 50) for b in (-50, 50)] + [0 * X]


def test_conditions_and_loops() -> None:
    model, paths = Exits().eval(), PathCounts()
    compiled = compiled_for(model, X, passes=paths.passes)
    check(model, compiled, *INPUTS)
    paths.assert_all_ran()
    executors = compiled_for(model, X).report.to_dict()["executors"]
    assert executors["host"] == 3
    assert executors["eager"] > 10


class Deciding(nn.Module):
    """Conditions in each other, over products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0] > 0:
            y = self.first(x)
            return self.second(y) if y[0, 0] > 0 else y
        return -x


class Named(Straight):
    """Straight code under a name of its own."""

    def lower(self, function: Function, store: Any, options: Any) -> Any:
        return Renamed(super().lower(function, store, options), self.name)


class Renamed:
    def __init__(self, inner: Any, backend: str) -> None:
        self.run, self.backend = inner.run, backend


class Whole(Named):
    """Takes conditions as wholes, as ONNX Runtime does."""

    name = "whole"

    def supports(self, op: Op) -> str | None:
        return None if op.name == "cf.cond" else super().supports(op)


class Idle(Named):
    """Has no products."""

    name = "idle"

    def supports(self, op: Op) -> str | None:
        return "it is a product" if op.name == "aten.linear" else super().supports(op)


@pytest.mark.parametrize(
    ("backends", "width", "decides"),
    [
        ((Straight(), Whole()), 1024, True),
        ((Straight(), Whole()), 8, False),  # less than calls cost
        ((Idle(), Whole()), 1024, False),
        ((Whole(), Straight()), 1024, False),
    ],
)
def test_the_plan_decides_for_a_preferred_back_end_that_does_the_work(
    backends: tuple[Straight, ...], width: int, decides: bool
) -> None:
    model, x = Deciding(width).eval(), torch.randn(64, width)
    compiled = regraft.compile(model, (x,), backends=backends, cache=False)
    executors = compiled.report.to_dict()["executors"]
    assert ("host" in executors, "whole" in executors) == (decides, not decides)
    for given in (x.abs(), -x.abs()):
        assert_close(compiled(given), in_double(model, given))


def test_results_are_fresh() -> None:
    model = Kept().eval()
    compiled = compiled_for(model, X)
    for x in (X.abs(), -X.abs()):
        before, results = x.clone(), compiled(x)
        check(model, compiled, x)
        for result in results:
            result.add_(1)
        assert torch.equal(x, before)
        assert len({result.data_ptr() for result in results}) == 3


def test_scan() -> None:
    model, x = Recurrent().eval(), torch.randn(2, 40, 4)
    compiled = compiled_for(model, x, dynamic_shapes=({0: Dim.AUTO},))
    assert "cf.scan" in str(compiled.ir)
    assert compiled.report.to_dict()["executors"]["host"] == 1
    check(model, compiled, x, torch.randn(5, 40, 4))


def test_sizes_that_values_decide_reach_later_steps() -> None:
    model = Counted().eval()
    x = torch.tensor([1.0, -2.0, 3.0, 4.0, -1.0])
    compiled = compiled_for(model, x)
    check(model, compiled, x, -x, torch.ones(5))


class Checked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if (x <= 0).any():
            raise ValueError("all must be positive")
        return x.log()


def test_checks() -> None:
    compiled = compiled_for(Checked(), X.abs() + 1)
    assert torch.equal(compiled(X.abs() + 1), (X.abs() + 1).log())
    with pytest.raises(RegraftError, match="all must be positive"):
        compiled(X)


def test_no_back_end_takes_an_op_of_an_arm() -> None:
    class NoTanh(Straight):
        def supports(self, op: Op) -> str | None:
            return "no tanh here" if op.name == "aten.tanh" else super().supports(op)

    with pytest.raises(UnsupportedOpError, match=r"aten.tanh at .*no tanh here"):
        regraft.compile(Exits().eval(), (X,), backends=[NoTanh()])
    model = Exits().eval()
    whole = regraft.compile(model, (X,), backends=[NoTanh()], fallback="eager")
    check(model, whole, *INPUTS)
    assert {entry["op"] for entry in whole.report.to_dict()["fallbacks"]} == {"cf.cond"}


def test_saved(tmp_path: Path) -> None:
    model = Exits().eval()
    compiled = compiled_for(model, X)
    compiled.save(tmp_path / "a")
    loaded = regraft.load(tmp_path / "a")
    for x in INPUTS:
        for found, expected in zip(loaded(x), compiled(x), strict=True):
            assert torch.equal(found, expected)
    loaded.save(tmp_path / "b")
    check(model, regraft.load(tmp_path / "b"), *INPUTS)


def _first_host_step(manifest: dict[str, Any]) -> dict[str, Any]:
    return next(step for step in manifest["plan"]["steps"] if step["backend"] == "host")["record"]


FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "op": lambda record: record.update(op="os.system"),
    "no region": lambda record: record.update(blocks=[]),
    "one region": lambda record: record.update(blocks=record["blocks"][:1]),
    "other arguments": lambda record: record["blocks"][0]["plan"].update(inputs=0),
    "other results": lambda record: record["blocks"][0]["plan"].update(results=[]),
    "bound": lambda record: record["blocks"][0].update(binds=[["s0", 9, 0]]),
    "bound to text": lambda record: record["blocks"][0].update(binds=[["s0", "a", 0]]),
    "result": lambda record: record.update(keeps=[7]),
    "constant": lambda record: record.update(constants=["nothing"]),
    "no operand": lambda record: record.update(operands=[99]),
    "operand": lambda record: record.update(operands=["a"]),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_forged(forge: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    compiled_for(Exits(), X).save(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    manifest = json.loads(path.read_text())
    forge(_first_host_step(manifest))
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError):
        regraft.load(tmp_path / "a")


def test_the_plans_own_name_is_taken() -> None:
    class Named(Straight):
        name = "host"

    with pytest.raises(OptionError, match="control flow has this one"):
        regraft.compile(Exits().eval(), (X,), backends=[Named()])


class ManyExits(nn.Module):
    """Exits in each other, deeper than an ONNX file can be."""

    def forward(self, x: Tensor, limit: Tensor) -> Tensor:
        for i in range(31):
            if x.sum() > limit + i:
                return x * i
            x = x + 1
        return x


def test_the_plan_decides_what_is_too_deep_for_a_file(tmp_path: Path) -> None:
    x, limit = torch.arange(6.0), torch.tensor(5.0)
    model = ManyExits().eval()
    compiled = regraft.compile(model, (x, limit), backends=("ort",))
    assert compiled.report.to_dict()["executors"]["host"] == 2
    for value in (x, -x, x - 10, x - 100):
        assert torch.equal(compiled(value, limit), model(value, limit))
    with pytest.raises(UnsupportedOpError, match=r"cf\.cond") as caught:
        regraft.export_onnx(model, (x, limit), tmp_path / "exits.onnx")
    assert "31 deep in each other, and an ONNX file holds 29" in str(caught.value)
    assert f"{Path(__file__).name}:" in str(caught.value)
