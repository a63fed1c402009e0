"""Loops over as many trips as an open size of an argument says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.testing import assert_close
from tests.compiler.capture.running import check_calls

LENGTH = {"x": {0: Dim("length", min=1, max=64)}}


def steps(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(seed))


CALLS = [(steps(count, seed),) for seed, count in enumerate((5, 1, 2, 7, 64, 5))]


class Recurrent(nn.Module):
    """States of all steps, and the last one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, states = x.new_zeros(x.shape[1], 5), []
        for t in range(x.shape[0]):
            h = self.cell(x[t], h)
            states.append(h)
        return torch.stack(states), h


def leaves_early(x: Tensor) -> Tensor:
    total = torch.zeros_like(x[0])
    for t in range(x.shape[0]):
        total = total + x[t]
        if total.amax() > 2:
            break
    else:
        total = total * 10
    return total


def in_strides(x: Tensor) -> Tensor:
    """From another end than 0, by two, backwards, and none at all where there are few steps."""
    total = torch.zeros_like(x[0])
    for t in range(1, x.shape[0] - 1, 2):
        total = total * 0.5 + x[t]
    for t in range(x.shape[0] - 1, -1, -1):
        total = total * 0.5 - x[t] * t
    return total


def writes_rows(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for t in range(x.size(0)):
        out[t] = x[: t + 1].amax(0)
    return out


def halves_of_the_length(x: Tensor) -> Tensor:
    for _ in range(x.shape[0] // 2):
        x = torch.tanh(x) * 1.1
    return x


def one_in_another(x: Tensor) -> Tensor:
    total = torch.zeros_like(x[0, 0])
    for t in range(x.shape[0]):
        for row in range(x.shape[1]):
            total = total * 0.9 + x[t, row]
    return total


def rows_beside_numbers(x: Tensor) -> Tensor:
    total = torch.zeros_like(x[0])
    for t, row in zip(range(x.shape[0]), x, strict=True):
        total = total + row * t
    return total


def counts_in_a_while(x: Tensor) -> Tensor:
    total, t = torch.zeros_like(x[0]), 0
    while t < x.shape[0]:
        total = torch.tanh(total + x[t])
        t += 1
    return total


def counts_until_a_tensor_leaves(x: Tensor) -> Tensor:
    total, t, length = torch.zeros_like(x[0]), 1, len(x)
    while t <= length:
        total = total + x[t - 1]
        if total.amax() > 2:
            break
        t += 1
    return total * t


def doubles_up_to_the_length(x: Tensor) -> Tensor:
    n = 1
    while n < x.shape[0]:
        n = n * 2
    return x * n


def rows_as_they_are(x: Tensor) -> Tensor:
    total = torch.zeros_like(x[0])
    for row in x:
        total = torch.tanh(total + row)
    for i, column in enumerate(x.flatten(1).T):
        total = total + column.sum() * i
    return total


def rows_in_a_comprehension(x: Tensor) -> Tensor:
    return torch.stack([torch.tanh(row) for row in x])


def rows_side_by_side(x: Tensor) -> Tensor:
    total = torch.zeros_like(x[0])
    for one, other in zip(x, x.flip(0), strict=True):
        total = total * 0.5 + one * other
    return total


def numbers_in_a_comprehension(x: Tensor) -> Tensor:
    return torch.stack([x[t] * t for t in range(x.shape[0])])


def pairs_up_to_a_number(x: Tensor) -> Tensor:
    total, t = torch.zeros_like(x[0]), 0
    while t + 2 < x.shape[0] and t < 5:
        total = torch.tanh(total + x[t] * x[t + 2])
        t += 1
    return total * t


def until_one_of_two_ends(x: Tensor) -> Tensor:
    total, t = torch.zeros_like(x[0]), 0
    while not (t >= x.shape[0] or (t > 2 and total.amax() > 2)):
        row = 0
        while row < x.shape[1] and row <= t:
            total = total + x[t, row]
            row += 1
        t += 1
    return total


def sums_so_far(x: Tensor) -> Tensor:
    return torch.stack([x[: t + 1].sum(0) for t in range(x.shape[0])])


FUNCTIONS = (
    pairs_up_to_a_number,
    sums_so_far,
    until_one_of_two_ends,
    counts_in_a_while,
    counts_until_a_tensor_leaves,
    doubles_up_to_the_length,
    rows_as_they_are,
    rows_in_a_comprehension,
    rows_side_by_side,
    numbers_in_a_comprehension,
    leaves_early,
    in_strides,
    writes_rows,
    halves_of_the_length,
    one_in_another,
    rows_beside_numbers,
)


@pytest.mark.parametrize(
    "model", [Recurrent().eval(), *FUNCTIONS], ids=lambda m: getattr(m, "__name__", "recurrent")
)
def test_values(model: Any) -> None:
    check_calls(model, (steps(5),), CALLS, dynamic_shapes=LENGTH)


def test_batch_and_length() -> None:
    shapes = {"x": {0: Dim.AUTO, 1: Dim.AUTO}}
    check_calls(Recurrent().eval(), (steps(5),), [(steps(7)[:, :2],), (steps(2),)], dynamic_shapes=shapes)


def test_a_part_as_long_as_the_number_of_the_trip() -> None:
    """Whether the length may be 1 is tried at capture, in a trip of its own."""
    shapes = {"x": {0: Dim.AUTO}}
    check_calls(sums_so_far, (steps(5),), CALLS[2:4], ("eager",), dynamic_shapes=shapes)


def test_the_graph_is_as_large_whatever_the_example_is() -> None:
    """One trip stands for all."""
    sizes = [
        regraft.compile(
            Recurrent().eval(), (steps(count),), dynamic_shapes=LENGTH, cache=False
        ).report.to_dict()["captured"]
        for count in (3, 30)
    ]
    assert sizes[0] == sizes[1]


def test_a_loop_of_two_conditions_is_counted() -> None:
    compiled = regraft.compile(
        pairs_up_to_a_number, (steps(5),), dynamic_shapes=LENGTH, backends=("eager",), cache=False
    )
    assert "cf.scan" in str(compiled.ir)
    assert "cf.while" not in str(compiled.ir)


def test_on_our_own_kernels(tvm: Any) -> None:
    check_calls(Recurrent().eval(), (steps(5),), CALLS[:4], backends=(tvm,), dynamic_shapes=LENGTH)


def test_as_a_file(tmp_path: Path) -> None:
    model, path = Recurrent().eval(), tmp_path / "model.onnx"
    regraft.export_onnx(model, (steps(5),), path, dynamic_shapes=LENGTH)
    session = onnxruntime.InferenceSession(path)
    for (x,) in CALLS:
        found = session.run(None, {"x": x.numpy()})
        for made, wanted in zip(found, copy.deepcopy(model).double()(x.double()), strict=True):
            assert_close(torch.from_numpy(made), wanted, reassociates=True)
