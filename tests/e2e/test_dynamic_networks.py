"""Networks whose Python decides on tensors, compiled whole and exported as one file, on every path."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import regraft
from regraft.errors import CaptureError, RegraftError
from regraft.ir import print_module
from regraft.testing import assert_close, randomise
from tests.e2e.exported import run_without_torch, write_case

WIDTH = 8


class EarlyExit(nn.Module):
    """Leaves at the first block whose head is sure enough; says which."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(blocks))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 3) for _ in range(blocks))

    def forward(self, x, thresholds):
        for i, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            x = torch.tanh(block(x))
            logits = head(x)
            if logits.softmax(-1).max() > thresholds[i]:
                return logits, i
        return logits, -1


class SkipsBlocks(nn.Module):
    """Runs a block where its gate says so."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x, gates):
        ran = 0
        for i, block in enumerate(self.blocks):
            if gates[i].item() <= 0.5:
                continue
            x = x + torch.relu(block(x))
            ran += 1
        return x, ran


class Refines(nn.Module):
    """Repeats until it has settled, at most eight times."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, tolerance):
        steps = 0
        while True:
            after = 0.5 * x + 0.25 * torch.tanh(self.step(x))
            steps += 1
            change = (after - x).abs().max()
            if change < tolerance or steps >= 8:
                return after, steps
            x = after


class ChecksInput(nn.Module):
    """Refuses what is not finite."""

    def forward(self, x):
        if not torch.isfinite(x).all():
            raise ValueError("not finite")
        return x * 2


def thresholds(exit_at: int | None, blocks: int = 4) -> Tensor:
    """Those with which ``EarlyExit`` leaves after block ``exit_at``."""
    found = torch.full((blocks,), 2.0)
    if exit_at is not None:
        found[exit_at] = 0.0
    return found


def given(model: nn.Module) -> tuple[nn.Module, Tensor]:
    randomise(model.eval())
    return model, torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))


CASES: dict[str, tuple[type[nn.Module], Sequence[Tensor]]] = {
    "exits": (EarlyExit, [thresholds(each) for each in (0, 1, 2, 3, None)]),
    "skips": (SkipsBlocks, [torch.tensor([i & 1, i & 2, i & 4]).float() for i in range(8)]),
    "while": (Refines, [torch.tensor(each) for each in (10.0, 1e-1, 1e-2, 0.0)]),
}


def check(actual: Any, expected: Any, precise: Any) -> None:
    """The values are eager's; Python's numbers are tensors without dims."""
    ours, eagers, wide = (pytree.tree_leaves(each) for each in (actual, expected, precise))
    assert [int(a) for a in ours[1:]] == eagers[1:] == wide[1:]
    assert_close([ours[0]], [wide[0]], [eagers[0]], reassociates=True)


@pytest.mark.parametrize("backend", ["ort", "eager"])
@pytest.mark.parametrize("name", CASES)
def test_every_path_is_eagers(name: str, backend: str) -> None:
    make, seconds = CASES[name]
    model, x = given(make())
    precise = copy.deepcopy(model).double()
    compiled = regraft.compile(model, (x, seconds[0]), backends=(backend,), cache=False)
    taken = set()
    for second in seconds:
        with torch.no_grad():
            expected = model(x, second)
            check(compiled(x, second), expected, precise(x.double(), second))
        taken.add(expected[1])
    assert len(taken) >= 3
    forward = type(model).forward
    assert not any("regraft" in str(constant) for constant in forward.__code__.co_consts)


def test_twelve_exits_are_twelve_conditions_and_each_block_is_there_once() -> None:
    model, x = given(EarlyExit(12))
    text = print_module(regraft.capture(model, (x, thresholds(3, 12))))
    assert text.count("cf.cond") == 12
    assert text.count("aten.linear(") == 24


def test_one_file_runs_without_torch(tmp_path: Path) -> None:
    model, x = given(EarlyExit())
    folder = tmp_path / "exits"
    folder.mkdir()
    regraft.export_onnx(model, (x, thresholds(0)), folder / "model.onnx")
    assert (folder / "model.onnx").is_file()
    for i, each in enumerate((0, 2, None)):
        with torch.no_grad():
            logits, left = model(x, thresholds(each))
        write_case(
            folder / str(i),
            {"x": x, "thresholds": thresholds(each)},
            {"output_0": logits, "output_1": torch.tensor(left)},
        )
    errors = run_without_torch(tmp_path)["exits"]["errors"]
    assert max(error for case in errors.values() for error in case) < 1e-4


def test_a_check_is_made_at_each_call() -> None:
    model, x = given(ChecksInput())
    compiled = regraft.compile(model, (x,), cache=False)
    assert_close([compiled(x)], [x.double() * 2])
    with pytest.raises(RegraftError, match="ValueError: not finite"):
        compiled(x / 0)


def test_other_threads_get_eagers_results_meanwhile() -> None:
    model, x = given(EarlyExit())
    traced = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(x, thresholds(2))
    results: list[Any] = []
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            with torch.no_grad():
                results.append(model(x, thresholds(2)))

    thread = threading.Thread(target=call)
    thread.start()
    try:
        regraft.capture(traced, (x, thresholds(0)))
    finally:
        done.set()
        thread.join()
    assert results
    assert all(torch.equal(logits, expected[0]) and left == 2 for logits, left in results)


class Recurrent(nn.Module):
    """A cell over time, its states collected in a list, in a tensor, and counted."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.read = nn.Linear(WIDTH, WIDTH), nn.Linear(2, WIDTH)

    def forward(self, x):
        state = x.new_zeros(x.shape[0], WIDTH)
        sums = x.new_zeros(x.shape[0], x.shape[1])
        states = []
        for t in range(x.shape[1]):
            state = torch.tanh(self.cell(state) + self.read(x[:, t]) + x[:, -1 - t].sum())
            sums[:, t] = state.sum(-1)
            states.append(state)
        return torch.stack(states, dim=1), torch.cat(states, dim=0), sums, state


def test_a_long_loop_is_one_trip() -> None:
    model = randomise(Recurrent().eval())
    x = torch.randn(2, 40, 2, generator=torch.Generator().manual_seed(0))
    precise = copy.deepcopy(model).double()
    text = print_module(regraft.capture(model, (x,)))
    assert text.count("cf.while") == 1
    assert text.count("aten.linear(") == 2
    compiled = regraft.compile(model, (x,), cache=False)
    with torch.no_grad():
        assert_close(compiled(x), precise(x.double()), model(x), reassociates=True)


class Accumulates(nn.Module):
    """Writes to what it reads: its trips are unrolled."""

    def forward(self, x):
        total = x * 1
        for t in range(1, x.shape[1]):
            total[:, t] += total[:, t - 1]
        return total


def test_trips_that_write_to_what_they_read_are_unrolled() -> None:
    x = torch.randn(2, 36, generator=torch.Generator().manual_seed(0))
    compiled = regraft.compile(Accumulates().eval(), (x,), cache=False)
    assert_close(compiled(x), Accumulates()(x.double()), Accumulates()(x))


class Ledger(nn.Module):
    """State in a list and in a dict, in a loop that ends on data."""

    def forward(self, x):
        state, best = [x, x * 0], {"value": x.sum()}
        while state[1].sum() < 20:
            state[0] = state[0] * 0.5
            state[1] = state[1] + state[0].abs() + 1
            best["value"] = torch.maximum(best["value"], state[1].sum())
        return state[0], state[1], best["value"]


def test_containers_go_from_trip_to_trip() -> None:
    compiled = regraft.compile(Ledger().eval(), (torch.ones(3),), cache=False)
    for scale in (0.0, 1.0, 40.0):
        x = torch.tensor([1.0, -2.0, 3.0]) * scale
        assert_close(compiled(x), Ledger()(x.double()), Ledger()(x))


class ChoosesConstants(nn.Module):
    """What the arms give are constants; what is chosen is none."""

    def forward(self, x):
        factor = torch.tensor(1.0)
        if x.sum() > 0:
            factor = torch.tensor(2.0)
        if factor > 1.5:
            return x + factor
        return x - factor


def test_a_choice_of_constants_is_no_constant() -> None:
    compiled = regraft.compile(ChoosesConstants().eval(), (torch.ones(3),), cache=False)
    for sign in (1.0, -1.0):
        x = torch.tensor([1.0, 2.0, 3.0]) * sign
        assert_close([compiled(x)], [ChoosesConstants()(x.double())])


class InTry(nn.Module):
    def forward(self, x):
        try:
            y = x * 2 if x.sum() > 0 else x
        except ValueError:
            y = -x
        return y


class OneBranch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            y = x * 2
        return y + 1


class Unequal(nn.Module):
    def forward(self, x):
        kind = "a" if x.sum() > 0 else "b"
        return x * len(kind)


class PartIsWritten(nn.Module):
    def forward(self, x):
        x = x * 2
        row = x[int(x.sum() > 0)]
        row += 1
        return x if x.sum() > 0 else -x


class ManyRows(nn.Module):
    def forward(self, x):
        return [v for v in x if v.sum() > 0]


@pytest.mark.parametrize(
    ("make", "words", "line", "hint"),
    [
        (InTry, "a decision inside `try` cannot be converted", "y = x * 2 if", None),
        (OneBranch, "the variable 'y' is set in one branch only", "return y + 1", "before the `if`"),
        (Unequal, "is 'a' on one path and 'b' on the other", "kind = ", "the same on both paths"),
        (PartIsWritten, "the model writes to a tensor, or to a part of it", "row = x[int(", "clone()"),
        (ManyRows, "a list of which only a call knows the length is returned", "def forward", "then stack"),
    ],
)
def test_refusals_name_the_line_and_the_way_out(
    make: type[nn.Module], words: str, line: str, hint: str | None
) -> None:
    with pytest.raises(CaptureError) as caught:
        regraft.capture(make().eval(), (torch.randn(3, 2),))
    assert words in caught.value.message
    assert line in (caught.value.source_line or "")
    assert (caught.value.location or "").startswith(f"{__file__}:")
    assert hint is None or hint in (caught.value.hint or "")
