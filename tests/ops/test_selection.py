"""Ops whose values decide how long their results are, from capture to ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import regraft
from regraft.errors import RegraftError
from regraft.ir import OPS, Builder, Op, Region, Symbol
from regraft.testing import assert_close
from tests.ops import harness
from tests.ops.samples import BOOL, F64, I64, S, Sample, T

LENGTH = Symbol("u0")

#: A call of each op that defines the length of its result.
CALLS = (
    Sample("aten.nonzero", (T(S, 3),)),
    Sample("aten._unique2", (T(S, 3, dtype=I64), True, True, True)),
    Sample("aten.masked_select", (T(S, 3), T(3, dtype=BOOL))),
    Sample("aten.repeat_interleave.Tensor", (T(S, dtype=I64),)),
    Sample("aten.bincount", (T(S, dtype=I64), T(S, dtype=F64), 4)),
)


def selecting(sample: Sample) -> Op:
    """The sample's op, defining its length."""
    region = Region([operand.type for operand in sample.operands])
    values = iter(region.args)
    call = sample.mapped(lambda _: next(values))
    return Builder(OPS, region).create(call.name, call.args, dict(call.kwargs), symbols=(LENGTH,))


@pytest.mark.parametrize("sample", CALLS, ids=str)
def test_the_length_is_a_symbol_of_the_op(sample: Sample) -> None:
    op = selecting(sample)
    assert str(op.results[0].tensor.shape[0]) == "u0"
    with pytest.raises(TypeError, match="defines 0 symbols"):
        harness.op_of(sample)


@pytest.mark.parametrize("sample", [s for s in CALLS if not s.definition.canonical], ids=str)
def test_decompositions_define_the_length(sample: Sample) -> None:
    op = selecting(sample)
    assert op.parent is not None
    assert op.definition.decompose is not None
    results = op.definition.decompose(Builder(OPS, op.parent, op), op)
    assert [r.type for r in results] == [r.type for r in op.results]
    definers = [each.name for each in op.parent.ops if each.symbols == (LENGTH,) and each is not op]
    assert definers in (["aten.nonzero"], ["rg.bind_dim"])


Results = Sequence[Tensor]


def by_mask(x: Tensor, mask: Tensor) -> Results:
    picked = x[mask]
    return (
        picked * 3,
        torch.nonzero(mask) * 2,
        torch.masked_select(x, mask) + 1,
        torch.where(mask)[1],
        x.new_zeros(picked.shape[0]) + 1,
        x[mask[:, 0]].sum(1),
        x[:, mask[0]],
        torch.ops.aten.index.Tensor(x, [mask[:, 0], None]),
    )


def counts(x: Tensor, mask: Tensor) -> Results:
    number = mask.long().sum(1)
    return (
        torch.repeat_interleave(x, number, dim=0) * 2,
        torch.bincount(number, minlength=2),
        torch.bincount(number, weights=number),
        torch.unique(mask.long(), return_counts=True)[1],
        *torch.unique(number, return_inverse=True, return_counts=True),
    )


@pytest.mark.parametrize("function", [by_mask, counts])
def test_any_number_is_selected(function: Callable[[Tensor, Tensor], Results]) -> None:
    torch.manual_seed(0)
    shapes: Any = {"x": {0: Dim.AUTO}, "mask": {0: Dim.AUTO}}
    compiled = regraft.compile(function, (torch.randn(3, 4), torch.rand(3, 4) > 0.5), dynamic_shapes=shapes)
    assert set(compiled.report.to_dict()["executors"]) == {"ort"}
    for share, rows in ((0.5, 5), (-1.0, 2), (2.0, 7)):
        args = (torch.randn(rows, 4), torch.rand(rows, 4) < share)
        found = compiled(*args)
        assert [t.dtype for t in found] == [t.dtype for t in function(*args)]
        assert_close(found, list(function(args[0].double(), args[1])))


def test_many_lengths() -> None:
    """No name of a symbol reads as a dtype, as torch's u8 would."""

    def model(x: Tensor) -> Results:
        return [torch.masked_select(x, x > level) for level in range(10)]

    x = torch.arange(12.0).view(3, 4)
    assert [len(t) for t in regraft.compile(model, (x,))(x)] == [11 - level for level in range(10)]


def test_an_asserted_length_is_checked() -> None:
    def few(x: Tensor, mask: Tensor) -> Tensor:
        picked = x[mask]
        torch._check(picked.shape[0] <= 5)
        return picked + 1

    compiled = regraft.compile(few, (torch.randn(3, 4), torch.eye(3, 4) > 0))
    assert compiled(torch.randn(3, 4), torch.eye(3, 4) > 0).shape == (3,)
    with pytest.raises(RegraftError, match=r"len0 <= 5 must hold, .*: picked = x"):
        compiled(torch.randn(3, 4), torch.ones(3, 4) > 0)


def counted(number: Tensor) -> Tensor:
    return torch.bincount(number)


def repeated(number: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(3), number)


@pytest.mark.parametrize("backend", ["ort", "eager"])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (counted, "bincount: a number is negative"),
        (repeated, "repeat_interleave: a number of repeats is negative"),
    ],
)
@pytest.mark.parametrize("values", [(2, -1, 1), (-3, -2, -1)])
def test_what_is_negative_is_refused_as_by_torch(
    model: Callable[[Tensor], Tensor], words: str, values: tuple[int, ...], backend: str
) -> None:
    good, bad = torch.tensor([2, 0, 1]), torch.tensor(values)
    compiled = regraft.compile(model, (good,), backends=(backend,))
    assert torch.equal(compiled(good), model(good))
    with pytest.raises(RuntimeError, match="negative"):
        model(bad)
    with pytest.raises(RegraftError, match=words):
        compiled(bad)
    assert torch.equal(compiled(good), model(good))


def test_a_length_of_another_back_end() -> None:
    """The rows that eager finds are as many as its result has; ONNX Runtime goes on from there."""
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 3.0]])

    def model(x: Tensor) -> Tensor:
        return torch.unique(x, dim=0) * 2

    compiled = regraft.compile(model, (x,), fallback="eager")
    assert set(compiled.report.to_dict()["executors"]) == {"eager", "ort"}
    for y in (x, torch.zeros(3, 2), torch.arange(6.0).view(3, 2)):
        assert torch.equal(compiled(y), model(y))
