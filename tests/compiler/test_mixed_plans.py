"""Plans in which kernels of ours and ONNX Runtime take turns over the same memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.compiler import choose, options
from regraft.testing import assert_close
from tests.models import FAMILIES, in_double


class Alternating:
    """Made-up times by which sections go to each back end in turns, and the mixed plan is the best."""

    def __init__(self) -> None:
        self.count = 0

    def measured(self, rows: int, calls: Sequence[Callable[[], object]], *_: Any) -> choose.Measured:
        for call in calls:
            call()
        self.count += 1
        if self.count == 1:  # what a call costs
            return choose.Measured(rows, (0.5, 0.5), 0.0)
        if len(calls) == 3:
            return choose.Measured(rows, (3.0, 2.0, 1.0), 0.0)
        return choose.Measured(rows, (1.0, 1e3) if self.count % 2 else (1e3, 1.0), 0.0)


def unmeasured(backends: Any, threads: Any, tuning: Any, spent: float, notes: list[str]) -> Any:
    """What kernels are chosen by, without a measurement."""
    return _kernel_tuning(backends, threads, type(tuning)(), spent, notes)


_kernel_tuning = options.kernel_tuning
Mixed = tuple[str, nn.Module, Any]


@pytest.fixture(scope="module", params=["bert", "llama"])
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tvm: Any) -> Mixed:
    """A family, a small model of it, and what is compiled of that for both back ends in turns."""
    family = FAMILIES[request.param]
    model = family.make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_CACHE_DIR", str(tmp_path_factory.mktemp("state")))
        patch.setattr("regraft.compiler.placing.measured", Alternating().measured)
        patch.setattr("regraft.compiler.options.kernel_tuning", unmeasured)
        compiled = regraft.compile(
            model,
            kwargs=family.inputs(1, 24),
            backends=("ort", tvm),
            tune=True,
            budget="10min",
            cache=False,
        )
    return family.name, model, compiled


def results(found: Any) -> list[Tensor]:
    return [value for value in found.values() if isinstance(value, Tensor)]


def test_nothing_is_copied_between_back_ends(mixed: Mixed) -> None:
    name, model, compiled = mixed
    executables = [step.executable for step in compiled.plan.steps]
    order = [each.backend for each in executables]
    assert min(order.count("ort"), order.count("tvm")) > 2, order
    for seed in (1, 2):
        inputs = FAMILIES[name].inputs(1, 24, seed=seed)
        expected, own = results(in_double(model, **inputs)), results(model(**inputs))
        assert_close(results(compiled(**inputs)), expected, own, reassociates=True)
    assert sum(each.copied for each in executables if each.backend == "tvm") == 0


def test_a_mixed_plan_is_saved_and_loaded(mixed: Mixed, tmp_path: Path) -> None:
    name, _, compiled = mixed
    inputs = FAMILIES[name].inputs(1, 24)
    compiled.save(tmp_path / "model")
    loaded = regraft.load(tmp_path / "model", allow_native=True)
    assert torch.equal(results(loaded(**inputs))[0], results(compiled(**inputs))[0])
    assert any("back ends of the whole" in str(choice) for choice in loaded.report.choices)
