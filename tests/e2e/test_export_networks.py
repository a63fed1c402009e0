"""The networks of the zoo as ONNX files: they run without torch, at sizes unlike the example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import regraft
from regraft.testing import TOLERANCES, relative_error
from tests.e2e.exported import run_without_torch, write_case
from tests.models import in_double
from tests.zoo.networks import NETWORKS, Network

#: Those that a plain run takes.
PLAIN = ("resnet50", "tagger")
ALL = [
    pytest.param(network, id=name, marks=[] if name in PLAIN else [pytest.mark.conformance])
    for name, network in NETWORKS.items()
]


@pytest.mark.parametrize("contrib", [True, False], ids=["contrib", "standard"])
@pytest.mark.parametrize("network", ALL)
def test_runs_without_torch(network: Network, contrib: bool, tmp_path: Path) -> None:
    model = network.make()
    (tmp_path / "folder").mkdir()
    report = regraft.export_onnx(
        model,
        (),
        tmp_path / "folder" / "model.onnx",
        kwargs=network.inputs(network.example),
        dynamic_shapes=network.dynamic(),
        contrib=contrib,
    )
    assert list(report.inputs) == list(network.arguments)
    for number, sizes in enumerate(network.tried):
        inputs = network.inputs(sizes, seed=number)
        outputs = dict(zip(report.outputs, _tensors(in_double(model, **inputs)), strict=True))
        write_case(tmp_path / "folder" / str(number), inputs, outputs)
    errors = run_without_torch(tmp_path)["folder"]["errors"]
    assert set(errors) == set(report.outputs)
    assert all(len(each) == len(network.tried) for each in errors.values())
    assert max(max(each) for each in errors.values()) <= TOLERANCES[torch.float32]
    if not contrib:
        assert not [name for name in report.operators if "::" in name]
        onnx.checker.check_model(onnx.load(report.path), full_check=True)


@pytest.mark.conformance
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_runs_without_torch_in_bf16(network: Network, tmp_path: Path) -> None:
    dtype = torch.bfloat16
    model = network.make(dtype=dtype)
    (tmp_path / "folder").mkdir()
    report = regraft.export_onnx(
        model,
        (),
        tmp_path / "folder" / "model.onnx",
        kwargs=network.inputs(network.example, dtype=dtype),
        dynamic_shapes=network.dynamic(),
    )
    allowed: dict[str, list[float]] = {name: [] for name in report.outputs}
    for number, sizes in enumerate(network.tried):
        inputs = network.inputs(sizes, number, dtype)
        exact = _tensors(in_double(model, **inputs))
        with torch.no_grad():
            own = _tensors(model(**inputs))
        outputs = dict(zip(report.outputs, exact, strict=True))
        write_case(tmp_path / "folder" / str(number), inputs, outputs)
        for name, eager, expected in zip(report.outputs, own, exact, strict=True):
            allowed[name].append(max(TOLERANCES[dtype], 2 * relative_error(eager, expected)))
    errors = run_without_torch(tmp_path)["folder"]["errors"]
    assert set(errors) == set(report.outputs)
    for name, each in errors.items():
        assert all(error <= most for error, most in zip(each, allowed[name], strict=True)), (
            name,
            each,
            allowed,
        )


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
