"""The back end that newcomers copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import regraft
from regraft.backends import LowerOptions, backend
from regraft.backends.example import ExampleBackend
from regraft.conformance import BUILT_IN, Case, check_backend, check_case
from regraft.errors import BackendError
from tests.backends.sample_cases import sample_cases

SUPPORTED = [
    (sample, case)
    for sample, case in sample_cases()
    if sample.name in ExampleBackend.lowerings
    and ExampleBackend().supports(next(case.function().body.ops)) is None
]


@pytest.mark.conformance
@pytest.mark.parametrize("case", [case for _, case in SUPPORTED], ids=lambda case: case.name)
def test_sample(case: Case) -> None:
    assert check_case(ExampleBackend(), case) is None


def test_built_in_cases() -> None:
    assert set(check_backend(ExampleBackend())) == {"add bf16", "attention", "branch"}


def test_every_function_has_samples() -> None:
    """The table names ops that exist, and each runs on some sample."""
    assert {sample.name for sample, _ in SUPPORTED} == set(ExampleBackend.lowerings)


def test_reasons_say_what_is_missing() -> None:
    def reason(case: Case) -> Any:
        return ExampleBackend().supports(next(case.function().body.ops))

    x, half = "f32[4]", "bf16[4]"
    assert reason(Case("op", lambda op, x: op.aten.erf(x), (x,))) == (
        "no NumPy function for 'aten.erf'; add one to example/functions.py"
    )
    assert reason(Case("dtype", lambda op, x: op.aten.relu(x), (half,))) == "bf16 arrays are not supported"
    assert reason(Case("attribute", lambda op, x: op.aten.gelu(x), (x,))) == (
        "NumPy has no erf; only approximate='tanh' runs"
    )


def test_lowering_what_is_not_supported_is_an_error() -> None:
    function = Case("erf", lambda op, x: op.aten.erf(x), ("f32[4]",)).function()
    with pytest.raises(BackendError, match=r"no NumPy function for 'aten\.erf'"):
        ExampleBackend().lower(function, None, LowerOptions())  # type: ignore[arg-type]


def test_is_built_in() -> None:
    assert isinstance(backend("example"), ExampleBackend)
    assert len({case.name for case in BUILT_IN}) == len(BUILT_IN)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.up(self.norm(x)), approximate="tanh")
        return self.down(hidden).softmax(-1)


def test_compiles_and_loads_a_model(tmp_path: Path) -> None:
    model, x = Classifier().eval(), torch.randn(5, 8)
    sizes = {"x": {0: torch.export.Dim("batch", min=0, max=64)}}
    compiled = regraft.compile(model, (x,), dynamic_shapes=sizes, backends=("example",), verify=True)
    compiled.save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model")
    for batch in (0, 1, 7):
        x = torch.randn(batch, 8)
        assert torch.equal(loaded(x), compiled(x))
        torch.testing.assert_close(loaded(x), model(x))


def test_works_beside_another_back_end() -> None:
    """What the example does not take goes to the next back end, with a plan of several steps."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 4), nn.Tanh()).eval()
    x = torch.randn(3, 4)
    compiled = regraft.compile(model, (x,), backends=("example", "eager"), verify=True)
    assert {step.executable.backend for step in compiled.plan.steps} == {"example", "eager"}
    torch.testing.assert_close(compiled(x), model(x).detach())
