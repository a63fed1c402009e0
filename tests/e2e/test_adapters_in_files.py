"""Adapters in ONNX files: all of them with an input that picks one, or one merged into the weights."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.errors import OptionError
from regraft.testing import assert_close, randomise
from tests.e2e.exported import run_without_torch, write_case
from tests.e2e.test_adapters import ADAPTERS, STEPS, WIDTH, Steps, block, changed, factors, merged, normal

NAMES = (None, "french", "german")


def run(path: Path, **inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(result)


def assert_like(result: Tensor, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        assert_close(result, copy.deepcopy(model).double()(x.double()), model(x), reassociates=True)


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_input_picks_the_adapter(tmp_path: Path, dynamic: bool) -> None:
    model, path = block(), tmp_path / "block.onnx"
    shapes = ({0: Dim.AUTO},) if dynamic else None
    report = regraft.export_onnx(model, (normal(5, WIDTH),), path, dynamic_shapes=shapes, adapters=ADAPTERS)
    assert report.inputs == ("x", "active_adapter")
    assert report.adapters == tuple(report.to_dict()["adapters"]) == ("french", "german")
    assert report.writes == {}
    for number, name in enumerate(NAMES):
        for rows in (1, 5, 11) if dynamic else (5,):
            x = normal(rows, WIDTH, seed=rows)
            result = run(path, x=x, active_adapter=torch.tensor([number]))
            assert_like(result, merged(model, name), x)


@pytest.mark.parametrize("adapter", [None, "two"])
def test_weights_in_conditions_and_loops(tmp_path: Path, adapter: str | None) -> None:
    model, path = randomise(Steps().eval()), tmp_path / "steps.onnx"
    regraft.export_onnx(model, (normal(3, WIDTH),), path, adapters=STEPS, adapter=adapter)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for number, name in enumerate((None, *STEPS)) if adapter is None else [(None, adapter)]:
        for seed in range(4):
            x = normal(3, WIDTH, seed=seed)
            given = (
                {"x": x.numpy()} if number is None else {"x": x.numpy(), "active_adapter": np.array([number])}
            )
            found = [torch.from_numpy(np.asarray(each)) for each in session.run(None, given)]
            with torch.no_grad():
                eager = changed(model, name)
                assert_close(found, copy.deepcopy(eager).double()(x.double()), eager(x), reassociates=True)


def test_without_torch(tmp_path: Path) -> None:
    model, x, folder = block(), normal(5, WIDTH), tmp_path / "block"
    folder.mkdir()
    report = regraft.export_onnx(model, (x,), folder / "model.onnx", adapters=ADAPTERS)
    for number, name in enumerate(NAMES):
        with torch.no_grad():
            expected = merged(model, name)(x)
        inputs = {"x": x, "active_adapter": torch.tensor([number])}
        write_case(folder / f"case{number}", inputs, {report.outputs[0]: expected})
    (found,) = run_without_torch(tmp_path).values()
    assert found["inputs"] == ["x", "active_adapter"]
    assert max(found["errors"][report.outputs[0]]) < 1e-5


@pytest.mark.parametrize("name", ["french", "german"])
def test_one_adapter_is_merged(tmp_path: Path, name: str) -> None:
    """The file is that of the adapted model: the same operators, no input more, nothing of the others."""
    model, x = block(), normal(5, WIDTH)
    one = regraft.export_onnx(model, (x,), tmp_path / "one.onnx", adapters=ADAPTERS, adapter=name)
    assert one.inputs == ("x",)
    assert one.adapters == ()
    assert any(f"'{name}' is merged" in note for note in one.compile.notes)
    assert_like(run(one.path, x=x), merged(model, name), x)
    plain = regraft.export_onnx(merged(model, name), (x,), tmp_path / "plain.onnx")
    assert one.operators == plain.operators
    assert one.bytes < 1.1 * plain.bytes


def test_a_merged_weight_may_be_inside_of_a_branch(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x) if x.sum() > 0 else torch.relu(x)

    model, path = Branching().eval(), tmp_path / "branching.onnx"
    change = factors("inside", 8, 8, 2)
    regraft.export_onnx(model, (torch.ones(3, 8),), path, adapters={"a": change}, adapter="a")
    adapted = copy.deepcopy(model)
    with torch.no_grad():
        adapted.inside.weight += change["inside.lora_B.weight"] @ change["inside.lora_A.weight"]
    for x in (torch.ones(3, 8), -torch.ones(3, 8)):
        assert_like(run(path, x=x), adapted, x)


BAD = {
    "unknown": (ADAPTERS, "frensh", "french"),
    "no adapters": (None, "french", "no adapters= are given"),
    "wrong shape": ({"a": {"up.weight": normal(3, 3)}}, None, "as the weight"),
    "wrong shape, merged": ({"a": {"up.weight": normal(3, 3)}}, "a", "as the weight"),
    "wrong name": ({"a": {"norm.scale": normal(3)}}, "a", "no weight 'norm.scale'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_writes_nothing(tmp_path: Path, case: str) -> None:
    adapters, adapter, expected = BAD[case]
    with pytest.raises(OptionError, match=expected):
        regraft.export_onnx(
            block(), (normal(5, WIDTH),), tmp_path / "x.onnx", adapters=adapters, adapter=adapter
        )
    assert list(tmp_path.iterdir()) == []


def properties(path: Path) -> dict[str, str]:
    """What the file says of itself, as its users read it."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map


def test_a_file_names_its_adapters(tmp_path: Path) -> None:
    model, x = block(), normal(5, WIDTH)
    all_of_them = regraft.export_onnx(model, (x,), tmp_path / "all.onnx", adapters=ADAPTERS)
    assert (
        properties(all_of_them.path) == all_of_them.metadata == {"regraft.adapters": '["french", "german"]'}
    )
    assert "active_adapter: 0 none, 1 french, 2 german" in str(all_of_them)
    one = regraft.export_onnx(model, (x,), tmp_path / "one.onnx", adapters=ADAPTERS, adapter="german")
    assert properties(one.path) == one.metadata == {"regraft.merged_adapter": "german"}
    assert "the adapter 'german' is merged into 3 weights" in str(one)
    plain = regraft.export_onnx(model, (x,), tmp_path / "plain.onnx")
    assert properties(plain.path) == plain.metadata == plain.to_dict()["metadata"] == {}
