"""Loops whose first trip is given what no other leaves: states that broadcast, None, numbers, dtypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.errors import RegraftError
from regraft.testing import assert_close, randomise
from tests.compiler.capture.running import BACKENDS, Captures, compare, compiled, doubled, tensors

WIDTH = 4
ONE_AND_MORE = {"x": {0: Dim("batch", min=1, max=64), 1: Dim("length", min=1, max=64)}}
NONE_TOO = {"x": {0: Dim("batch", min=1, max=64), 1: Dim("length", min=0, max=64)}}
SIZES = [(2, 7), (2, 1), (1, 1), (3, 2), (1, 5), (5, 40)]


def steps(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(seed + 7 * length))


class Rnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.given, self.own = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(1, WIDTH, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = torch.tanh(self.given(x[:, t]) + self.own(h))
        return h


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.given, self.own = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, c = torch.zeros(1, WIDTH, dtype=x.dtype), torch.ones(1, WIDTH, dtype=x.dtype)
        for t in range(x.shape[1]):
            i, f, g, o = (self.given(x[:, t]) + self.own(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h, c


class LstmStates(Lstm):
    """All states as well, in a list, which is empty where there is no step."""

    def forward(self, x: Tensor) -> Any:
        h, c = torch.zeros(1, WIDTH, dtype=x.dtype), torch.zeros(1, WIDTH, dtype=x.dtype)
        states = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.given(x[:, t]) + self.own(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.cat(states, 1) if states else h, h, c * len(states)


class Gru(nn.Module):
    """The state has no batch before the first trip."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.own = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(WIDTH, dtype=x.dtype)
        for t in range(x.shape[1]):
            a, b, c = self.given(x[:, t]).chunk(3, -1)
            d, e, f = self.own(h).chunk(3, -1)
            z = torch.sigmoid(b + e)
            h = (1 - z) * torch.tanh(c + torch.sigmoid(a + d) * f) + z * h
        return h


def may_leave(x: Tensor) -> Tensor:
    h = torch.zeros(1, WIDTH, dtype=x.dtype)
    for t in range(x.shape[1]):
        h = h * 0.5 + x[:, t]
        if h.sum() > 3:
            break
    else:
        h = h + 10
    return h


def from_the_third(x: Tensor) -> Tensor:
    h = torch.full((1, WIDTH), 0.5, dtype=x.dtype)
    for t in range(x.shape[1] - 1, 1, -2):
        h = torch.tanh(h - x[:, t])
    return h


def over_rows(x: Tensor) -> Tensor:
    h = torch.zeros(1, WIDTH, dtype=x.dtype)
    for t, row in enumerate(x.transpose(0, 1)):
        h = torch.tanh(h + row) * (t + 1)
    return h


def until_a_tensor_says(x: Tensor) -> Tensor:
    h, n = torch.zeros(1, WIDTH, dtype=x.dtype), 0
    while h.sum() < x.sum() and n < 4:
        h = x.abs().sum(1) + h
        n += 1
    return h * n


def one_state_grows(x: Tensor) -> tuple[Tensor, Tensor]:
    """The size of the one settles, that of the other never does."""
    h, found = torch.zeros(1, WIDTH, dtype=x.dtype), x.new_zeros(1, 1)
    for t in range(x.shape[1]):
        h = torch.tanh(h + x[:, t])
        found = torch.cat([found, h.sum().reshape(1, 1)])
    return h, found


def looks_at_its_size(x: Tensor) -> Tensor:
    """No state of the full batch from the start would give the same."""
    h, total = torch.ones(1, WIDTH, dtype=x.dtype), x.new_zeros(())
    for t in range(x.shape[1]):
        total = total * 0.5 + h.sum() * h.shape[0]
        h = torch.tanh(h + x[:, t])
    return total


FILLED: dict[str, Any] = {"rnn": Rnn, "lstm": Lstm, "states": LstmStates}
FILLED |= {
    f.__name__: f
    for f in (
        may_leave,
        from_the_third,
        over_rows,
        until_a_tensor_says,
        one_state_grows,
        looks_at_its_size,
    )
}


def of_whole_numbers(x: Tensor) -> Tensor:
    h = torch.ones(x.shape[0], WIDTH, dtype=torch.int64)
    for t in range(x.shape[1]):
        h = h * 0.5 + x[:, t]
    return h


def none_at_first(x: Tensor) -> Any:
    h = None
    for t in range(x.shape[1]):
        h = x[:, t] if h is None else torch.tanh(h + x[:, t])
    return h


def a_sum_from_zero(x: Tensor) -> Any:
    total = 0
    for t in range(x.shape[1]):
        total = total + x[:, t]
    return total


def knows_the_trip_before(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for t in range(x.shape[1]):
        out[:, t] = x[:, t] + last if t > 0 else x[:, t]  # noqa: F821
        last = out[:, t] * 0.5  # noqa: F841
    return out


OTHER_TYPES: dict[str, Any] = {"gru": Gru}
OTHER_TYPES |= {f.__name__: f for f in (of_whole_numbers, none_at_first, a_sum_from_zero)}


def made(model: Any) -> tuple[Any, Any]:
    """The model, and a copy that computes in fp64."""
    if not isinstance(model, type):
        return model, model
    found, precise = (randomise(model().eval()) for _ in range(2))
    return found, precise.load_state_dict(found.state_dict()) and precise.double()


def check_file(path: Path, model: Any, precise: Any, calls: list[Tensor]) -> None:
    session = onnxruntime.InferenceSession(path)
    for x in calls:
        found = [torch.from_numpy(each) for each in session.run(None, {"x": x.numpy()})]
        with torch.no_grad():
            eager, wide = (tensors(m(a)) for m, a in ((model, x), (precise, x.double())))
        assert [each.shape for each in found] == [each.shape for each in eager]
        assert_close(found, doubled(wide), eager, reassociates=True)


@pytest.mark.parametrize("name", [*FILLED, *OTHER_TYPES, "knows_the_trip_before"])
def test_open_lengths(name: str, tmp_path: Path) -> None:
    model, precise = made({**FILLED, **OTHER_TYPES}.get(name, knows_the_trip_before))
    path, captures = tmp_path / "model.onnx", Captures()
    calls = [steps(*each) for each in SIZES]
    with captures.used():
        regraft.export_onnx(model, (calls[0],), path, dynamic_shapes=ONE_AND_MORE)
        for backend in BACKENDS:
            found = compiled(model, (calls[0],), backend, dynamic_shapes=ONE_AND_MORE)
            for x in calls:
                compare(found, model, precise, (x,))
    check_file(path, model, precise, calls)


@pytest.mark.parametrize("name", FILLED)
def test_no_trip_at_all(name: str, tmp_path: Path) -> None:
    """The state is as it was, with its own batch."""
    model, precise = made(FILLED[name])
    path, captures = tmp_path / "model.onnx", Captures()
    calls = [steps(*each) for each in (*SIZES, (2, 0), (1, 0))]
    with captures.used():
        regraft.export_onnx(model, (calls[0],), path, dynamic_shapes=NONE_TOO)
        for backend in BACKENDS:
            found = compiled(model, (calls[0],), backend, dynamic_shapes=NONE_TOO)
            for x in calls:
                compare(found, model, precise, (x,))
    check_file(path, model, precise, calls)


@pytest.mark.parametrize("name", OTHER_TYPES)
def test_a_call_without_a_trip_says_what_is_of_another_type(name: str) -> None:
    model, precise = made(OTHER_TYPES[name])
    captures = Captures()
    with captures.used():
        for backend in BACKENDS:
            found = compiled(model, (steps(2, 7),), backend, dynamic_shapes=NONE_TOO)
            for each in SIZES:
                compare(found, model, precise, (steps(*each),))
            with pytest.raises(RegraftError, match=r"makes no trip: the variable '\w+' is .* before it and"):
                found(steps(2, 0))


def another_dtype_after_a_trip(x: Tensor) -> Tensor:
    while x.sum() < 100:
        x = (x * 2 + 10).double()
    return x


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_a_tensor_decides_about_the_first_trip(backend: str) -> None:
    found = compiled(another_dtype_after_a_trip, (steps(2, 7),), backend)
    for seed in range(3):
        compare(found, another_dtype_after_a_trip, another_dtype_after_a_trip, (steps(2, 7, seed),))
    with pytest.raises(RegraftError, match="makes no trip: the variable 'x' is a tensor float32"):
        found(steps(2, 7) + 100)


@pytest.mark.parametrize("name", ["rnn", "lstm", "states", "gru", "looks_at_its_size"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_long_loops_are_not_unrolled(name: str, backend: str) -> None:
    model, precise = made({**FILLED, **OTHER_TYPES}[name])
    found = compiled(model, (steps(2, 40),), backend)
    for seed in range(3):
        compare(found, model, precise, (steps(2, 40, seed),))
    assert found.ir.count("rg.tanh") < 10


def test_cells_are_recognised() -> None:
    for model in (Rnn, Lstm, LstmStates, Gru):
        found = compiled(made(model)[0], (steps(2, 7),), "ort", dynamic_shapes=ONE_AND_MORE)
        assert "rg.recurrent" in found.ir
        assert "cf.while" not in found.ir


# -- while loops that end at an open size ------------------------------------------------------------


def counts_up(x: Tensor) -> Any:
    h, t = torch.zeros(1, dtype=x.dtype), 0
    while t < x.shape[0]:
        h = h * 0.5 + x.sum(0) + 1
        t += 1
    return h, x.sum() + t


def counts_down(x: Tensor) -> Any:
    h, k = torch.zeros(1, dtype=x.dtype), x.shape[0]
    while k > 0:
        h = h * 0.5 + x.sum(0) + 1
        k = k // 2
    return h, x.sum() + k


def until_none_is_left(x: Tensor) -> Any:
    h, t = torch.zeros(1, dtype=x.dtype), 0
    while not t >= x.shape[0] and t < 50:
        h = h * 0.5 + x.sum(0) + 1
        t += 1
    return h, x.sum() + t


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loop", [counts_up, counts_down, until_none_is_left])
def test_a_while_over_an_open_size_may_make_no_trip(loop: Any, backend: str) -> None:
    """torch takes `0 < x.shape[0]` for true whatever the size."""
    shapes = ({0: Dim("length", min=0, max=64)},)
    found = compiled(loop, (torch.rand(5, WIDTH),), backend, dynamic_shapes=shapes)
    for length in (5, 0, 1, 2, 40):
        compare(found, loop, loop, (torch.rand(length, WIDTH),))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_size_that_no_trip_gives_is_a_check(backend: str) -> None:
    def sums(x: Tensor) -> Tensor:
        return counts_up(x)[0] + x.sum(0)

    shapes = ({0: Dim("length", min=0, max=64)},)
    found = compiled(sums, (torch.rand(5, WIDTH),), backend, dynamic_shapes=shapes)
    compare(found, sums, sums, (torch.rand(3, WIDTH),))
    for _ in range(2):
        with pytest.raises(RegraftError, match="a size that values decide is 4 in the captured model"):
            found(torch.rand(0, WIDTH))
    compare(found, sums, sums, (torch.rand(3, WIDTH),))


# -- numbers that trips make wider -----------------------------------------------------------------


def beside_floats(x: Tensor) -> tuple[Tensor, Tensor]:
    """The kind of the number shows in nothing."""
    n = 0
    while x.sum() + n < 10:
        n = n + 2.5
    return x * n, x + (n + 0.5) / 2


def beside_integers(x: Tensor) -> Tensor:
    n, whole = 0, (x * 10).to(torch.int64)
    while x.sum() + n < 10:
        n = n + 2.5
    return whole * n


def fills_a_tensor(x: Tensor) -> Tensor:
    n = 0
    for _ in range(int((x[0, :, 0] > 0).sum())):
        n = n + 0.5
    return torch.full((2,), n + 1)


def of_an_open_size(x: Tensor) -> Tensor:
    n = 0
    for t in range(x.shape[1] - 1):
        n = n + (t + 1) * 0.5
    return torch.full((2,), n)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wider_number_shows_its_type_or_the_call_raises(backend: str) -> None:
    some, none = [steps(2, 3, seed) for seed in range(3)], steps(2, 3) + 10
    found = compiled(beside_floats, (some[0],), backend)
    for x in (*some, none):
        compare(found, beside_floats, beside_floats, (x,))
    for model, empty in (
        (beside_integers, none),
        (fills_a_tensor, none - 100),
        (of_an_open_size, steps(2, 1)),
    ):
        shapes = ONE_AND_MORE if model is of_an_open_size else None
        found = compiled(model, (steps(2, 3),), backend, dynamic_shapes=shapes)
        for x in (steps(2, 3).abs() * 0.1, steps(2, 3, 1).abs() * 0.1):
            compare(found, model, model, (x,))
        with pytest.raises(RegraftError, match="makes no trip: the variable 'n' is 0 before it and a float"):
            found(empty)
