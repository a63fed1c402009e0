"""Plans of kernels whose memory stays from call to call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.backends import LowerOptions
from regraft.conformance import Case
from regraft.errors import BackendError
from regraft.runtime import Bindable
from regraft.testing import GraphConstants, PathCounts, assert_close, randomise
from tests.models import in_double


class Exits(nn.Module):
    """Leaves behind the first layer whose score is large enough; every layer may be skipped.

    The loop in each layer has the plan decide all conditions around it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer, head in zip(self.layers, self.heads, strict=True):
            if x.mean() > 0:
                step = layer(x)
                while step.abs().amax() > 2.5:
                    step = step / 2
                x = x + torch.tanh(step)
            y = head(x)
            if y.amax() > 2.5:
                return y, x
        return y, x


INPUTS = [
    scale * torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)) + shift
    for seed in range(4)
    for scale, shift in ((1.0, 0.1), (1.0, -0.1), (0.2, 0.0), (4.0, 0.2), (0.05, 0.3), (0.05, -0.3))
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomise(Exits().eval())


@pytest.fixture(scope="module")
def compiled(tvm: Any, model: nn.Module) -> Any:
    return regraft.compile(model, (INPUTS[0],), backends=(tvm,))


def check(model: nn.Module, call: Callable[..., Any], *inputs: Tensor) -> None:
    for x in inputs:
        with torch.no_grad():
            eager = model(x)
        assert_close(list(call(x)), list(in_double(model, x)), list(eager), reassociates=True)


def test_every_path(tvm: Any, model: nn.Module) -> None:
    paths = PathCounts()
    compiled = regraft.compile(model, (INPUTS[0],), backends=(tvm,), passes=paths.passes)
    check(model, compiled, *INPUTS, *INPUTS)
    paths.assert_all_ran()


def test_results_are_the_callers(model: nn.Module, compiled: Any) -> None:
    kept = [(x, compiled(x)) for x in INPUTS]
    for _, results in kept[::2]:
        for result in results:
            result.add_(100)
    check(model, compiled, *INPUTS)
    for x, results in kept[1::2]:
        check(model, lambda _, results=results: results, x)
    places = [result.data_ptr() for _, results in kept for result in results]
    assert len(set(places)) == len(places)


def test_arguments_of_any_layout(model: nn.Module, compiled: Any) -> None:
    x = INPUTS[4]
    room = torch.zeros(41)
    room[1:].copy_(x.reshape(-1))
    check(model, compiled, x, room[1:].view(5, 8), x.t().contiguous().t(), x)


def test_threads_at_once(compiled: Any) -> None:
    expected = [compiled(x) for x in INPUTS]
    errors: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for turn in range(60):
                number = (start * 5 + turn) % len(INPUTS)
                for found, wanted in zip(compiled(INPUTS[number]), expected[number], strict=True):
                    assert torch.equal(found, wanted)
        except BaseException as error:  # handed to the test's thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_sizes_that_change(tvm: Any, model: nn.Module) -> None:
    rows = {0: Dim("rows", min=1, max=64)}
    compiled = regraft.compile(model, (INPUTS[0],), dynamic_shapes=(rows,), backends=(tvm,))
    for size in (5, 1, 3, 5, 5, 64, 3, 1, 64, *range(7, 20), 5, 5):
        check(model, compiled, *(x[:1].expand(size, 8) + 0.01 for x in INPUTS[:6]))


def test_saved_and_loaded(compiled: Any, model: nn.Module, tmp_path: Path) -> None:
    """What the first call is made in leaves no trace in later ones."""
    compiled(INPUTS[0])
    compiled.save(tmp_path / "saved")
    loaded = regraft.load(tmp_path / "saved", allow_native=True)
    assert set(loaded.report.to_dict()["executors"]) == {"tvm", "host"}
    with torch.inference_mode():
        check(model, loaded, *INPUTS)
    assert not any(result.is_inference() or result.requires_grad for result in loaded(INPUTS[0]))
    check(model, loaded, *INPUTS)


class Swaps(nn.Module):
    """A loop whose trips hand on what they were given, in the other order, or run a loop of their own."""

    def forward(self, x: Tensor, trips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, i = x, x * 2, torch.zeros((), dtype=torch.int64)
        while i < trips:
            if a.sum() > b.sum():
                a, b = b, a
            else:
                j = torch.zeros((), dtype=torch.int64)
                while j < i:
                    b, j = b * 0.5 - a, j + 1
            i = i + 1
        return a, b, x + a


def test_loops_and_arms_in_each_other(tvm: Any) -> None:
    model, paths = Swaps().eval(), PathCounts()
    example = torch.ones(3, 4), torch.tensor(3)
    compiled = regraft.compile(model, example, backends=(tvm,), passes=paths.passes)
    kept = []
    for trips in (0, 1, 2, 5, 3, 0):
        for x in (torch.ones(3, 4), -torch.ones(3, 4), torch.linspace(-1, 2, 12).view(3, 4)):
            given = x.clone(), torch.tensor(trips)
            kept.append((compiled(*given), in_double(model, *given), model(*given)))
            assert torch.equal(given[0], x)
    for found, expected, eager in kept:
        assert_close(list(found), list(expected), list(eager), reassociates=True)
    paths.assert_all_ran()


class Looks(nn.Module):
    """An index that may be out of range, in an arm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        y = x * 2
        if y.sum() > 0:
            y = y + self.table(index)
        return y


def test_a_kernel_that_fails(tvm: Any) -> None:
    model, x = Looks().eval(), torch.ones(3, 4)
    compiled = regraft.compile(model, (x, torch.tensor([0, 1, 2])), backends=(tvm,))
    for _ in range(2):
        with pytest.raises(BackendError, match="an index is out of range"):
            compiled(x, torch.tensor([0, 9, 2]))
        for given in (x, -x):
            index = torch.tensor([5, 0, 1])
            assert torch.equal(compiled(given, index), model(given, index).detach())


def test_what_stays_is_read_where_it_is(tvm: Any) -> None:
    """An input that stays and one that does not; a result that stays and one that is there twice."""

    def build(op: Any, x: Any, y: Any) -> Any:
        total = op.aten.add.Tensor(x, y)
        return op.aten.exp(x), total, total, y

    function = Case("", build, ("f32[B, 4]", "f32[B, 4]")).function()
    executable = tvm.lower(function, GraphConstants(), LowerOptions())
    assert isinstance(executable, Bindable)
    for size in (3, 0):
        place = torch.empty(size, 4)
        bound = executable.bind([place, None], [True, False, True, True], {"B": size})
        assert [tensor is None for tensor in bound.kept] == [False, True, False, False]
        for seed in range(3):
            x, y = torch.randn(2, size, 4, generator=torch.Generator().manual_seed(seed))
            place.copy_(x)
            found = bound.run([place, y])
            for tensor, wanted in zip(found, (x.exp(), x + y, x + y, y), strict=True):
                torch.testing.assert_close(tensor, wanted)
            for tensor, kept in zip(found, bound.kept, strict=True):
                assert kept is None or tensor is kept
            assert found[1].data_ptr() != place.data_ptr() or not size
