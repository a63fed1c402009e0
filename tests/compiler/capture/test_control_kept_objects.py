"""Objects that the model holds and its code changes at each call: a compile puts them back, or is refused."""

from __future__ import annotations

import array
import copy
import functools
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError
from regraft.testing import assert_close
from tests.compiler.capture.running import check_calls, compiled, rows

HERE = Path(__file__).name
UP = rows(4, shift=1.0)
COUNT = 0
LATEST: Any = None
HISTORY: list[Any] = []


class Slotted:
    __slots__ = ("count", "late")

    def __init__(self) -> None:
        self.count: Any = 0


@dataclass(slots=True, frozen=True)
class Fixed:
    values: list[int]


class Counts(nn.Module):
    """Counts its calls in all the ways that Python has, and makes nothing of it."""

    calls: ClassVar[int] = 0
    seen: ClassVar[list[str]] = []

    def __init__(self) -> None:
        super().__init__()
        self.slotted = Slotted()
        self.fixed = Fixed([0])
        self.data = bytearray(2)
        self.table = np.zeros(2)
        self.numbers = array.array("i", [0])
        self.step = closure()

    def forward(self, x: Tensor) -> Tensor:
        global COUNT  # noqa: PLW0603
        COUNT += 1
        HISTORY.append("called")
        Counts.calls += 1
        self.seen.append("called")
        setattr(type(self), "late", 1)  # noqa: B010
        self.slotted.count += 1
        self.slotted.late = 1
        object.__setattr__(self.fixed, "values", [1])
        self.data[0] += 1
        self.data.append(1)
        self.table[0] += 1
        self.numbers[0] += 1
        self.step()
        return x + 1 if x.sum() > 0 else x

    def state(self) -> Any:
        slotted = self.slotted.count, hasattr(self.slotted, "late")
        memory = bytes(self.data), self.table.tolist(), list(self.numbers)
        outside = COUNT, list(HISTORY), Counts.calls, list(self.seen), hasattr(Counts, "late")
        return slotted, self.fixed.values, memory, outside, self.step.__closure__[0].cell_contents


def closure() -> Any:
    n = 0

    def step() -> None:
        nonlocal n
        n += 1

    return step


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
def test_a_compile_leaves_all_that_code_changes_as_it_was(fails: bool) -> None:
    class Model(Counts):
        def forward(self, x: Any) -> Tensor:
            found = super().forward(x)
            return found @ torch.ones(99) if fails else found

    model = Model().eval()
    before = model.state()
    if fails:
        with pytest.raises(CaptureError):
            regraft.capture(model, (UP,))
    else:
        made = compiled(model, (UP,), "ort")
        torch.testing.assert_close(made(UP), UP + 1)
        torch.testing.assert_close(made(-UP), -UP)
    assert model.state() == before


def test_a_function_s_variables_are_as_they_were() -> None:
    step = closure()

    def model(x: Tensor) -> Tensor:
        step()
        return x * 2

    made = compiled(model, (UP,), "ort")
    torch.testing.assert_close(made(UP), UP * 2)
    assert step.__closure__[0].cell_contents == 0


TABLES: dict[int, Tensor] = {}


def table(n: int) -> Tensor:
    if n not in TABLES:
        TABLES[n] = torch.arange(n).float()
    return TABLES[n]


def remembers(x: Tensor) -> Tensor:
    y = x + table(4)
    return y * table(4) if y.sum() > 6 else -y


def test_a_tensor_that_constants_make_may_be_remembered() -> None:
    check_calls(remembers, (UP,), [(-UP,), (UP + 9,)], backends=("ort",))
    TABLES.clear()
    regraft.capture(remembers, (UP,))
    assert TABLES == {}


# -- containers of classes of the user's own, and caches -------------------------------------------


class Shy(list[int]):
    """A list that shows nobody what it holds, and takes nothing."""

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def extend(self, values: Any) -> None:
        raise AssertionError(values)


class Stack(deque[int]):
    def __init__(self, name: str) -> None:
        super().__init__([1, 2], maxlen=3)
        self.name = name


class Named(OrderedDict[str, int]):
    def __setitem__(self, key: str, value: int) -> None:
        super().__setitem__(f"{key}!", value)


class Group(set[int]):
    pass


class Fills(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.counter = Counter({"a": 1})
        self.shy = Shy([1, 2])
        self.stack = Stack("numbers")
        self.named = Named(one=1, two=2)
        self.group = Group([1, 2])

    def forward(self, x: Tensor) -> Tensor:
        self.counter["b"] += 1
        self.shy.append(3)
        self.stack.append(3)
        self.stack.append(4)
        self.named["three"] = 3
        self.named.move_to_end("one!")
        self.group.add(3)
        return x * 2

    def state(self) -> Any:
        in_order = [self.shy[i] for i in range(len(self.shy))], list(self.stack), list(self.named.items())
        return dict(self.counter), *in_order, self.stack.maxlen, self.stack.name, set(self.group)


def test_containers_of_derived_classes_hold_what_they_did() -> None:
    model = Fills().eval()
    before = model.state()
    made = compiled(model, (UP,), "ort")
    torch.testing.assert_close(made(UP), UP * 2)
    assert model.state() == before


@functools.lru_cache
def mask(n: int) -> Tensor:
    return torch.ones(n, n).tril()


def masked(x: Tensor) -> Tensor:
    y = x @ mask(4)
    return y if x.sum() > 0 else x * mask(x.shape[1])[0]


def test_a_cache_of_a_function_keeps_nothing_of_the_trace() -> None:
    mask.cache_clear()
    regraft.capture(masked, (UP,))
    assert mask.cache_info().currsize == 0
    torch.testing.assert_close(masked(UP), UP @ torch.ones(4, 4).tril())


def test_a_cache_that_the_trace_only_reads_stays() -> None:
    mask.cache_clear()
    kept = mask(4)
    made = compiled(masked, (UP,), "ort")
    assert mask(4) is kept
    torch.testing.assert_close(made(UP), UP @ kept)


# -- what only a call knows ----------------------------------------------------------------------


class KeepsInASlot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.notes = Slotted()

    def forward(self, x: Tensor) -> Tensor:
        self.notes.count = x.sum().item()  # the use
        return x * self.notes.count


class KeepsATensorInASlot(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.notes = Slotted()

    def forward(self, x: Tensor) -> Tensor:
        self.notes.late = x * 2  # the use
        return x + 1


class KeepsInAGlobal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        global LATEST  # noqa: PLW0603
        LATEST = x * 2  # the use
        return x + 1


class KeepsInAnArm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        global COUNT  # noqa: PLW0603
        if x.sum() > 0:
            COUNT = COUNT + 1  # the use
        return x + COUNT


class KeepsInAGlobalList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        HISTORY.append(x.sum().item())  # the use
        return x + HISTORY[-1]


class KeepsInAClass(nn.Module):
    best: ClassVar[float] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        KeepsInAClass.best = x.sum().item()  # the use
        return x + self.best


class KeepsInAClosure(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        last: Any = None

        def keep(x: Tensor) -> Tensor:
            nonlocal last
            last = x * 2  # the use
            return last

        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        return self.keep(x)


KEEPING = [
    (KeepsInASlot, r"its attribute '0\.notes\.count'"),
    (KeepsATensorInASlot, r"its attribute '0\.notes\.late'"),
    (KeepsInAGlobal, "'LATEST of "),
    (KeepsInAnArm, "'COUNT of "),
    (KeepsInAGlobalList, r"'HISTORY of .*\[0\]"),
    (KeepsInAClass, r"'KeepsInAClass\.best'"),
    (KeepsInAClosure, "'last of 0.keep'"),
]


@pytest.mark.parametrize(("kind", "name"), KEEPING, ids=lambda value: getattr(value, "__name__", None))
def test_what_a_model_keeps_of_a_call_is_refused_and_gone(kind: Any, name: str) -> None:
    model = nn.Sequential(kind()).eval()
    with pytest.raises(CaptureError, match=f"the model writes to {name}") as caught:
        regraft.capture(model, (UP,))
    assert "# the use" in str(caught.value)
    assert f"{HERE}:" in str(caught.value.location)
    assert (COUNT, LATEST, HISTORY, KeepsInAClass.best) == (0, None, [], 0.0)


# -- iterators -----------------------------------------------------------------------------------


class TakesTheNext(nn.Module):
    def __init__(self, values: Iterator[float]) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        return x * next(self.values)  # the use


class GoesOverThem(TakesTheNext):
    def forward(self, x: Tensor) -> Tensor:
        for value in self.values:  # the use
            if x.sum() > 0:
                x = x - value
        return x


MADE = [
    lambda: iter([1.0, 2.0, 3.0, 4.0, 5.0]),
    lambda: itertools.count(1),
    lambda: itertools.cycle([1.0, 2.0]),
    lambda: (float(i) for i in range(1, 9)),
    lambda: map(float, range(1, 9)),
    lambda: reversed([1.0, 2.0, 3.0, 4.0]),
]
TAKING = [(TakesTheNext, each) for each in MADE] + [
    (GoesOverThem, each) for each in (MADE[0], MADE[3], MADE[4])
]


@pytest.mark.parametrize(("kind", "made"), TAKING)
def test_an_iterator_that_the_model_holds_is_refused(kind: Any, made: Any) -> None:
    with pytest.raises(CaptureError, match="advances the iterator 'values', which outlives a call") as caught:
        regraft.capture(kind(made()).eval(), (UP,))
    assert "# the use" in str(caught.value)
    assert "list" in str(caught.value.hint)


def test_an_iterator_that_a_function_closes_over_is_refused() -> None:
    values = iter([1.0, 2.0, 3.0])

    def model(x: Tensor) -> Tensor:
        return x * next(values)

    with pytest.raises(CaptureError, match="advances the iterator 'values of forward'"):
        regraft.capture(model, (UP,))


# -- the walk ------------------------------------------------------------------------------------


def helper(index: int) -> Any:
    """A function with a global variable of its own, which a call of ``helper`` changes."""
    namespace: dict[str, Any] = {"last": None}
    text = f"\n\n\ndef keep_{index}(x):\n    global last\n    last = x * {index}\n    return x\n"
    exec(compile(text, __file__, "exec"), namespace)
    return namespace[f"keep_{index}"]


@pytest.mark.parametrize("index", [0, 7, 30, 59])
def test_none_of_many_functions_is_left_out(index: int) -> None:
    helpers = [helper(i) for i in range(60)]

    def model(x: Tensor) -> Tensor:
        return helpers[index](x) + 1

    with pytest.raises(CaptureError, match="the model writes to 'last of "):
        regraft.capture(model, (UP,))
    assert all(each.__globals__["last"] is None for each in helpers)


# -- attributes that each call sets anew -------------------------------------------------------


class Gate(nn.Module):
    """A layer that keeps its state on itself, as ``before`` leaves it; ``read`` is how the call begins."""

    def __init__(self, before: Any, read: Any) -> None:
        super().__init__()
        self.cell, self.state, self.read = nn.LSTMCell(4, 4), before, read

    def step(self, x: Tensor) -> Tensor:
        self.state = self.cell(x, self.state)
        return self.state[0]

    def forward(self, x: Tensor) -> Tensor:
        self.read(self, x)
        for _ in range(3):
            h = self.step(x)
            if h.mean() > 0:
                x = x + h
        return x


def begins_anew(self: Any, x: Tensor) -> None:
    self.state = (torch.zeros_like(x), torch.zeros_like(x))


def goes_on(self: Any, x: Tensor) -> None:
    if self.state is None:
        begins_anew(self, x)


def goes_on_if_there(self: Any, x: Tensor) -> None:
    if getattr(self, "state", None) is None:
        begins_anew(self, x)


def asks(self: Any, x: Tensor) -> None:
    if not hasattr(self, "state") or self.state is None:
        begins_anew(self, x)


def test_an_attribute_that_each_call_sets_before_it_reads_it() -> None:
    torch.manual_seed(0)
    model = Gate(None, begins_anew).eval()
    made = regraft.compile(model, (rows(6),), cache=False)
    assert model.state is None
    assert "__getattr__" not in vars(Gate)
    for seed in range(4):
        x = rows(6, seed)
        assert_close(made(x), copy.deepcopy(model).double()(x.double()), reassociates=True)


@pytest.mark.parametrize("read", [goes_on, goes_on_if_there, asks])
def test_an_attribute_that_a_call_reads_first_is_state(read: Any) -> None:
    model = Gate(None, read).eval()
    with pytest.raises(CaptureError, match=r"the model writes to its attribute 'state\[0\]'"):
        regraft.compile(model, (rows(6),), cache=False)
    assert model.state is None
    assert "__getattr__" not in vars(Gate)
