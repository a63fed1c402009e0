"""What follows a product in its kernel, where TVM's own passes have been in the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.backends import backend
from regraft.backends.tvm import building, cpu, templates, worker
from regraft.errors import BackendError
from regraft.testing import assert_close

functional = nn.functional

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mish": functional.mish,
    "a bool as a factor": lambda x: x * (x > 0),
    "a bool as an integer": lambda x: x * (x > 0).long(),
    "exclusive": lambda x: torch.where((x > 0) ^ (x > 0.5), x, 2 * x),
    "equal": lambda x: torch.where((x > 0) == (x > 0.5), x, 2 * x),
    "unequal": lambda x: torch.where((x > 0) != (x > 0.5), x, 2 * x),
    "negated": lambda x: torch.where(~(x > 0), x, 2 * x),
    "both": lambda x: torch.where((x > 0) & ~(x > 0.5), x, 2 * x),
    "either": lambda x: torch.where((x < 0) | (x > 0.5), x, 2 * x),
}


class Followed(nn.Module):
    """The function of a product, its value used three times."""

    def __init__(self, function: Callable[[Tensor], Tensor], columns: int) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(24, columns), function

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.linear(x))
        return y * torch.sin(y) + y


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_which_the_value_is_used_often(tvm: Any, name: str) -> None:
    """Of columns that are vectors of 16 and three more."""
    torch.manual_seed(0)
    model, x = Followed(FUNCTIONS[name], columns=19).eval(), torch.randn(7, 24)
    compiled = regraft.compile(model, (x,), backends=(tvm,), cache=False)
    (kernel,) = compiled.report.to_dict()["kernels"]
    assert len(kernel["ops"]) > 3, "all is one kernel"
    assert_close([compiled(x)], [model.double()(x.double())], [model.float()(x)], reassociates=True)


def test_a_product_that_builds_with_nothing_behind_it_has_a_kernel_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two such products, and one of which nothing is refused."""
    own: Any = backend("tvm")
    monkeypatch.setattr(own, "_builder", InThisProcess(tmp_path))
    whole, template = building.build, type(templates.TEMPLATES[0]).build
    refused: list[Any] = []

    def written(self: Any, problem: Any, config: Any, symbol: str) -> Any:
        function = template(self, problem, config, symbol)
        if "aten.cos" in problem.signature:
            refused.append(function)
        return function

    def build(functions: Sequence[Any]) -> Any:
        if any(function is each for function in functions for each in refused):
            raise BackendError("no such instruction", "tvm")
        return whole(functions)

    monkeypatch.setattr(type(templates.TEMPLATES[0]), "build", written)
    monkeypatch.setattr(building, "build", build)
    torch.manual_seed(0)
    parts = [Followed(torch.cos, 24), Followed(torch.cos, 24), Followed(torch.tanh, 24)]
    model, x = nn.Sequential(*parts).eval(), torch.randn(7, 24)
    compiled = regraft.compile(model, (x,), backends=(own,), cache=False)
    assert sorted(len(kernel["ops"]) for kernel in compiled.report.to_dict()["kernels"]) == [1, 5]
    (note,) = [note for note in compiled.report.notes if "no such instruction" in note]
    assert "aten.linear at " in note
    assert_close([compiled(x)], [model.double()(x.double())], [model.float()(x)], reassociates=True)


class InThisProcess:
    """The worker's work without its process, so that a test can break it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, text: str, host: cpu.Cpu, configs: Mapping[str, Sequence[str]]) -> Any:
        answer = worker.build(text, host, configs, self.folder)
        return SimpleNamespace(**{**answer, "library": Path(answer["library"]).read_bytes()})


def test_mish_of_large_numbers(tvm: Any) -> None:
    x = torch.tensor([-200.0, -90.0, -20.0, 0.0, 19.9, 20.1, 90.0, 3e38, float("inf"), float("nan")])
    for given in (x, x.double()):
        compiled = regraft.compile(nn.Mish().eval(), (given,), backends=(tvm,), cache=False)
        torch.testing.assert_close(compiled(given), functional.mish(given), equal_nan=True)
