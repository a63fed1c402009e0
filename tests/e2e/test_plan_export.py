"""``export_plan``: a folder of networks without branches, run by its own script without torch and regraft."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import regraft
from regraft.errors import OptionError
from regraft.testing import assert_close, randomise
from tests.e2e.test_per_sample import Exits, Refines, Skips, images, tokens, vectors


class ExitsWhereTold(Exits):
    """Leaves at the first block whose threshold is passed: there is one for each."""

    def forward(self, x: Tensor, threshold: Tensor) -> tuple[Tensor, int]:
        for i, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            x = block(x)
            logits = head(x[:, 0])
            if logits.softmax(-1).max() > threshold[i]:
                return logits, i
        return logits, len(self.blocks)


CASES: dict[str, tuple[type[nn.Module], Any, Tensor]] = {
    "exits": (ExitsWhereTold, tokens, torch.cat([2 - 2 * torch.eye(4), torch.full((1, 4), 2.0)])),
    "skips": (Skips, images, torch.tensor([-5.0, 0.0, 5.0])),
    "refines": (Refines, vectors, torch.tensor([10.0, 0.1, 0.0])),
}


def runner(folder: Path) -> Any:
    """The script that lies in the folder, as a module."""
    spec = importlib.util.spec_from_file_location("run_plan", folder / "run_plan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exported(name: str, folder: Path) -> tuple[nn.Module, Any, Tensor, Any]:
    make, draw, thresholds = CASES[name]
    model = randomise(make().eval())
    report = regraft.export_plan(model, (draw(1, 0), thresholds[0]), folder)
    return model, draw, thresholds, report


@pytest.mark.parametrize("name", CASES)
def test_a_folder_computes_what_eager_does(name: str, tmp_path: Path) -> None:
    model, draw, thresholds, report = exported(name, tmp_path / "plan")
    plan = runner(tmp_path / "plan").Plan(tmp_path / "plan")
    for seed, threshold in enumerate(thresholds):
        x = draw(1, seed)
        found = plan(x=x.numpy(), threshold=threshold.numpy())
        with torch.no_grad():
            expected = pytree.tree_leaves(model(x, threshold))
        ours = [torch.from_numpy(found[output]) for output in report.outputs]
        assert [int(each) for each in ours[1:]] == expected[1:]
        assert_close(ours[:1], [expected[0].double()], eager=expected[:1], reassociates=True)
    assert all(plan.counts.values()), plan.counts


@pytest.mark.parametrize("name", CASES)
def test_its_networks_have_no_branches(name: str, tmp_path: Path) -> None:
    _, _, _, report = exported(name, tmp_path / "plan")
    for file in report.files:
        graph = onnx.load(tmp_path / "plan" / file).graph
        assert not {"If", "Loop"} & {node.op_type for node in graph.node}, file
    assert report.conditions + report.loops > 0
    assert report.bytes == sum(f.stat().st_size for f in (tmp_path / "plan").iterdir())
    assert json.loads(json.dumps(report.to_dict()))["files"] == list(report.files)
    assert str(len(report.files)) in str(report)


def test_the_script_runs_where_torch_and_regraft_are_not(tmp_path: Path) -> None:
    model, draw, thresholds, _ = exported("exits", tmp_path / "plan")
    x = draw(1, 1)
    np.savez(tmp_path / "in.npz", x=x.numpy(), threshold=thresholds[1].numpy())
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'regraft', 'onnx')));"
    script = f"{blocked} sys.argv = ['run_plan.py', 'plan', 'in.npz', 'out.npz'];"
    script += (
        "exec(compile(open('plan/run_plan.py').read(), 'run_plan.py', 'exec'), {'__name__': '__main__'})"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        logits, at = model(x, thresholds[1])
    with np.load(tmp_path / "out.npz") as found:
        arrays = [torch.from_numpy(found[name]) for name in found.files]
    assert int(arrays[1]) == at
    assert_close(arrays[:1], [logits.double()], eager=[logits], reassociates=True)


def test_the_script_is_short(tmp_path: Path) -> None:
    regraft.export_plan(nn.Linear(3, 2).eval(), (torch.randn(1, 3),), tmp_path / "plan")
    assert len((tmp_path / "plan" / "run_plan.py").read_text(encoding="utf-8").splitlines()) <= 100


def test_a_batch_that_each_sample_leaves(tmp_path: Path) -> None:
    model = randomise(Refines().eval())
    folder = tmp_path / "plan"
    regraft.export_plan(model, (vectors(1, 0), torch.tensor(0.1)), folder, batch="per_sample")
    x = vectors(9, 1)
    found = runner(folder).Plan(folder)(x=x.numpy(), threshold=np.array(0.1, np.float32))
    with torch.no_grad():
        alone = [model(x[i : i + 1], torch.tensor(0.1)) for i in range(9)]
    after, steps = (torch.from_numpy(each) for each in found.values())
    assert steps.tolist() == [each for _, each in alone]
    expected = torch.cat([each for each, _ in alone])
    assert_close([after], [expected.double()], eager=[expected], reassociates=True)


class Constant(nn.Module):
    """An arm gives a weight as it is, and so does the model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (self.weight.clone() if x.sum() > 0 else x * 2), self.weight * 1.0


def test_constants_are_results(tmp_path: Path) -> None:
    model = Constant().eval()
    regraft.export_plan(model, (torch.ones(3),), tmp_path / "plan")
    plan = runner(tmp_path / "plan").Plan(tmp_path / "plan")
    for x in (torch.ones(3), -torch.ones(3)):
        with torch.no_grad():
            expected = model(x)
        assert_close(
            [torch.from_numpy(e) for e in plan(x=x.numpy()).values()], [e.double() for e in expected]
        )


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    model, x = nn.Linear(3, 2).eval(), torch.randn(1, 3)
    (tmp_path / "there").mkdir()
    with pytest.raises(OptionError, match="is there already"):
        regraft.export_plan(model, (x,), tmp_path / "there")
    with pytest.raises(OptionError, match="does not exist"):
        regraft.export_plan(model, (x,), tmp_path / "nowhere" / "plan")
    with pytest.raises(OptionError, match=r"the order is export_plan\(model, args, folder\)"):
        regraft.export_plan(model, (x,), None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="opset"):
        regraft.export_plan(model, (x,), tmp_path / "plan", opset=3)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_script_refuses_other_inputs(tmp_path: Path) -> None:
    regraft.export_plan(nn.Linear(3, 2).eval(), (torch.randn(1, 3),), tmp_path / "plan")
    plan = runner(tmp_path / "plan").Plan(tmp_path / "plan")
    with pytest.raises(ValueError, match=r"the inputs are \['input'\], not \['y'\]"):
        plan(y=np.zeros((1, 3), np.float32))


class Grows(nn.Module):
    """Counts its trips; a loop with a limit has a check."""

    def forward(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        trips: list[Tensor] = []
        while x.sum() < 100:
            x = x * 1.5
            trips.append(x)
        return x * torch.tensor(len(trips)), index + 0


def test_checks_are_reported_and_scalars_stay_scalars(tmp_path: Path) -> None:
    model, x, index = Grows().eval(), torch.ones(4), torch.tensor(3)
    report = regraft.export_plan(model, (x, index), tmp_path / "plan", max_trips=50)
    (check,) = report.checks
    assert "test_plan_export.py" in check
    assert check in str(report)
    assert report.to_dict()["checks"] == (check,)
    assert (tmp_path / "plan").stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o777
    found = list(runner(tmp_path / "plan").Plan(tmp_path / "plan")(x=x.numpy(), index=index.numpy()).values())
    grown, same = model(x, index)
    assert_close(torch.from_numpy(found[0]), model(x.double(), index)[0], grown)
    assert (found[1].shape, int(found[1])) == ((), int(same))
