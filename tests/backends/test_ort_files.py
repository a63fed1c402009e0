"""Files as anybody would open them: what cannot be run is an error of ours, which a race leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from regraft.backends import FileRunner, LowerOptions, backend
from regraft.errors import BackendError


def opened(folder: Path, op_type: str, dtype: int, count: int = 1) -> Any:
    """A file with one op of ``count`` inputs of any length."""
    names = [f"x{i}" for i in range(count)]
    inputs = [helper.make_tensor_value_info(name, dtype, [None]) for name in names]
    node = helper.make_node(op_type, names, ["y"])
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", dtype, [None])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    runner = backend("ort")
    assert isinstance(runner, FileRunner)
    return runner.open_file(folder / "model.onnx", LowerOptions(1))


def test_a_file_runs(tmp_path: Path) -> None:
    (found,) = opened(tmp_path, "Add", TensorProto.FLOAT, 2).bind([torch.ones(3), torch.ones(3)])()
    assert torch.equal(found, torch.full((3,), 2.0))


def test_inputs_that_numpy_lacks_are_refused(tmp_path: Path) -> None:
    file = opened(tmp_path, "Identity", TensorProto.BFLOAT16)
    with pytest.raises(BackendError, match="cannot be given its inputs"):
        file.bind([torch.ones(3, dtype=torch.bfloat16)])


def test_a_run_that_fails_is_an_error_of_ours(tmp_path: Path) -> None:
    call = opened(tmp_path, "Add", TensorProto.FLOAT, 2).bind([torch.ones(3), torch.ones(2)])
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        call()
