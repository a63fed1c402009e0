"""Calls of ONNX Runtime that are prepared once, as steps of a plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regraft.backends import LowerOptions, backend
from regraft.conformance import Case
from regraft.errors import RegraftError
from regraft.ir import dims
from regraft.runtime import LARGE, Bindable
from regraft.testing import GraphConstants


def lowered(build: Any, *types: str) -> Bindable:
    function = Case("", build, types).function()
    executable: Any = backend("ort").lower(function, GraphConstants(), LowerOptions(threads=1))
    assert isinstance(executable, Bindable)
    return executable


def test_what_stays_is_read_and_written_where_it_is() -> None:
    def build(op: Any, x: Any, y: Any) -> Any:
        return op.aten.exp(x), op.aten.add.Tensor(x, y), op.aten.neg(y)

    executable = lowered(build, "f32[B, 4]", "f32[B, 4]")
    for size in (3, 0):
        place = torch.empty(size, 4)
        bound = executable.bind([place, None], [True, False, True], {"B": size})
        assert [tensor is None for tensor in bound.kept] == [False, True, False]
        sums = []
        for seed in range(3):
            x, y = torch.randn(2, size, 4, generator=torch.Generator().manual_seed(seed))
            place.copy_(x)
            found = bound.run([place, y.t().contiguous().t()])
            for tensor, wanted in zip(found, (x.exp(), x + y, -y), strict=True):
                torch.testing.assert_close(tensor, wanted)
            assert found[0] is bound.kept[0]
            assert found[2] is bound.kept[2]
            sums.append((found[1], x + y))
        assert all(torch.equal(*pair) for pair in sums)


def test_large_results_do_not_stay() -> None:
    executable = lowered(lambda op, x: op.aten.neg(x), "f32[B]")
    bound = executable.bind([None], [True], {"B": LARGE})
    assert bound.kept == (None,)
    assert torch.equal(bound.run([torch.ones(LARGE)])[0], -torch.ones(LARGE))


def test_results_as_long_as_values_say_do_not_stay() -> None:
    length = next(dims.symbols_of(dims.symbol("u", 0, 6)))

    def build(op: Any, x: Any) -> Any:
        return op.create("aten.nonzero", (x,), symbols=[length]).result

    executable = lowered(build, "f32[6]")
    bound = executable.bind([None], [True], {})
    assert bound.kept == (None,)
    for x in (torch.ones(6), torch.zeros(6), torch.arange(6.0), torch.ones(6)):
        assert torch.equal(bound.run([x])[0], x.nonzero())


def test_a_check_that_fails_raises_each_time() -> None:
    def build(op: Any, x: Any) -> Any:
        op.rg.check(op.aten.all(op.aten.gt.Scalar(x, 0)), "x must be positive")
        return op.aten.neg(x)

    bound = lowered(build, "f32[3]").bind([None], [True], {})
    for _ in range(2):
        assert bound.run([torch.ones(3)])[0].tolist() == [-1, -1, -1]
        with pytest.raises(RegraftError, match="x must be positive"):
            bound.run([-torch.ones(3)])


def test_small_results_are_copied_out_of_what_is_bound_once() -> None:
    """No caller sees what the next one gets, whatever the mode that the first call was made in."""

    def build(op: Any, x: Any) -> Any:
        return op.aten.neg(x), op.aten.exp(x), op.aten.gt.Scalar(x, 0)

    executable = lowered(build, "f32[3]")
    with torch.inference_mode():
        before = executable.run([torch.ones(3)], {})
    results = [executable.run([x], {}) for x in (torch.ones(3), torch.zeros(3))]
    assert all(result.is_inference() for result in before)
    assert not any(result.is_inference() or result.requires_grad for each in results for result in each)
    for x, found in zip((torch.ones(3), torch.ones(3), torch.zeros(3)), (before, *results), strict=True):
        for tensor, wanted in zip(found, (-x, x.exp(), x > 0), strict=True):
            torch.testing.assert_close(tensor, wanted)
    assert len({t.data_ptr() for each in (before, *results) for t in each}) == 9


def test_results_as_long_as_values_say_keep_their_places() -> None:
    length = next(dims.symbols_of(dims.symbol("u", 0, 6)))

    def build(op: Any, x: Any) -> Any:
        op.rg.check(op.aten.all(op.aten.lt.Scalar(x, 9.0)), "too large")
        found = op.create("aten.nonzero", (x,), symbols=[length]).result
        return found, op.aten.neg(x)

    executable = lowered(build, "f32[6]")
    for count in (2, 0, 6):
        x = (torch.arange(6) < count).float()
        found, negated = executable.run([x], {})
        assert torch.equal(found, x.nonzero())
        assert torch.equal(negated, -x)
