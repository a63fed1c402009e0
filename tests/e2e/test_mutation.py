"""Models that write: to their buffers, to their arguments, to what they made themselves."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import regraft
from regraft.errors import CaptureError, GradientError, RegraftError, ShapeError
from regraft.testing import randomise
from tests.e2e.mutating import assert_equal_state, check, rows, same

# -- buffers -----------------------------------------------------------------------------------


class Counting(nn.Module):
    """Writes to two buffers, one of them not saved with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("total", torch.zeros(8), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.total[2:5].mul_(0.5).add_(x.sum())
        return self.linear(x) + self.calls, self.total


@pytest.fixture
def counting() -> Counting:
    model = randomise(Counting().eval())
    model.calls.zero_()
    return model


def test_buffers(counting: Counting) -> None:
    compiled = check(counting, rows(), verify=True, fallback="eager")
    assert counting.calls == 3
    assert 'state("calls", "total")' in compiled.ir
    assert compiled.report.to_dict()["memory"]["state"] == 36


def test_a_buffer_that_code_reaches_by_another_way() -> None:
    class Holder:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count: Any
            self.register_buffer("count", torch.zeros(2))
            self.holder = Holder(self.count)

        def forward(self, x: Tensor) -> Tensor:
            self.holder.tensor.add_(1)
            return x + self.count + self.holder.tensor

    model: Any = Counting().eval()
    reference = Counting().eval()
    compiled = regraft.compile(model, (torch.ones(2),), verify=True)
    for _ in range(3):
        assert torch.equal(compiled(torch.ones(2)), reference(torch.ones(2)))
    assert model.holder.tensor is model.count  # and the compile, which traced the write, has undone it
    assert model.count.tolist() == [3.0, 3.0]


def test_dynamic_sizes(counting: Counting) -> None:
    shapes = {"x": {0: Dim.AUTO}}
    compiled = regraft.compile(counting, (rows(),), dynamic_shapes=shapes, fallback="eager")
    assert counting.calls == 0
    reference = copy.deepcopy(counting)
    for count in (1, 7, 2):
        same(compiled(rows(count)), reference(rows(count)))
        assert_equal_state(counting, reference)


def test_the_state_is_the_models_own(counting: Counting) -> None:
    """Both see what the other writes, and writing to it is no change of a weight."""
    compiled = regraft.compile(counting, (rows(),), fallback="eager")
    counting(rows())
    assert compiled(rows())[0].shape == (3, 8)
    assert counting.calls == 2
    counting.calls.fill_(10)
    counting.load_state_dict(counting.state_dict())
    compiled = regraft.compile(counting, (rows(),), fallback="eager")
    counting.calls.fill_(20)
    compiled(rows())
    assert counting.calls == 21


def test_a_result_is_no_part_of_the_state(counting: Counting) -> None:
    compiled = regraft.compile(counting, (rows(),), fallback="eager")
    compiled(rows())[1].fill_(100)
    assert counting.total.abs().max() < 100


def test_a_weight_of_a_model_with_state(counting: Counting) -> None:
    compiled = regraft.compile(counting, (rows(),), fallback="eager")
    with torch.no_grad():
        counting.linear.weight.mul_(2)
    with pytest.raises(RegraftError, match="changed in place after the compile"):
        compiled(rows())
    assert counting.calls == 0
    compiled.refresh(counting)
    reference = copy.deepcopy(counting)
    same(compiled(rows()), reference(rows()))
    assert counting.calls == 1


class Adapted(nn.Module):
    """A weight with a low-rank addition, merged into one recipe."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.a = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(2, 8))
        self.b = nn.Parameter(torch.zeros(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.b @ self.a)


def test_refresh_of_merged_weights() -> None:
    model = randomise(Adapted().eval())
    compiled = regraft.compile(model, (rows(),), verify=True)
    assert "recipe" in compiled.ir
    with torch.no_grad():
        model.b.add_(1)
    with pytest.raises(RegraftError, match="changed in place after the compile"):
        compiled(rows())
    compiled.refresh(model)
    same(compiled(rows()), model(rows()))


def test_refresh_takes_the_state_of_another_model(counting: Counting) -> None:
    compiled = regraft.compile(counting, (rows(),), fallback="eager")
    other = randomise(Counting().eval(), seed=1)
    reference = copy.deepcopy(other)
    compiled.refresh(other)
    same(compiled(rows()), reference(rows()))
    assert_equal_state(other, reference)
    assert counting.calls == 0
    other.calls = torch.zeros(2)
    with pytest.raises(RegraftError, match=r"'calls' is .*\[2\].*\[1\]"):
        compiled.refresh(other)


def test_the_state_changes_its_shape(counting: Counting) -> None:
    compiled = regraft.compile(counting, (rows(),), fallback="eager")
    counting.total.resize_(9)
    with pytest.raises(RegraftError, match=r"'total' has the shape \[9\]"):
        compiled(rows())


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.table = nn.Embedding(4, 2)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        x.mul_(2)
        return self.table(ids) + self.calls + x


def test_a_call_that_raises_changes_nothing() -> None:
    model = Failing().eval()
    compiled = regraft.compile(model, (torch.tensor([1]), torch.ones(2)))
    x = torch.ones(2)
    with pytest.raises(RegraftError):
        compiled(torch.tensor([9]), x)
    with pytest.raises(ShapeError):
        compiled(torch.tensor([1]), x.double())
    assert torch.equal(x, torch.ones(2))
    assert model.calls == 0
    compiled(torch.tensor([1]), x)
    assert model.calls == 1
    assert torch.equal(x, torch.full((2,), 2.0))


class Assigning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        self.cache = self.cache * 0.5 + x.mean(0)
        return x + self.cache


def test_a_buffer_that_is_assigned() -> None:
    check(Assigning().eval(), rows(), verify=True)


class Training(nn.Module):
    """Writes to a parameter, as an online learner does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.add_(x.mean(0), alpha=0.1)
        return x * self.weight


def test_a_parameter() -> None:
    model = Training().eval()
    compiled = check(model, rows(), verify=True)
    assert model.weight.requires_grad
    assert 'state("weight")' in compiled.ir


class Averaging(Assigning):
    def forward(self, x: Tensor) -> Tensor:
        self.cache.mul_(0.5).add_(x.mean(0))
        return x + self.cache


class Shared(nn.Module):
    """One submodule with state under two names."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.first = self.second = part

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_a_module_that_is_used_twice() -> None:
    check(Shared(Averaging()).eval(), rows(), verify=True)


def test_an_assignment_in_a_module_that_is_used_twice() -> None:
    check(Shared(Assigning()).eval(), rows(), verify=True)


class Exchanging(nn.Module):
    """Hands on what buffers were, to each other and as results."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Assigning(), Assigning()
        self.register_buffer("last", torch.zeros(8))
        self.register_buffer("count", torch.zeros(8))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        was, part = self.last, self.left.cache[:3]
        self.left.cache, self.right.cache = self.right.cache * 0.5 + x.mean(0), self.left.cache
        self.last = self.left.cache + 0
        self.count = self.count + 1
        return was, part, x + self.count


def test_what_a_buffer_was_before_it_is_assigned() -> None:
    """Eager gives the earlier tensor, to which nobody has written."""
    check(Exchanging().eval(), rows(), verify=True)


def test_an_assignment_of_another_type() -> None:
    class Widening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Assigning()

        def forward(self, x: Tensor) -> Tensor:
            self.inner.cache = x
            return x + 1

    with pytest.raises(CaptureError, match=r"assigns float32\[3, 8\] to its buffer 'inner.cache', which is"):
        regraft.compile(Widening().eval(), (rows(),), cache=False)


def test_state_is_no_constant() -> None:
    """Ops over state alone are computed at each call, not folded."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            y = x * (self.scale * 2 + 1)
            self.scale.add_(1)
            return y

    compiled = check(Scaled().eval(), rows())
    assert "recipe" not in compiled.ir


# -- saving ------------------------------------------------------------------------------------


def test_an_artefact_goes_on_from_the_state_it_was_saved_with(counting: Counting, tmp_path: Path) -> None:
    compiled = regraft.compile(counting, (rows(),), fallback="eager")
    compiled(rows())
    compiled.save(tmp_path / "saved")
    reference = copy.deepcopy(counting)
    compiled(rows())
    first, second = (regraft.load(tmp_path / "saved") for _ in range(2))
    expected = pytree.tree_map(torch.clone, reference(rows(seed=1)))
    same(first(rows(seed=1)), expected)
    same(second(rows(seed=1)), expected)
    assert counting.calls == 2
    same(first(rows(seed=2)), reference(rows(seed=2)))
    first.save(tmp_path / "again")
    same(regraft.load(tmp_path / "again")(rows(seed=3)), reference(rows(seed=3)))
    same(regraft.load(tmp_path / "saved")(rows(seed=1)), expected)


def test_an_artefact_of_a_function_that_writes_to_an_argument(tmp_path: Path) -> None:
    regraft.compile(add_to, (rows(), rows())).save(tmp_path / "saved")
    loaded, x = regraft.load(tmp_path / "saved"), rows()
    assert loaded(x, rows(seed=1)) is x
    same(x, rows() + rows(seed=1))


# -- arguments ---------------------------------------------------------------------------------


def add_to(x: Tensor, y: Tensor) -> Tensor:
    return x.add_(y)


@pytest.fixture(scope="module")
def adding() -> Any:
    return regraft.compile(add_to, (rows(), rows()), verify=True)


def test_an_argument_is_returned_as_it_is(adding: Any) -> None:
    x, y = rows(), rows(seed=1)
    assert adding(x, y) is x
    same(x, rows() + y)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "transposed": lambda: torch.zeros(8, 3).T,
    "strided": lambda: torch.zeros(6, 16)[::2, ::2],
    "offset": lambda: torch.zeros(10, 10)[2:5, 1:9],
    "row of a batch": lambda: torch.zeros(2, 3, 8)[1],
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_an_argument_of_any_layout(adding: Any, make: Callable[[], Tensor]) -> None:
    x = make()
    whole = x._base
    assert adding(x, rows()) is x
    same(x, rows())
    same(whole.sum(), rows().sum())


def test_memory_format() -> None:
    def model(x: Tensor) -> Tensor:
        x.mul_(2)
        return x.sum((2, 3))

    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    compiled = regraft.compile(model, (x,))
    same(compiled(x), 2 * before.sum((2, 3)))
    same(x, 2 * before)
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_identity_of_results() -> None:
    """An argument that is written to comes back itself; all else is fresh."""

    def model(x: Tensor, y: Tensor) -> dict[str, Any]:
        old = x.clone()
        x.add_(y)
        return {"x": x, "old": old, "view": x.view(-1), "y": y, "twice": [x, x * 2], "n": 3}

    compiled = regraft.compile(model, (rows(), rows()), verify=True)
    x, y = rows(), rows(seed=1)
    found, expected = compiled(x, y), model(rows(), rows(seed=1))
    assert found["x"] is x
    assert not np.shares_memory(found["y"].numpy(), y.numpy())
    assert found["twice"][0] is x
    same(found, expected)
    found["view"].zero_()
    found["old"].zero_()
    same(x, expected["x"])


def test_arguments_in_a_structure() -> None:
    def model(caches: dict[str, Tensor], x: Tensor) -> Tensor:
        caches["k"][:, 1] = x
        caches["v"].mul_(2)
        return caches["k"].sum() + caches["v"].sum()

    caches = {"k": torch.zeros(4, 3), "v": torch.ones(4)}
    compiled = regraft.compile(model, (caches, torch.ones(4)), fallback="eager")
    assert compiled(caches, torch.full((4,), 2.0)) == 16
    assert torch.equal(caches["k"], torch.tensor([0.0, 2.0, 0.0]).expand(4, 3))
    assert torch.equal(caches["v"], torch.full((4,), 2.0))


def swap(x: Tensor, y: Tensor) -> None:
    old = x.clone()
    x.copy_(y)
    y.copy_(old)


def test_swap() -> None:
    compiled = regraft.compile(swap, (rows(), rows()))
    x, y = rows(), rows(seed=1)
    assert compiled(x, y) is None
    assert torch.equal(x, rows(seed=1))
    assert torch.equal(y, rows())


def test_integers_and_bools() -> None:
    def model(ids: Tensor, seen: Tensor) -> Tensor:
        ids.clamp_(max=3)
        seen.logical_or_(ids > 2)
        return ids + 1

    check(model, torch.arange(8), torch.zeros(8, dtype=torch.bool), verify=True)


def test_size_one_with_a_write() -> None:
    """The trial at capture that allows sizes of 1 writes to copies."""

    def model(x: Tensor, y: Tensor) -> Tensor:
        x.add_(y)
        return x * 2

    x, y = rows(), rows(seed=1)
    compiled = regraft.compile(model, (x, y), dynamic_shapes={"x": {0: Dim.AUTO}, "y": {0: Dim.AUTO}})
    assert torch.equal(x, rows())
    for count in (1, 5):
        x = rows(count)
        same(compiled(x, rows(count)), 4 * rows(count))
        same(x, 2 * rows(count))


# -- arguments that cannot be written to -------------------------------------------------------


def views_of_one() -> tuple[Tensor, Tensor]:
    base = torch.zeros(5, 8)
    return base[:3], base[2:]


REFUSED: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], str]] = {
    "twice": (lambda: (lambda x: (x, x))(rows()), "'x', which the model writes to, shares memory with 'y'"),
    "overlapping": (views_of_one, "'x', which the model writes to, shares memory with 'y'"),
    "expanded": (lambda: (torch.zeros(8).expand(3, 8), rows()), "'x' is expanded"),
    "windows": (lambda: (torch.zeros(10).unfold(0, 8, 1), rows()), "'x' is expanded"),
    "leaf": (lambda: (rows().requires_grad_(), rows()), "'x' requires grad"),
    "dtype": (lambda: (rows().double(), rows()), "'x' has dtype f64"),
    "device": (lambda: (rows().to("meta"), rows()), "'x' is on meta"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_call_that_eager_or_we_refuse(adding: Any, case: str) -> None:
    make, message = REFUSED[case]
    x, y = make()
    before = None if x.is_meta else x.detach().clone()
    with pytest.raises((ShapeError, GradientError), match=message):
        adding(x, y)
    assert before is None or torch.equal(x, before)


def test_neighbours_in_one_storage_do_not_overlap(adding: Any) -> None:
    base = torch.cat([rows(), rows(seed=1)], dim=1)
    x, y = base[:, :8], base[:, 8:]
    assert adding(x, y) is x
    same(base[:, :8], rows() + rows(seed=1))


def test_an_inference_tensor(adding: Any) -> None:
    with torch.inference_mode():
        x = rows() + 0
    with pytest.raises(ShapeError, match="inference tensor"):
        adding(x, rows())
    with torch.inference_mode():
        assert adding(x, rows()) is x
    same(x, 2 * rows())


def test_an_argument_that_is_the_state(counting: Counting) -> None:
    class Model(Counting):
        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x)
            return x * 1

    model = Model().eval()
    compiled = regraft.compile(model, (torch.ones(8),))
    with pytest.raises(ShapeError, match="'total', which the model writes to, shares memory with 'x'"):
        compiled(model.total)


# -- threads -----------------------------------------------------------------------------------


def test_an_argument_that_lies_in_a_weight() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 8))

        def forward(self, x: Tensor) -> Tensor:
            x.add_(self.weight[1])
            return x * self.weight

    model = Model().eval()
    compiled = regraft.compile(model, (torch.ones(8),))
    with pytest.raises(ShapeError, match="'x', which the model writes to, lies in the memory of a weight"):
        compiled(model.weight.detach()[1])
    assert torch.equal(model.weight, torch.ones(3, 8))
    flat = torch.ones(5, 8)
    model.weight = nn.Parameter(torch.from_numpy(flat.numpy()[1:4]))  # not a view of torch's
    compiled.refresh(model)
    for row in (0, 4):
        same(compiled(flat[row]), 2 * torch.ones(3, 8))
    for row in (1, 2, 3):
        with pytest.raises(ShapeError, match="lies in the memory of a weight"):
            compiled(flat[row])


def test_threads_take_turns(counting: Counting) -> None:
    """Each call sees the state that another has left, whole."""
    compiled = regraft.compile(counting, (rows(),), fallback="eager")
    plain = counting.linear(rows()).detach()
    seen: list[float] = []

    def work() -> None:
        for _ in range(25):
            number = (compiled(rows())[0] - plain).mean()
            seen.append(round(float(number), 2))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [float(n) for n in range(1, 201)]
    assert counting.calls == 200
