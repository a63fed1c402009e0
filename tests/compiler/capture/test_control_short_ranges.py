"""Ranges up to an open size that have no number in a call, or would have less than none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.export import Dim

import regraft
from regraft.testing import assert_close
from tests.compiler.capture.running import BACKENDS, Captures, compare, compiled, doubled, tensors

LENGTHS = (7, 1, 2, 3, 4, 5, 40)


def steps(length: int) -> Tensor:
    return torch.randn(2, length, 4, generator=torch.Generator().manual_seed(length))


def without_both_ends(x: Tensor) -> tuple[Tensor, Tensor]:
    h, out = x.sum(1), torch.zeros_like(x)
    for t in range(1, x.shape[1] - 1):
        h = torch.tanh(h + x[:, t])
    for t in range(x.shape[1] - 2, 0, -1):
        out[:, t] = torch.sin(x[:, t] * t)
    return h, out


def a_list_of_the_middle(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of as many elements as there are trips, none where a range would have less than none."""
    found, first, h = [], [x.sum(1)], x.sum(1)
    for t in range(1, x.shape[1] - 1):
        h = torch.tanh(h + x[:, t])
        found.append(h)
    for t in range(3, x.shape[1] - 1, 2):
        first.append(x[:, t - 1] * 2 + x[:, t + 1])
    return torch.cat(found, 1) if found else h, torch.stack(first, 1) * (len(found) + 1)


def a_state_that_broadcasts(x: Tensor) -> Tensor:
    h = torch.zeros(1, 4, dtype=x.dtype)
    for t in range(1, x.shape[1] - 1):
        h = torch.tanh(h + x[:, t])
    return h


def asks_for_its_length(x: Tensor) -> Tensor:
    n, h = len(range(1, x.shape[1] - 1)), x.sum(1)
    for t in range(2, x.shape[1] - 2):
        h = h * 0.5 + x[:, t] * n
    return h + n * 10 + len(range(x.shape[1] - 3, -1, -1))


def a_while_as_long(x: Tensor) -> Tensor:
    h, t = x.sum(1), 1
    while t < x.shape[1] - 1:
        h = torch.tanh(h + x[:, t])
        t += 1
    return h * t


def one_in_another(x: Tensor) -> Tensor:
    h = x.sum(1)
    for t in range(2, x.shape[1], 2):
        for s in range(t, x.shape[1] - 1):
            h = h * 0.9 + x[:, s] * t
    return h


MODELS = [
    without_both_ends,
    a_list_of_the_middle,
    a_state_that_broadcasts,
    asks_for_its_length,
    a_while_as_long,
    one_in_another,
]


@pytest.mark.parametrize("least", [0, 1, 3])
@pytest.mark.parametrize("model", MODELS, ids=lambda f: f.__name__)
def test_values_are_those_of_eager(model: Any, least: int, tmp_path: Path) -> None:
    shapes = {"x": {1: Dim("length", min=least, max=64)}}
    lengths = [each for each in (*LENGTHS, 0) if each >= least]
    captures, path = Captures(), tmp_path / "model.onnx"
    with captures.used():
        for backend in BACKENDS:
            found = compiled(model, (steps(7),), backend, dynamic_shapes=shapes)
            for length in lengths:
                compare(found, model, model, (steps(length),))
        regraft.export_onnx(model, (steps(7),), path, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path)
    for x in map(steps, lengths):
        made = [torch.from_numpy(each) for each in session.run(None, {"x": x.numpy()})]
        eager, wide = tensors(model(x)), tensors(model(x.double()))
        assert [each.shape for each in made] == [each.shape for each in eager]
        assert_close(made, doubled(wide), eager, reassociates=True)


def test_a_list_is_collected_where_the_least_size_leaves_steps() -> None:
    found = compiled(
        a_list_of_the_middle, (steps(7),), "ort", dynamic_shapes={"x": {1: Dim("length", min=1, max=64)}}
    )
    assert "cf.while" not in found.ir
