"""Loops over the steps of a sequence whose length is open: what is left of them, and what they compute."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.ir import parse_module
from regraft.testing import assert_close, randomise
from tests.compiler.capture.running import Captures, compare, compiled, tensors
from tests.recurrences import SelectiveScan

LENGTHS = (1, 2, 3, 33, 64, 256)
OPEN = {"x": {1: Dim("length", min=1, max=512)}}
WIDTH = 6


def sequence(length: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, 5, generator=torch.Generator().manual_seed(length))


class Cell(nn.Module):
    """One of torch's cells, over the steps from the front."""

    def __init__(self, make: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cell = make(5, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, states = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            states.append(h)
        return torch.stack(states, 1), h


class Lstm(nn.Module):
    """A cell by hand, a head on each state, and what is joined with it afterwards has the open length too."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.own = nn.Linear(5, 4 * WIDTH), nn.Linear(WIDTH, 4 * WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = c = x.new_zeros(x.shape[0], WIDTH)
        states = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.given(x[:, t]) + self.own(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(self.head(h))
        return torch.stack(states, 1) + x, c


class TwoLayers(nn.Module):
    """The states of one layer are the steps of the next, which goes through them from behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRUCell(5, WIDTH), nn.RNNCell(WIDTH, WIDTH, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        h, steps = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            h = self.first(x[:, t], h)
            steps.append(h)
        h, states = torch.zeros_like(h), []
        for t in range(len(steps) - 1, -1, -1):
            h = self.second(steps[t], h)
            states.append(h)
        return torch.stack(states[::-1], dim=1)


def running_sums(x: Tensor) -> Tensor:
    total, sums = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        total = total + x[:, t]
        sums.append(total)
    return torch.stack(sums, dim=1)


def from_behind(x: Tensor) -> tuple[Tensor, Tensor]:
    """Counted down, and by ``reversed``; into a tensor, and into a list that is turned round."""
    h, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
    for t in range(x.shape[1] - 1, -1, -1):
        h = torch.tanh(h * 0.5 + x[:, t])
        out[:, t] = h
    states = []
    for t in reversed(range(x.shape[1])):
        h = torch.tanh(h * 0.5 - x[:, t])
        states.append(h)
    states.reverse()
    return out, torch.stack(states, 1)


def from_the_second(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first step before the loop; a trip reads two of them, and the number of its own."""
    h = x[:, 0]
    states, out = [h], x.clone()
    for t in range(1, x.shape[1]):
        h = torch.tanh(h + x[:, t] * x[:, t - 1] + t)
        states.append(h)
        out[:, t] = h * 2
    return torch.stack(states, 1), out


def in_strides(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h, out, found = torch.zeros_like(x[:, 0]), torch.ones_like(x), []
    for t in range(0, x.shape[1], 2):
        h = torch.tanh(h * 0.5 + x[:, t])
        out[:, t] = h
    for t in range(x.shape[1] - 1, -1, -3):
        h = torch.sin(h - x[:, t])
        found.append(h)
    for t in range(x.shape[1] // 2):
        h = torch.sin(h - x[:, 2 * t + 1])
    return out, torch.cat(found, dim=1), h


def several_lists(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two lists, one of which grows twice a trip, one of numbers of a comprehension."""
    h, pairs, sums = torch.zeros_like(x[:, 0]), [], []
    for t in range(x.shape[1]):
        h = torch.tanh(h + x[:, t])
        pairs.append(h)
        pairs.append(-h)
        sums.append(h.sum(1))
    squares = [torch.exp(x[:, t]) for t in range(x.shape[1])]
    return torch.stack(pairs), torch.cat(pairs, 1), torch.stack(sums), torch.stack(squares, 2)


def over_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``zip`` with the steps themselves, and the list that they gave."""
    h, rows = torch.zeros_like(x[:, 0]), []
    for t, row in zip(range(x.shape[1]), x.transpose(0, 1), strict=True):
        h = torch.tanh(h + row - t)
        rows.append(h)
    for row in reversed(rows):
        h = torch.cos(h + row)
    return torch.stack(rows), h


class LstmCell(Cell):
    def __init__(self) -> None:
        super().__init__(nn.LSTMCell)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = c = x.new_zeros(x.shape[0], WIDTH)
        states = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            states.append(h)
        return torch.stack(states, 1), c


RECURRENT: dict[str, Any] = {
    "lstm": Lstm,
    "lstm cell": LstmCell,
    "gru": lambda: Cell(nn.GRUCell),
    "rnn": lambda: Cell(nn.RNNCell),
    "two layers": TwoLayers,
}
FUNCTIONS = (running_sums, from_behind, from_the_second, in_strides, several_lists, over_rows)
SCANS: dict[str, Any] = {"selective": SelectiveScan} | {f.__name__: f for f in FUNCTIONS}


def model_of(name: str) -> Any:
    if name in RECURRENT:
        return randomise(RECURRENT[name]().eval())
    return randomise(SelectiveScan().eval()) if name == "selective" else SCANS[name]


def ops(text: str) -> Counter[str]:
    return Counter(op.name for op in parse_module(text).main.walk())


def precise(model: Any) -> Any:
    found = copy.deepcopy(model)
    return found.double() if isinstance(found, nn.Module) else found


def check_file(path: Path, model: Any, calls: list[Tensor]) -> None:
    session = onnxruntime.InferenceSession(path)
    for x in calls:
        found = [torch.from_numpy(each) for each in session.run(None, {"x": x.numpy()})]
        with torch.no_grad():
            expected, eager = tensors(precise(model)(x.double())), tensors(model(x))
        assert [each.shape for each in found] == [each.shape for each in eager]
        assert_close(found, expected, eager, reassociates=True)


@pytest.mark.parametrize("name", [*RECURRENT, *SCANS])
def test_as_good_as_of_a_fixed_length(name: str, tmp_path: Path) -> None:
    """Compiled and as a file: no loop is left that looks up its rows."""
    model, captures, path = model_of(name), Captures(), tmp_path / "model.onnx"
    calls = [sequence(length) for length in LENGTHS]
    with captures.used():
        made = compiled(model, (sequence(7),), "ort", dynamic_shapes=OPEN)
        regraft.export_onnx(model, (sequence(7),), path, dynamic_shapes=OPEN, contrib=False)
    for x in calls:
        compare(made, model, precise(model), (x,))
    check_file(path, model, calls)
    found = ops(made.ir)
    assert "cf.while" not in found
    assert ("rg.recurrent" in found) == (name in RECURRENT), found
    assert ("cf.scan" in found) == (name in SCANS), found


def test_batch_and_length(tmp_path: Path) -> None:
    for model in (model_of("lstm"), model_of("selective")):
        shapes = {"x": {0: Dim("batch", min=1, max=64), 1: Dim("length", min=1, max=512)}}
        made = compiled(model, (sequence(7, 3),), "ort", dynamic_shapes=shapes)
        for length, batch in ((1, 1), (2, 5), (33, 1), (64, 2), (256, 4)):
            compare(made, model, precise(model), (sequence(length, batch),))
        assert "cf.while" not in ops(made.ir)


@pytest.mark.parametrize("backends", [("tvm",), ("tvm", "ort"), ("eager",)])
@pytest.mark.parametrize("name", ["lstm", "selective", "from_the_second", "in_strides"])
def test_on_other_back_ends(name: str, backends: tuple[str, ...], with_one_tvm: Any) -> None:
    model, x = model_of(name), sequence(7)
    needs_torch = backends == ("tvm",) and name in ("lstm", "in_strides")
    options: dict[str, Any] = {"fallback": "eager"} if needs_torch else {}
    made = regraft.compile(
        model, (x,), backends=with_one_tvm(backends), dynamic_shapes=OPEN, cache=False, **options
    )
    for length in LENGTHS:
        compare(made, model, precise(model), (sequence(length),))
    assert "cf.while" not in ops(made.ir)


def last_states(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loops that leave nothing for others where there are no steps."""
    out, g, s = x.new_zeros(x.shape[0], x.shape[1], 4), h, h
    for t in range(x.shape[1]):
        h = torch.tanh(h.cumsum(1) / 4 + x[:, t])
        out[:, t] = h
    for t in range(1, x.shape[1]):
        g = torch.sin(g * x[:, t] + x[:, t - 1])
    for t in range(x.shape[1] - 2, -1, -1):
        s = torch.sin(s * x[:, t]) + t
    return out, g, s


class LastGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        out = x.new_zeros(x.shape[0], x.shape[1], 4)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out[:, t] = h
        return out, h


@pytest.mark.parametrize("model", [last_states, LastGru().eval()], ids=["scans", "gru"])
@pytest.mark.parametrize("backend", ["ort", "eager"])
def test_no_steps_at_all(model: Any, backend: str, tmp_path: Path) -> None:
    shapes = {"x": {1: Dim("length", min=0, max=64)}, "h": {}}
    made = compiled(model, (torch.randn(2, 7, 4), torch.randn(2, 4)), backend, dynamic_shapes=shapes)
    for length in (0, 1, 2, 3, 33):
        compare(made, model, precise(model), (torch.randn(2, length, 4), torch.randn(2, 4)))
    assert "cf.while" not in ops(made.ir)


def test_rows_at_a_range_from_behind(tmp_path: Path) -> None:
    """ONNX Runtime would cut at its bounds, where a negative one counts from the end."""

    def turned(x: Tensor) -> tuple[Tensor, Tensor]:
        n = x.shape[1]
        return x[:, torch.arange(n - 1, -1, -1)], x[:, torch.arange(-1, n - 1)]

    path = tmp_path / "model.onnx"
    regraft.export_onnx(turned, (sequence(7),), path, dynamic_shapes=OPEN)
    check_file(path, turned, [sequence(length) for length in LENGTHS])


# -- loops that stay loops ---------------------------------------------------------------------


def ends_early(x: Tensor) -> Tensor:
    total = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        total = total + x[:, t]
        if total.amax() > 2:
            break
    return total


def looks_back(x: Tensor) -> Tensor:
    """A trip reads all the rows before its own."""
    out = torch.zeros_like(x)
    for t in range(x.shape[1]):
        out[:, t] = x[:, : t + 1].amax(1)
    return out


def collects_some(x: Tensor) -> Tensor:
    """Nobody knows how long the list is."""
    found = [x[:, 0]]
    for t in range(x.shape[1]):
        if x[0, t, 0] > 0:
            found.append(x[:, t])
    return torch.stack(found, 1)


def reads_its_list(x: Tensor) -> Tensor:
    states = [x[:, 0]]
    for t in range(x.shape[1]):
        states.append(torch.tanh(states[-1] + x[:, t]))
    return torch.stack(states, 1)


def walks_along(x: Tensor) -> Tensor:
    """A place that the values say."""
    place, total = torch.zeros((), dtype=torch.int64), torch.zeros_like(x[:, 0])
    for _ in range(x.shape[1]):
        row = x[:, place]
        total = total + row
        place = (place + row.abs().sum().to(torch.int64)) % x.shape[1]
    return total


LOOPS = (ends_early, looks_back, collects_some, reads_its_list, walks_along)


@pytest.mark.parametrize("model", LOOPS, ids=lambda f: f.__name__)
def test_loops_that_stay_loops(model: Any, tmp_path: Path) -> None:
    captures, path = Captures(), tmp_path / "model.onnx"
    calls = [sequence(length) for length in LENGTHS]
    with captures.used():
        made = compiled(model, (sequence(7),), "ort", dynamic_shapes=OPEN)
        regraft.export_onnx(model, (sequence(7),), path, dynamic_shapes=OPEN)
    for x in calls:
        compare(made, model, model, (x,))
    check_file(path, model, calls)
    assert "cf.while" in ops(made.ir)


def overwrites(x: Tensor) -> Tensor:
    """In eager all elements of the list are one tensor."""
    h, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h.add_(x[:, t])
        states.append(h)
    return torch.stack(states, 1)


def overwrites_the_last(x: Tensor) -> Tensor:
    h, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = h + x[:, t]
        states.append(h)
    h.mul_(2)
    return torch.stack(states, 1)


@pytest.mark.parametrize("model", [overwrites, overwrites_the_last], ids=lambda f: f.__name__)
def test_a_list_whose_tensors_are_written_to_is_refused(model: Any) -> None:
    with pytest.raises(regraft.errors.CaptureError, match="writes to a tensor"):
        regraft.compile(model, (sequence(7),), dynamic_shapes=OPEN, cache=False)


def test_more_trips_than_are_allowed() -> None:
    made = compiled(running_sums, (sequence(7),), "ort", dynamic_shapes=OPEN, max_trips=40)
    for length in (1, 33, 40):
        compare(made, running_sums, running_sums, (sequence(length),))
    with pytest.raises(regraft.errors.RegraftError, match="more than 40 trips"):
        made(sequence(41))
    assert "cf.scan" in ops(made.ir)


def test_the_graph_is_as_large_whatever_the_example_is() -> None:
    sizes = [
        Counter(
            op.name
            for op in regraft.capture(Lstm().eval(), (sequence(length),), dynamic_shapes=OPEN).main.walk()
        )
        for length in (3, 300)
    ]
    assert sizes[0] == sizes[1]
