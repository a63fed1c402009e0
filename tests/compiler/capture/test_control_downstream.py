"""Graphs with conditions and loops in all that comes after capture: export, cache, artefacts, checks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.compiler import control
from regraft.ir import AttrSpec, OpDef, Operand
from regraft.testing import assert_close, randomise
from tests.compiler.capture.running import AUTO, BACKENDS, check_calls, compiled, doubled, rows
from tests.e2e.exported import run_without_torch, write_case

ROWS = ({0: AUTO},)


def count(start: int = 0) -> Tensor:
    return torch.full((), start, dtype=torch.int64)


class Network(nn.Module):
    """An exit, low-rank factors in one arm, a loop that grows in it, arms that differ in a size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.down, self.up = nn.Linear(4, 1, bias=False), nn.Linear(1, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x)

        def deep() -> Any:
            low = self.up(self.down(self.norm(h)))
            return control.loop(self.goes_on, self.trip, (low, count()))

        y, steps = control.cond(x.sum() > 0, deep, lambda: (h[1:] * 2, count(-1)))
        return y.softmax(-1), y.sum(0), steps

    def goes_on(self, carried: tuple[Tensor, ...]) -> Tensor:
        return (carried[1] < 4) & (carried[0].abs().sum() < 60)

    def trip(self, carried: tuple[Tensor, ...]) -> Any:
        h, i = carried
        (h,) = control.cond(i % 2 == 0, lambda: (torch.cat((h, h)) * 1.5,), lambda: (self.first(h),))
        return h, i + 1


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)  # the paths that the calls take depend on the weights
    return randomise(Network().eval())


CALLS = [(rows(n, seed=n, shift=s),) for n in (3, 6) for s in (-1.0, 0.3, 2.0)]


def eager(model: Any, args: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return model(*args)


def precise(model: nn.Module, args: tuple[Tensor, ...]) -> Any:
    return doubled(eager(copy.deepcopy(model).double(), doubled(args)))


def test_every_path_on_each_back_end(network: nn.Module) -> None:
    check_calls(network, (rows(5),), CALLS, dynamic_shapes=ROWS)
    taken = {int(eager(network, call)[2]) for call in CALLS}
    assert len(taken) >= 3
    assert -1 in taken


@pytest.mark.parametrize("contrib", [True, False])
def test_one_onnx_file_runs_without_torch(network: nn.Module, tmp_path: Path, contrib: bool) -> None:
    folder = tmp_path / "network"
    folder.mkdir()
    report = regraft.export_onnx(
        network, (rows(5),), folder / "model.onnx", dynamic_shapes=ROWS, contrib=contrib
    )
    assert report.operators["If"] == 2
    assert report.operators["Loop"] == 1
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    for number, call in enumerate(CALLS):
        results = {f"output_{i}": result for i, result in enumerate(eager(network, call))}
        write_case(folder / str(number), {"x": call[0]}, results)
    found = run_without_torch(tmp_path)["network"]
    assert max(error for errors in found["errors"].values() for error in errors) < 1e-4


def test_a_saved_model_runs(network: nn.Module, tmp_path: Path) -> None:
    made = regraft.compile(network, (rows(5),), dynamic_shapes=ROWS, cache=False)
    made.save(tmp_path / "saved")
    loaded = regraft.load(tmp_path / "saved")
    for call in CALLS:
        assert_close(loaded(*call), precise(network, call), eager(network, call), reassociates=True)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_verified_application_by_application(network: nn.Module, shift: float) -> None:
    made = regraft.compile(network, (rows(5, shift=shift),), verify="each", cache=False)
    assert made.report.error is not None
    assert made.report.error < 1e-4


def test_the_second_compile_is_a_hit(network: nn.Module, tmp_path: Path) -> None:
    outcomes: list[str] = []
    for _ in range(2):
        made = regraft.compile(network, (rows(5),), dynamic_shapes=ROWS, cache=tmp_path)
        outcomes.append(made.report.cache.status)  # type: ignore[attr-defined]
        for call in CALLS[:3]:
            assert_close(made(*call), precise(network, call), eager(network, call), reassociates=True)
    assert outcomes == ["miss", "hit"]


def test_there_is_nothing_to_bisect(network: nn.Module) -> None:
    assert "nothing to find" in str(regraft.bisect(network, (rows(5),)))


def test_new_weights_are_taken_into_arms(network: nn.Module) -> None:
    other = randomise(copy.deepcopy(network), seed=7)
    made = regraft.compile(network, (rows(5),), dynamic_shapes=ROWS, cache=False)
    made.refresh(other)
    for call in CALLS:
        assert_close(made(*call), precise(other, call), eager(other, call), reassociates=True)


def test_bf16_in_arms() -> None:
    def model(x: Tensor) -> Any:
        return control.cond(x.sum() > 0, lambda: (x @ x.t(),), lambda: (x.exp() @ x.t(),))

    for shift in (-1.0, 1.0):
        given = (rows(4, shift=shift).bfloat16(),)
        made = compiled(model, given, "ort")
        assert_close(made(*given), doubled(model(*doubled(given))), model(*given), reassociates=True)


def test_an_op_that_no_back_end_takes_is_taken_apart_in_an_arm() -> None:
    twice = OpDef(
        "mine.twice",
        (Operand("x"), AttrSpec("times", 2.0)),
        lambda site: site.type("x"),
        decompose=lambda b, op: [b.aten.mul.Scalar(op.operand("x"), op.attr("times"))],
    )
    library = torch.library.Library("mine", "FRAGMENT")
    library.define("twice(Tensor x, float times=2.0) -> Tensor")
    library.impl("twice", lambda x, times=2.0: x * times, "CompositeExplicitAutograd")
    torch.library.register_fake("mine::twice", lambda x, times=2.0: torch.empty_like(x), lib=library)

    def model(x: Tensor) -> Any:
        return control.cond(x.sum() > 0, lambda: (torch.ops.mine.twice(x, 3.0),), lambda: (x - 1,))

    for backend in BACKENDS:
        made = compiled(model, (rows(3),), backend, ops=(twice,))
        for shift in (-1.0, 1.0):
            given = rows(3, shift=shift)
            assert_close(made(given), model(given.double()))


def test_an_arm_that_no_back_end_takes_falls_back_whole() -> None:
    def model(x: Tensor) -> Any:
        return control.cond(x.sum() > 0, lambda: (torch.linalg.matrix_exp(x),), lambda: (x * 2,))

    made = compiled(model, (rows(4),), "ort", fallback="eager")
    assert made.report.executors == {"ort": 2, "eager": 1}  # type: ignore[attr-defined]
    for shift in (-1.0, 1.0):
        given = rows(4, shift=shift)
        assert_close(made(given), model(given.double()))
