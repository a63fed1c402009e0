"""ONNX files: they run where there is neither torch nor regraft, at shapes unlike the example."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves, tree_map

import regraft
from regraft.errors import OptionError, UnsupportedOpError
from regraft.testing import TOLERANCES, assert_close, randomise
from tests.e2e.exported import run_without_torch, write_case
from tests.models import FAMILIES, Family, in_double

SIZES = [(1, 1), (3, 13), (1, 40)]


class Towers(nn.Module):
    """A dict of two inputs, results in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 4), nn.Linear(6, 4)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        a, b = self.left(batch["left"]), self.right(batch["right"])
        return {"similarity": a @ b.T, "mean": torch.cat([a, b]).mean(0)}


def is_standard(model: onnx.ModelProto) -> bool:
    return (
        {entry.domain for entry in model.opset_import} == {node.domain for node in model.graph.node} == {""}
    )


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_runs_without_torch(family: Family, tmp_path: Path) -> None:
    """With ONNX Runtime's own operators and with standard ones only."""
    model = family.make()
    reports = {}
    for form, contrib in (("contrib", True), ("standard", False)):
        (tmp_path / form).mkdir()
        path = tmp_path / form / "model.onnx"
        reports[form] = regraft.export_onnx(
            model, (), path, kwargs=family.inputs(), dynamic_shapes=family.dynamic(), contrib=contrib
        )
    for number, (batch, length) in enumerate(SIZES):
        inputs = family.inputs(batch, length, seed=number)
        expected = dict(in_double(model, **inputs))
        for form in reports:
            write_case(tmp_path / form / str(number), inputs, expected)
    for form, result in run_without_torch(tmp_path).items():
        report = reports[form]
        assert result["inputs"] == [family.argument] == list(report.inputs)
        assert list(result["errors"]) == list(report.outputs)
        assert report.outputs[0] == ("logits" if family.name in ("gpt2", "llama") else "last_hidden_state")
        assert [len(errors) for errors in result["errors"].values()] == [len(SIZES)] * len(report.outputs)
        assert max(max(errors) for errors in result["errors"].values()) <= TOLERANCES[torch.float32]
    assert not [name for name in reports["standard"].operators if "::" in name]
    standard = onnx.load(reports["standard"].path)
    assert is_standard(standard)
    onnx.checker.check_model(standard, full_check=True)


def test_report(tmp_path: Path) -> None:
    batch = {"left": torch.randn(3, 8), "right": torch.randn(5, 6)}
    report = regraft.export_onnx(Towers().eval(), (batch,), tmp_path / "towers.onnx")
    content = report.to_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["bytes"] == os.path.getsize(content["path"])
    assert content["compile"]["captured"]["aten.linear"] == 2
    model = onnx.load(content["path"])
    assert content["opset"] == next(entry.version for entry in model.opset_import if not entry.domain)
    assert sum(content["operators"].values()) == len(model.graph.node)
    assert "opset" in str(report)


def test_names_and_dynamic_axes(tmp_path: Path) -> None:
    model = randomise(Towers().eval())
    batch = {"left": torch.randn(3, 8), "right": torch.randn(5, 6)}
    shapes = ({"left": {0: Dim.AUTO}, "right": {0: Dim.AUTO}},)
    report = regraft.export_onnx(model, (batch,), tmp_path / "towers.onnx", dynamic_shapes=shapes)
    assert report.outputs == ("similarity", "mean")
    graph = onnx.load(report.path).graph
    assert len({port.name for port in (*graph.input, *graph.output)}) == 4
    for port in graph.input:
        first, second = port.type.tensor_type.shape.dim
        assert first.dim_param
        assert not second.dim_param


def _ports(path: Path) -> tuple[dict[str, list[str | int]], dict[str, list[str | int]]]:
    """The shapes of a file's inputs and outputs by name."""
    graph = onnx.load(path).graph
    inputs, outputs = (
        {
            port.name: [dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim]
            for port in ports
        }
        for ports in (graph.input, graph.output)
    )
    return inputs, outputs


class Nested(nn.Module):
    """Dicts and lists in each other, and a result with an argument's name."""

    def forward(self, batch: dict, x: Tensor, y: Tensor) -> dict:
        both = batch["own"]["left"] + batch["own"]["right"][0]
        return {"x": 2 * x, "deep": {"sum": both, "more": [2 * both, -both]}, "y": (torch.cat([y, y]),)}


def test_paths_are_names_and_sizes_are_called_as_the_users_dims(tmp_path: Path) -> None:
    """A derived size names its root, also where no argument has that one as its size."""
    batch, half = Dim("batch"), Dim("half")
    own = {"left": torch.randn(3, 4), "right": [torch.randn(3, 4)]}
    args = ({"own": own}, torch.randn(6, 2), torch.randn(8, 2))
    shapes = {
        "batch": {"own": {"left": {0: batch}, "right": [{0: batch}]}},
        "x": {0: 2 * batch},
        "y": {0: 2 * half + 2},
    }
    report = regraft.export_onnx(Nested().eval(), args, tmp_path / "nested.onnx", dynamic_shapes=shapes)
    inputs, outputs = _ports(report.path)
    assert inputs == {
        "batch_own_left": ["batch", 4],
        "batch_own_right_0": ["batch", 4],
        "x": ["2*batch", 2],
        "y": ["2*half + 2", 2],
    }
    assert outputs == {
        "x_2": ["2*batch", 2],
        "deep_sum": ["batch", 4],
        "deep_more_0": ["batch", 4],
        "deep_more_1": ["batch", 4],
        "y_0": ["4*half + 4", 2],
    }
    assert report.inputs == tuple(inputs)
    assert report.outputs == tuple(outputs)
    flat = tree_leaves(args)
    expected = tree_leaves(Nested()(*tree_map(lambda each: each.double(), args)))
    given = dict(zip(inputs, (each.numpy() for each in flat), strict=True))
    found = onnxruntime.InferenceSession(report.path).run(None, given)
    assert_close([torch.from_numpy(each) for each in found], expected)


def test_results_in_tuples(tmp_path: Path) -> None:
    def model(x: Tensor) -> tuple:
        return x + 1, (x + 2, x + 3), {"last": x + 4}

    report = regraft.export_onnx(model, (torch.randn(3),), tmp_path / "model.onnx")
    assert report.outputs == ("output_0", "output_1", "output_2", "output_2_last")


def test_a_dim_with_the_name_of_another_size(tmp_path: Path) -> None:
    """Sizes that nobody named are not called as the user's."""

    def model(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x + 1, y + 1, y.nonzero()

    shapes = {"x": {0: Dim.AUTO}, "y": {0: Dim("s0"), 1: Dim("len0")}}
    args = (torch.randn(3), torch.randn(4, 5))
    report = regraft.export_onnx(model, args, tmp_path / "model.onnx", dynamic_shapes=shapes)
    inputs, outputs = _ports(report.path)
    assert inputs == {"x": ["s0_2"], "y": ["s0", "len0"]}
    assert outputs == {"output_0": ["s0_2"], "output_1": ["s0", "len0"], "output_2": ["len0_2", 2]}


def test_opset(tmp_path: Path) -> None:
    report = regraft.export_onnx(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), tmp_path / "a.onnx", opset=20)
    assert report.opset == 20
    with pytest.raises(OptionError, match="opset"):
        regraft.export_onnx(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), tmp_path / "b.onnx", opset=5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_an_existing_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    regraft.export_onnx(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), path)
    assert onnx.load(path).graph.node
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


# -- nothing is written when it fails ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.pt", "must end in .onnx"),
        ("missing/model.onnx", "does not exist"),
        ("model", "must end in .onnx"),
    ],
)
def test_wrong_path(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        regraft.export_onnx(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(OptionError, match=r"cannot write|is a folder|is a directory"):
        regraft.export_onnx(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.rglob("*")] == ["model.onnx"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OptionError, match="cannot write"):
        regraft.export_onnx(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_not_a_file_system_for_files() -> None:
    with pytest.raises(OptionError, match="cannot write"):
        regraft.export_onnx(nn.Linear(4, 4).eval(), (torch.randn(2, 4),), "/proc/model.onnx")


def test_unsupported_op(tmp_path: Path) -> None:
    def model(x: Tensor) -> Tensor:
        return torch.linalg.qr(x)[1]

    with pytest.raises(UnsupportedOpError, match="linalg_qr"):
        regraft.export_onnx(model, (torch.randn(4, 4),), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("contrib", [True, False])
@pytest.mark.parametrize(
    "product",
    [
        lambda y, v, w: y.transpose(-1, -2) @ v,
        lambda y, v, w: torch.relu(y.transpose(-1, -2)) @ v,
        lambda y, v, w: w @ y.transpose(-1, -2),
        lambda y, v, w: v @ y,
        lambda y, v, w: (v @ y[0]) @ w,
    ],
    ids=["transposed @ vector", "relu between", "vector @ transposed", "vector @ matrix", "vectors"],
)
def test_products_with_vectors_are_right_at_the_default_level(product, contrib: bool, tmp_path: Path) -> None:
    """ONNX Runtime joins a Transpose to a product with a vector, wrongly."""
    inputs = torch.randn(2, 5, 4), torch.randn(5), torch.randn(4)
    path = tmp_path / "model.onnx"
    regraft.export_onnx(product, inputs, path, contrib=contrib)
    session = onnxruntime.InferenceSession(path)
    given = {name: x.numpy() for name, x in zip(("y", "v", "w"), inputs, strict=True)}
    (found,) = session.run(None, {each.name: given[each.name] for each in session.get_inputs()})
    assert_close([torch.from_numpy(found)], [product(*(x.double() for x in inputs))], reassociates=True)
