"""The dynamic zoo compiled in one call and exported as one file, with eager's values on every path of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import regraft
from regraft.testing import TOLERANCES, assert_close
from tests.backends.straight import Straight
from tests.e2e.exported import run_without_torch, write_case
from tests.models import in_double
from tests.zoo.dynamic.networks import DYNAMIC
from tests.zoo.dynamic.record import DynamicNetwork

#: Those that a plain run takes, and those that are captured in a minute or more.
PLAIN = ("ftwt", "skipnet_rnn", "early_exit_encoder", "hrm")
SLOW = ("kangaroo",)


def marks_of(name: str) -> list[pytest.MarkDecorator]:
    if name in PLAIN:
        return []
    return [pytest.mark.conformance, *([pytest.mark.slow] if name in SLOW else [])]


ALL = [pytest.param(network, id=name, marks=marks_of(name)) for name, network in DYNAMIC.items()]


def first_input(network: DynamicNetwork) -> tuple[Tensor, ...]:
    return network.inputs(next(iter(network.small.paths.values())))


@pytest.mark.parametrize("network", ALL)
def test_compiled(network: DynamicNetwork) -> None:
    model = network.make()
    compiled = regraft.compile(model, first_input(network))
    report = compiled.report.to_dict()
    assert list(report["executors"]) == ["ort"]
    assert report["fallbacks"] == []
    check_paths(network, model, compiled)


@pytest.mark.parametrize("network", ALL)
def test_plan_decides(network: DynamicNetwork) -> None:
    """The same over a back end that has no control flow."""
    model = network.make()
    compiled = regraft.compile(model, first_input(network), backends=[Straight()])
    assert set(compiled.report.to_dict()["executors"]) <= {"eager", "host"}
    check_paths(network, model, compiled)


def check_paths(network: DynamicNetwork, model: nn.Module, compiled: Callable[..., Any]) -> None:
    """``compiled`` takes each path of the network where it does, and gives its values."""
    for path, seed in network.small.paths.items():
        arguments = network.inputs(seed)
        result = compiled(*arguments)
        with torch.no_grad():
            eager = model(*arguments)
        assert network.decisions(result) == path
        assert pytree.tree_structure(result) == pytree.tree_structure(eager)
        expected = _tensors(in_double(model, *arguments))
        assert_close(_tensors(result), expected, _tensors(eager), reassociates=True)


@pytest.mark.parametrize("network", ALL)
def test_exported(network: DynamicNetwork, tmp_path: Path) -> None:
    """One file for all paths; plain ONNX Runtime runs it in a process without torch."""
    model = network.make()
    (tmp_path / "folder").mkdir()
    report = regraft.export_onnx(model, first_input(network), tmp_path / "folder" / "model.onnx")
    for number, seed in enumerate(network.small.paths.values()):
        arguments = network.inputs(seed)
        inputs = dict(zip(report.inputs, arguments, strict=True))
        outputs = dict(zip(report.outputs, _tensors(in_double(model, *arguments)), strict=True))
        write_case(tmp_path / "folder" / str(number), inputs, outputs)
    errors = run_without_torch(tmp_path)["folder"]["errors"]
    assert set(errors) == set(report.outputs)
    assert all(len(each) == len(network.small.paths) for each in errors.values())
    assert max(max(each) for each in errors.values()) <= TOLERANCES[torch.float32]


def _tensors(result: Any) -> list[Tensor]:
    """The leaves; a number that the data decide, such as the index of an exit, may come as a tensor."""
    return [leaf if isinstance(leaf, Tensor) else torch.tensor(leaf) for leaf in pytree.tree_leaves(result)]
