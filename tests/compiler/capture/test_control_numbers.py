"""Numbers that only a call knows: tensors made of them, what they are, and where Python's would raise."""

from __future__ import annotations

import copy
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.errors import CaptureError, RegraftError
from regraft.ir import print_module
from tests.compiler.capture.running import check_calls, compiled

HERE = Path(__file__).name
ROW, NONE = torch.tensor([1.0, -2.0, 3.0, 4.0]), torch.tensor([-1.0, -2.0, -3.0, -4.0])


# -- tensors made of numbers -------------------------------------------------------------------


def numbers_in_f64(x: Any) -> Tensor:
    return torch.tensor([x.sum().item() / 3, 0.1], dtype=torch.float64)


def numbers_in_i64(x: Any) -> Tensor:
    return torch.tensor([(x > 0).sum().item() + 16777217, 3.0], dtype=torch.int64)


def a_list_in_f64(x: Any) -> Tensor:
    return torch.tensor([v / 3 for v in x[x > 0].tolist()], dtype=torch.float64)


def a_list_in_i32(x: Any) -> Tensor:
    return torch.tensor([v * 1000.5 for v in x[x > 0].tolist()], dtype=torch.int32)


def nested_as_tensor(x: Any) -> Tensor:
    n = x.sum().item() / 3
    return torch.as_tensor([[n, 0.1], [1, n]], dtype=torch.float64)


def one_number_in_f64(x: Any) -> Tensor:
    return torch.tensor(x.sum().item() / 3, dtype=torch.float64)


def filled(x: Any) -> tuple[Tensor, ...]:
    n, k = x.sum().item() / 3, (x > 0).sum().item()
    in_f64 = torch.full((k, 2), n, dtype=torch.float64)
    return in_f64, torch.full((2,), n), torch.full((k,), fill_value=k), x.new_full((2, 1), k > 1)


def without_a_dtype(x: Any) -> tuple[Tensor, Tensor, Tensor]:
    n = (x > 0).sum().item()
    return torch.tensor([n, 0.1]), torch.tensor([n, 3]), torch.tensor([n > 2, True])


MADE = [
    *(numbers_in_f64, numbers_in_i64, a_list_in_f64, a_list_in_i32),
    *(nested_as_tensor, one_number_in_f64, filled, without_a_dtype),
]


@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize("model", MADE, ids=lambda model: model.__name__)
def test_tensors_of_numbers_have_all_digits_of_their_dtype(model: Any, backend: str) -> None:
    made = compiled(model, (ROW,), backend)
    for x in (ROW, torch.tensor([1.0, 2.0, 3.0, 1.0])):
        torch.testing.assert_close(made(x), model(x), rtol=0, atol=0)


# -- division ----------------------------------------------------------------------------------


def divides(x: Any) -> Tensor:
    return x + 1 / (x > 0).sum().item()


def divides_to_an_integer(x: Any) -> Tensor:
    n = (x > 0).sum().item()
    return x + n // (n - 3 * (n > 1))


def takes_the_rest(x: Any) -> Tensor:
    return x + 7 % (x > 0).sum().item()


def divides_floats(x: Any) -> Tensor:
    return x * (x.sum().item() / (x > 0).sum().item())


def divides_where_it_may(x: Any) -> Tensor:
    n = (x > 0).sum().item()
    return x + (7 / n if n > 0 else 0.5)


def divides_by_what_is_never_zero(x: Any) -> Tensor:
    k = 2 if x.sum() > 0 else 4
    return x * (x.max().item() / k) + x.min().item() // 3 + x.numel() % k


@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize("model", [divides, takes_the_rest, divides_floats], ids=lambda model: model.__name__)
def test_a_division_by_zero_is_an_error(model: Any, backend: str) -> None:
    made = compiled(model, (ROW,), backend)
    torch.testing.assert_close(made(ROW), model(ROW))
    with pytest.raises(ZeroDivisionError):
        model(NONE)
    with pytest.raises(RegraftError, match="ZeroDivisionError: division by zero"):
        made(NONE)


def test_only_the_divisor_is_looked_at() -> None:
    check_calls(divides_where_it_may, (ROW,), [(NONE,)])
    check_calls(divides_by_what_is_never_zero, (ROW,), [(NONE,)])
    made = compiled(divides_to_an_integer, (NONE,), "ort")
    torch.testing.assert_close(made(NONE * 0 + 1), divides_to_an_integer(NONE * 0 + 1))


def test_what_is_never_zero_is_not_checked() -> None:
    assert "rg.check" in print_module(regraft.capture(divides, (ROW,)))
    assert "rg.check" not in print_module(regraft.capture(divides_by_what_is_never_zero, (ROW,)))


# -- what a number is --------------------------------------------------------------------------


def is_an_int(x: Any) -> Tensor:
    n = (x > 0).sum().item()
    if not isinstance(n, int):
        raise TypeError("n counts")
    return x * n if isinstance(n, (int, str)) and not isinstance(n, bool | float) else x - 1


def is_a_bool(x: Any) -> Tensor:
    holds = (x > 0).all().item()
    return x * 2 if isinstance(holds, bool) and isinstance(holds, int) else x - 1


def is_of_a_type(x: Any) -> Tensor:
    n, k, holds = x.sum().item(), int(x.sum()), bool(x.sum() > 0)
    if type(n) is float and type(k) == int and type(holds) is not int:  # noqa: E721
        return x * n + type(k)(2.7) * type(n)(k) + holds
    return x - 1


def is_a_list(x: Any) -> Tensor:
    values, count = x[x > 0].to(torch.int64).tolist(), (x > 0).sum().item()
    if isinstance(values, list) and type(values) is list and not isinstance(values, (tuple, Tensor)):
        x = x * 2
    if isinstance(set(values), set) and type(range(count)) is range:
        x = x + 1
    return x


def scaled(x: Any, k: Any) -> Tensor:
    if isinstance(k, (int, float)):
        k = torch.full_like(x, k)
    return x * k


def is_asked_by_another_function(x: Any) -> Tensor:
    return scaled(x, x.abs().max().item())


def of_three(x: Any, k: Any, values: Any, up: Any) -> Tensor:
    """Nothing decides here but what the values are."""
    x = x * k if type(k) is float else x - 1
    x = x + len(values) if isinstance(values, list) else x - 10
    return x * 2 if up is True else x - 100


def are_asked_by_another_function(x: Any) -> Tensor:
    return of_three(x, x.sum().item(), x[x > 0].tolist(), (x > 0).all().item())


def is_true(x: Any) -> Tensor:
    up, down = (x > 0).all().item(), bool((x < 0).all())
    if up is True or down is not False:
        x = x + 3
    n = (x > 0).sum().item()
    return x * 2 if up is False and n is not True and True is not n else x


def is_another(x: Any) -> Tensor:
    up, down = (x > 0).any().item(), (x < 0).any().item()
    return x * 2 if up is down else x - 1


KINDS = [
    *(is_an_int, is_a_bool, is_of_a_type, is_a_list),
    *(is_asked_by_another_function, are_asked_by_another_function, is_true, is_another),
]


@pytest.mark.parametrize("model", KINDS, ids=lambda model: model.__name__)
def test_a_number_is_of_its_kind(model: Any) -> None:
    check_calls(model, (ROW,), [(NONE,), (ROW.abs(),)])


def test_an_array_is_one() -> None:
    def model(x: Any) -> Tensor:
        values = x.numpy()
        return x * 2 if isinstance(values, np.ndarray) and type(values) is np.ndarray else x

    check_calls(model, (ROW,), [(NONE,)])


# -- ranges ------------------------------------------------------------------------------------


def length_of_a_range(x: Any) -> Tensor:
    n = int(x.sum())
    return x + len(range(n)) + 10 * len(range(n, 3)) + 100 * len(range(9, n, -2))


def truth_of_a_range(x: Any) -> Tensor:
    n = (x > 0).sum().item()
    if range(n):
        x = x * 2
    return x + 1 if not range(n - 3) and bool(range(1, n)) else x


def two_ranges(x: Any) -> Tensor:
    total = x * 0
    for i, j in zip(range((x > 0).sum().item()), range((x > 2).sum().item()), strict=False):
        total = total + i * 10 + j + 1
    return total


def ranges_of_one_length(x: Any) -> Tensor:
    total = x * 0
    for i, j in zip(range(int(x.sum()) - 6), x[x > 6], strict=True):
        total = total + i * 10 + j + 1
    return total


def a_number_of_a_range(x: Any) -> Tensor:
    n = x.sum().abs().to(torch.int64).item()
    return x + range(n)[1] + range(3, n, 2)[-1] * range(n)[n - 1]


RANGES = [length_of_a_range, truth_of_a_range, two_ranges, ranges_of_one_length, a_number_of_a_range]


@pytest.mark.parametrize("model", RANGES, ids=lambda model: model.__name__)
def test_ranges(model: Any) -> None:
    check_calls(model, (ROW,), [(NONE,), (torch.tensor([-1.0, -2.0, 5.0, 4.0]),)])


def test_a_number_that_is_not_in_the_range() -> None:
    made = compiled(a_number_of_a_range, (ROW,), "ort")
    with pytest.raises(IndexError):
        a_number_of_a_range(ROW * 0)
    with pytest.raises(RegraftError, match="IndexError: range object index out of range"):
        made(ROW * 0)


def cut_range(x: Any) -> Tensor:
    return x + sum(range((x > 0).sum().item())[:2])


def chosen_range(x: Any) -> Tensor:
    found = range((x > 0).sum().item()) or [1]
    return x + len(found)


@pytest.mark.parametrize("model", [cut_range, chosen_range], ids=lambda model: model.__name__)
def test_ranges_that_are_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="a range of which only a call knows the end") as raised:
        regraft.capture(model, (ROW,))
    assert HERE in str(raised.value)
    assert "len()" in str(raised.value)


# -- what a model keeps ------------------------------------------------------------------------


class KeepsANumber(nn.Module):
    def forward(self, x: Any) -> Tensor:
        self.n = int((x > 0).sum())  # the use
        return x + self.n


class ReplacesANumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def forward(self, x: Any) -> Tensor:
        self.n = self.n + (x > 0).sum().item()  # the use
        return x + self.n


class KeepsThemInAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = [1]

    def forward(self, x: Any) -> Tensor:
        self.seen.append(x.sum().item())  # the use
        return x + self.seen[-1]


class KeepsAList(nn.Module):
    def forward(self, x: Any) -> Tensor:
        self.values = x[x > 0].tolist()  # the use
        return x + len(self.values)


class Notes:
    def __init__(self) -> None:
        self.counts: dict[str, Any] = {"calls": 0}


class KeepsThemInAnObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.notes = Notes()

    def forward(self, x: Any) -> Tensor:
        self.notes.counts["up"] = (x > 0).sum().item()  # the use
        return x + self.notes.counts["up"]


KEEPING = [KeepsANumber, ReplacesANumber, KeepsThemInAList, KeepsAList, KeepsThemInAnObject]


@pytest.mark.parametrize("kind", KEEPING, ids=lambda kind: kind.__name__)
def test_what_a_model_keeps_is_refused_and_gone(kind: Any) -> None:
    model = nn.Sequential(kind()).eval()
    before = copy.deepcopy(model)
    with pytest.raises(CaptureError, match=r"the model writes to its attribute '0\.") as raised:
        regraft.capture(model, (ROW,))
    assert "# the use" in str(raised.value)
    assert f"{HERE}:" in str(raised.value)
    assert _shown(copy.deepcopy(model)[0]) == _shown(before[0])


def _shown(module: nn.Module) -> dict[str, Any]:
    """The attributes of ``module``'s own."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: vars(value) if isinstance(value, Notes) else value for name, value in own.items()}


class Counts(nn.Module):
    """Counts its calls, in ways that a graph does not hold, and writes a log."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.notes = Notes()
        self.log: list[str] = []
        self.same_log = self.log
        self._private: deque[int] = deque([1], maxlen=2)

    def forward(self, x: Any) -> Tensor:
        self.count += 1
        self.notes.counts["calls"] += 1
        self.log.append("called")
        self._private.append(2)
        self._late = {"x": 1}
        return x + 1 if x.sum() > 0 else x


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
def test_a_compile_leaves_the_models_objects_as_they_were(fails: bool) -> None:
    class Model(Counts):
        def forward(self, x: Any) -> Tensor:
            if fails:
                return super().forward(x) @ torch.ones(99)
            return super().forward(x)

    model = Model().eval()
    if fails:
        with pytest.raises(CaptureError):
            regraft.capture(model, (ROW,))
    else:
        torch.testing.assert_close(compiled(model, (ROW,), "ort")(NONE), NONE)
    assert (model.count, model.notes.counts, model.log) == (0, {"calls": 0}, [])
    assert list(model._private) == [1]
    assert model._private.maxlen == 2
    assert model.log is model.same_log
    assert not hasattr(model, "_late")
