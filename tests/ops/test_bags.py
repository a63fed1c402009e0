"""``torch.nn.EmbeddingBag``, from capture to ONNX Runtime, and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import regraft
from regraft.errors import BackendError, RegraftError, UnsupportedOpError
from regraft.testing import assert_close, randomise

MODES = ("sum", "mean", "max")
INDICES = torch.tensor([1, 2, 4, 5, 4, 3, 2, 6])
OFFSETS = torch.tensor([0, 2, 2, 7])  # the second bag is empty


def bag(mode: str, **options: Any) -> nn.EmbeddingBag:
    return randomise(nn.EmbeddingBag(7, 3, mode=mode, **options).eval())


def check(model: nn.Module, compiled: Any, *args: Tensor) -> None:
    exact = [a.double() if a.is_floating_point() else a for a in args]
    with torch.no_grad():
        own, expected = model(*args), model.double()(*exact)
        model.float()
    assert_close(compiled(*args), expected, own)


@pytest.mark.conformance
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [None, 4, -1])
@pytest.mark.parametrize("last", [False, True])
def test_bags(mode: str, padding: int | None, last: bool) -> None:
    model = bag(mode, padding_idx=padding, include_last_offset=last)
    sizes = {"input": {0: Dim.AUTO}, "offsets": {0: Dim.AUTO}}
    offsets = torch.cat([OFFSETS, torch.tensor([8])]) if last else OFFSETS
    compiled = regraft.compile(model, (INDICES, offsets), dynamic_shapes=sizes)
    assert set(compiled.report.executors) == {"ort"}
    check(model, compiled, INDICES, offsets)
    check(model, compiled, INDICES, torch.tensor([0, 8, 8]))
    check(model, compiled, INDICES[:3], torch.tensor([0, 1, 1, 3, 3]))
    check(model, regraft.compile(model, (INDICES, offsets), backends=("eager",)), INDICES, offsets)


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_one_length(mode: str) -> None:
    model, x = bag(mode), INDICES.view(2, 4)
    compiled = regraft.compile(model, (x,), dynamic_shapes={"input": {0: Dim.AUTO}})
    assert set(compiled.report.executors) == {"ort"}
    check(model, compiled, x)
    check(model, compiled, torch.randint(7, (5, 4), generator=torch.Generator().manual_seed(0)))


def test_weights_of_samples() -> None:
    model, scales = bag("sum"), torch.linspace(-1, 2, 8)

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = model

        def forward(self, indices: Tensor, offsets: Tensor, scales: Tensor) -> Tensor:
            return self.bag(indices, offsets, scales)

    compiled = regraft.compile(Weighted().eval(), (INDICES, OFFSETS, scales))
    assert set(compiled.report.executors) == {"ort"}
    check(Weighted().eval(), compiled, INDICES, OFFSETS, scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    model = bag("mean").to(dtype)
    compiled = regraft.compile(model, (INDICES.int(), OFFSETS.int()))
    with torch.no_grad():
        own = model(INDICES, OFFSETS)
        assert_close(compiled(INDICES.int(), OFFSETS.int()), model.double()(INDICES, OFFSETS), own)


def test_a_row_of_nan_is_in_its_bags_alone() -> None:
    model = bag("sum", padding_idx=4)
    with torch.no_grad():
        model.weight[4] = model.weight[6] = torch.nan
    found = regraft.compile(model, (INDICES, OFFSETS))(INDICES, OFFSETS)
    assert found.isnan().all(1).tolist() == [False, False, False, True]
    assert torch.equal(found.isnan(), model(INDICES, OFFSETS).isnan())


@pytest.mark.parametrize("backend", ["ort", "eager"])
@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([1, 2, 8], "the first offset is not 0"),
        ([0, 5, 3], "the offsets decrease"),
        ([0, 4, 7], "the last offset is not the number of indices"),
    ],
)
def test_offsets_that_are_none(offsets: list[int], words: str, backend: str) -> None:
    sizes = {"input": {0: Dim.AUTO}, "offsets": {0: Dim.AUTO}}
    model = bag("sum", include_last_offset=True)
    compiled = regraft.compile(model, (INDICES, OFFSETS), dynamic_shapes=sizes, backends=(backend,))
    with pytest.raises(RegraftError, match=f"embedding_bag: {words}"):
        compiled(INDICES, torch.tensor(offsets))


def test_what_is_out_of_range() -> None:
    compiled = regraft.compile(bag("sum"), (INDICES, OFFSETS))
    for indices, offsets in ((INDICES + 1, OFFSETS), (INDICES, OFFSETS + torch.tensor([0, 0, 0, 9]))):
        with pytest.raises(BackendError):
            compiled(indices, offsets)


def all_results(indices: Tensor, weight: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    bags, places, _, _ = torch.embedding_bag(weight, indices, offsets, mode=1)
    return bags, places


def test_results_that_only_a_gradient_needs_are_torchs() -> None:
    args = (INDICES, torch.randn(7, 3), OFFSETS)
    with pytest.raises(UnsupportedOpError, match="embedding_bag"):
        regraft.compile(all_results, args)
    compiled = regraft.compile(all_results, args, fallback="eager")
    for found, expected in zip(compiled(*args), all_results(*args), strict=True):
        assert torch.equal(found, expected)


def test_many_indices_of_one_bag() -> None:
    """Each counts, whichever thread adds it up."""
    weight, indices = torch.ones(3, 64), torch.zeros(20_000, dtype=torch.int64)

    def model(indices: Tensor, offsets: Tensor) -> Tensor:
        return F.embedding_bag(indices, weight, offsets, mode="sum")

    offsets = torch.tensor([0, 19_999])
    compiled = regraft.compile(model, (indices, offsets))
    expected = torch.tensor([[19_999.0], [1.0]]).expand(2, 64)
    for _ in range(5):
        assert torch.equal(compiled(indices, offsets), expected)


def test_a_file(tmp_path: Path) -> None:
    model, path = bag("mean", padding_idx=4), tmp_path / "bag.onnx"
    sizes = {"input": {0: Dim.AUTO}, "offsets": {0: Dim.AUTO}}
    regraft.export_onnx(model, (INDICES, OFFSETS), path, dynamic_shapes=sizes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for indices, offsets in ((INDICES, OFFSETS), (INDICES[:5], torch.tensor([0, 5, 5]))):
        feed = {i.name: v.numpy() for i, v in zip(session.get_inputs(), (indices, offsets), strict=True)}
        (found,) = session.run(None, feed)
        with torch.no_grad():
            assert_close(torch.from_numpy(found), model.double()(indices, offsets))
            model.float()
