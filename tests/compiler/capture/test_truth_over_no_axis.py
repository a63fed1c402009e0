"""``any`` and ``all`` over an empty tuple of axes: torch asks each element."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

import regraft

DTYPES = (torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int64)
VALUES = torch.tensor([[0.0, 2.0], [-0.0, 1.0]])


def truths(*tensors: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    for x in tensors:
        found += [torch.any(x, dim=()), torch.all(x, ()), x.any(dim=(), keepdim=True), x.all(dim=[])]
    return found


def inputs() -> list[Tensor]:
    return [VALUES.to(dtype) for dtype in DTYPES] + [torch.tensor([float("nan"), 0.0]), torch.tensor(3.0)]


@pytest.mark.parametrize("backend", ["ort", "eager"])
def test_each_element_is_asked(backend: str) -> None:
    compiled = regraft.compile(truths, tuple(inputs()), backends=(backend,))
    for found, expected in zip(compiled(*inputs()), truths(*inputs()), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_in_a_file(tmp_path: Path) -> None:
    report = regraft.export_onnx(truths, tuple(inputs()), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    feed = {name: x.numpy() for name, x in zip(report.inputs, inputs(), strict=True)}
    for found, expected in zip(session.run(list(report.outputs), feed), truths(*inputs()), strict=True):
        assert torch.equal(torch.from_numpy(found), expected)
