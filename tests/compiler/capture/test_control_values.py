"""Values that only a call knows, outside of tensor arithmetic: indices, lists, sizes, texts, NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.errors import CaptureError, RegraftError
from regraft.testing import randomise
from tests.compiler.capture.running import AUTO, check_calls, compiled, rows

HERE = Path(__file__).name
UP, DOWN = rows(6, shift=1.0), rows(6, shift=-1.0)
SHIFTS = [rows(6, seed=i, shift=shift) for i, shift in enumerate((-2.0, -0.7, -0.2, 0.1, 0.4, 0.9, 2.0))]


def bucket(x: Tensor, count: int) -> Any:
    """A number below ``count`` that the mean of ``x`` decides."""
    return (x.mean() * 2 + count / 2).clamp(0, count - 1).to(torch.int64)


# -- indices -----------------------------------------------------------------------------------


class Routed(nn.Module):
    """One of several experts, by a number that is read from a tensor."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4 + i % 2) for i in range(count))
        self.scales = [0.5, 1.0, 2.0, 4.0, 8.0][:count]

    def forward(self, x: Tensor) -> Tensor:
        n = bucket(x, len(self.experts)).item()
        return self.experts[n](x) * self.scales[n]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_one_module_of_several(count: int) -> None:
    check_calls(randomise(Routed(count).eval()), (UP,), [(x,) for x in SHIFTS])


def test_a_module_that_is_not_there_is_eagers_error() -> None:
    def model(x: Tensor) -> Tensor:
        parts = [x, x * 2, x * 3]
        return parts[int(x.argmax())]

    check_calls(model, (torch.tensor([9.0, 1.0, 2.0, 0.0]),), [(torch.tensor([0.0, 1.0, 2.0, 0.0]),)])
    made = compiled(model, (torch.tensor([9.0, 1.0, 2.0, 0.0]),), "ort")
    with pytest.raises(RegraftError, match="IndexError: list index out of range"):
        made(torch.tensor([0.0, 1.0, 2.0, 9.0]))


def counts_from_the_end(x: Tensor) -> Tensor:
    parts = [x[0], x[1], x[2]]
    return parts[bucket(x, 3).item() - 3]


def replaces_in_a_list(x: Tensor) -> Tensor:
    parts = [x[0], x[1], x[2]]
    parts[bucket(x, 3).item()] = x[3]
    parts[bucket(x, 2).item()] = parts[1] + parts[bucket(x, 3).item()]
    return torch.stack(parts)


def numbers_of_a_list(x: Tensor) -> Tensor:
    limits = (0, 1, 2)
    low, high = ((0.5, 1.5), (-1.0, 2.0), (0.0, 0.25))[limits[bucket(x, 3).item()]]
    return x.clamp(min=low) * high


def adds_at_an_index(x: Tensor) -> Tensor:
    out = x.clone()
    i = bucket(x, 6).item()
    out[i] += 2.0
    out[:, bucket(x, 4).item()] *= x[i].sum()
    out[0] -= 1
    return out


def one_number_alone(x: Tensor) -> Tensor:
    return x * x.max().item() + int(x.sum())


@pytest.mark.parametrize(
    "model",
    [counts_from_the_end, replaces_in_a_list, numbers_of_a_list, adds_at_an_index, one_number_alone],
    ids=lambda model: model.__name__,
)
def test_indices(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS])


# -- lists that grow ---------------------------------------------------------------------------


def until_small(x: Tensor) -> tuple[Tensor, Tensor]:
    outs, norms = [], []
    while True:
        x = x * 0.5
        outs.append(x)
        norms.append(x.abs().max())
        if x.abs().max() < 0.3:
            break
    return torch.stack(outs, dim=1), torch.stack(norms)


def until_its_length(x: Tensor) -> Tensor:
    outs = [x]
    while len(outs) < 5:
        if outs[-1].sum() > 20:
            break
        outs.append(outs[-1] + x.abs())
    return torch.cat(outs, dim=1) * len(outs)


def some_of_them(x: Tensor) -> tuple[Tensor, Tensor]:
    """Appends in some trips only, tensors and numbers."""
    kept, places = [x[0]], [0]
    step = 0
    while x.abs().max() > 0.3:
        x, step = x * 0.7, step + 1
        if x[0, 0] > x[1, 0] and step != 2:
            kept.append(x[0])
            places.append(step)
    return torch.stack(kept), torch.tensor(places)


def in_a_nest(x: Tensor) -> Tensor:
    outs = []
    while x.abs().max() > 0.4:
        y = x
        while y.sum() > 1:
            y = y - 0.5
            outs.append(y[0])
        x = x * 0.5
        outs.append(x[0])
    outs.append(x[1])
    return torch.stack(outs)


@pytest.mark.parametrize("model", [until_small, until_its_length, some_of_them, in_a_nest])
def test_lists_that_grow(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS])


def test_a_list_that_grows_with_open_sizes() -> None:
    calls = [(rows(n, seed=n, shift=shift),) for n in (1, 2, 7) for shift in (-1.0, 1.0)]
    check_calls(until_small, (UP,), calls, dynamic_shapes=({0: AUTO},))


def returned(x: Tensor) -> list[Tensor]:
    outs = []
    while x.abs().max() > 0.3:
        x = x * 0.5
        outs.append(x)
    return outs


def of_two_shapes(x: Tensor) -> Tensor:
    outs = []
    while x.abs().max() > 0.3:
        x = x * 0.5
        outs.append(x)
        outs.append(x[0])
    return outs[0]


def written_later(x: Tensor) -> Tensor:
    outs, y = [], x.clone()
    while y.abs().max() > 0.3:
        y *= 0.5
        outs.append(y)
    return torch.stack(outs)


def written_after_the_loop(x: Tensor) -> Tensor:
    outs, y = [], x
    while y.abs().max() > 0.3:
        y = y * 0.5
        outs.append(y)
    y += 1
    return torch.stack(outs)


def of_another(x: Tensor) -> Tensor:
    outs: list[Tensor] = []
    same = outs
    while x.abs().max() > 0.3:
        x = x * 0.5
        outs.append(x)
    return torch.stack(same)


def popped(x: Tensor) -> Tensor:
    outs = [x]
    while x.abs().max() > 0.3:
        x = x * 0.5
        outs.append(x)
        outs.append(x)
        outs.pop()
    return torch.stack(outs)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (returned, "a list of which only a call knows the length is returned"),
        (of_two_shapes, "is a list that grows"),
        (written_later, "writes to a tensor that it may append to a list"),
        (written_after_the_loop, "while the other is in use"),
        (of_another, "is a list that grows"),
        (popped, "is changed by pop"),
    ],
)
def test_lists_that_are_refused(model: Any, words: str) -> None:
    with pytest.raises(CaptureError, match=words) as caught:
        regraft.capture(model, (UP,))
    assert HERE in str(caught.value.location)
    assert caught.value.hint


# -- sizes -------------------------------------------------------------------------------------


def a_size_or_a_tensor(x: Tensor) -> Tensor:
    """A comparison of sizes on one path, a tensor on the other."""
    done = False
    while not done:
        x = torch.cat([x, x[-1:] * 0.7])
        done = x[-1].abs().max() < 0.4 or x.shape[0] > 9
    return x


def a_size_that_differs(x: Tensor) -> Tensor:
    found = x[x[:, 0] > 0]
    n = found.shape[0]
    if x.sum() > 0:
        n = n + 1
    return x * n


@pytest.mark.parametrize("model", [a_size_or_a_tensor, a_size_that_differs])
def test_sizes(model: Any) -> None:
    check_calls(model, (UP,), [(x,) for x in SHIFTS])


PICKING = [
    lambda x: x.max(),
    lambda x: x.min() + x.argmax(),
    lambda x: x.max(0).values,
    lambda x: torch.argmin(x, dim=0),
    lambda x: x.min(0).indices,
    lambda x: x.kthvalue(1).values,
    lambda x: x.view(-1, 1).max(0, True).indices,
    lambda x: x.topk(1).indices,
    lambda x: x.median(0).values,
    lambda x: x.amax(0) - x.amin(),
]


@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize("pick", PICKING)
def test_nothing_is_picked_of_an_empty_part(pick: Any, backend: str) -> None:
    def model(x: Tensor, n: Tensor) -> Tensor:
        return pick(x[: int(n)])

    x = torch.tensor([2.0, 7.0, -3.0, 5.0])
    made = compiled(model, (x, torch.tensor(3)), backend)
    for n in (1, 2, 4):
        torch.testing.assert_close(made(x, torch.tensor(n)), model(x, torch.tensor(n)))
    with pytest.raises((IndexError, RuntimeError)):
        model(x, torch.tensor(0))
    with pytest.raises(RegraftError, match=r"of no elements|must hold"):
        made(x, torch.tensor(0))


@pytest.mark.parametrize("pick", [lambda x: x.topk(2).values, lambda x: x.kthvalue(3, -1).values])
def test_only_the_axis_along_which_is_picked_must_have_enough(pick: Any) -> None:
    def model(x: Tensor, n: Tensor) -> Any:
        return pick(x[: int(n)])

    x = torch.tensor([[2.0, 7.0, -3.0], [5.0, 5.0, 1.0], [4.0, 6.0, 8.0]])
    made = compiled(model, (x, torch.tensor(2)), "ort")
    for n in (1, 3, 0):
        torch.testing.assert_close(made(x, torch.tensor(n)), model(x, torch.tensor(n)))
    row = x[:1]
    torch.testing.assert_close(compiled(pick, (row,), "ort")(row), pick(row))


@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize("pick", [lambda x: x.kthvalue(2).values, lambda x: x.topk(2).values])
def test_two_are_picked_of_parts_that_have_them(pick: Any, backend: str) -> None:
    def model(x: Tensor, n: Tensor) -> Tensor:
        return pick(x[: int(n)])

    x = torch.tensor([2.0, 7.0, -3.0, 5.0])
    made = compiled(model, (x, torch.tensor(3)), backend)
    for n in (2, 4):
        torch.testing.assert_close(made(x, torch.tensor(n)), model(x, torch.tensor(n)))
    for n in (0, 1):
        with pytest.raises(RegraftError, match=r"of too few elements: .* must be 2 or more|must hold"):
            made(x, torch.tensor(n))


@pytest.mark.parametrize("backend", ["eager", "ort"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_the_median_of_nothing(dtype: torch.dtype, backend: str) -> None:
    def model(x: Tensor, n: Tensor) -> Tensor:
        return x[: int(n)].median() * 1

    x = torch.tensor([2.0, 7.0, -3.0, 5.0]).to(dtype)
    made = compiled(model, (x, torch.tensor(3)), backend)
    for n in (0, 1, 2, 4):
        expected = model(x, torch.tensor(n))
        torch.testing.assert_close(made(x, torch.tensor(n)), expected, equal_nan=True)


@pytest.mark.parametrize("backend", ["eager", "ort"])
def test_an_index_far_below_the_first_element_is_out_of_range(backend: str) -> None:
    def model(x: Tensor, n: Tensor) -> Tensor:
        i = int(n)
        if n < 9:
            x[i] = x[i] + 1
        return x[i] * 2

    x = torch.tensor([2.0, 7.0, -3.0, 5.0])
    made = compiled(model, (x.clone(), torch.tensor(3)), backend)
    for n in (0, 3, -1, -4):
        torch.testing.assert_close(made(x.clone(), torch.tensor(n)), model(x.clone(), torch.tensor(n)))
    for n in (-5, -7, -8, -9, 4, 12):
        with pytest.raises(IndexError):
            model(x.clone(), torch.tensor(n))
        with pytest.raises((IndexError, RegraftError)):
            made(x.clone(), torch.tensor(n))


def test_what_has_nothing_to_pick_from_is_named() -> None:
    def model(x: Tensor, n: Tensor) -> Tensor:
        return x[: int(n)].max()

    made = compiled(model, (torch.arange(4.0), torch.tensor(3)), "ort")
    with pytest.raises(RegraftError, match=r"aten\.max of no elements: len0, a size that values decide"):
        made(torch.arange(4.0), torch.tensor(0))


def the_largest_or_none(x: Tensor, n: Tensor) -> Tensor:
    return x[: int(n)].max() if n > 0 else x.sum()


def test_an_arm_that_does_not_run_picks_nothing() -> None:
    x = torch.tensor([2.0, 7.0, -3.0, 5.0])
    check_calls(the_largest_or_none, (x, torch.tensor(2)), [(x, torch.tensor(n)) for n in (0, 1, 4)])


# -- NumPy -------------------------------------------------------------------------------------


def numpy_of_a_list(x: Tensor) -> tuple[Tensor, Any]:
    scores = [x[i].mean() for i in range(4)]
    best = np.argmax(scores)
    return [x[0], x[1], x[2], x[3]][best], best


def numpy_of_a_tensor(x: Tensor) -> Tensor:
    values = x.detach().cpu().numpy()
    mean, top = np.mean(values, axis=0), np.abs(values).max()
    if top > 2.0:
        mean = mean * 2
    return torch.from_numpy(np.maximum(mean, 0)) + torch.as_tensor(values[1])


@pytest.mark.parametrize("model", [numpy_of_a_list, numpy_of_a_tensor])
def test_numpy(model: Any) -> None:
    for backend in ("eager", "ort"):
        made = compiled(model, (UP,), backend)
        for x in (UP, *SHIFTS):
            for ours, eagers in zip(made(x), model(x), strict=True):
                torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(eagers))


# -- texts -------------------------------------------------------------------------------------


class Checked(nn.Module):
    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        if x.max() > 100:
            raise ValueError(f"the greatest is {x.max().item():.2f} of {len(x)}, in {x.sum()}")
        if x.min() < -100:
            raise ValueError("the least is %d, of %s rows" % (x.min().item(), x.shape[0]))  # noqa: UP031
        if kind == 1:
            raise KeyError("{} and {n}".format(kind, n=3))  # noqa: UP032
        return x * 2


def test_texts_of_checks_have_the_source_of_unknown_values() -> None:
    made = compiled(Checked().eval(), (UP, torch.tensor(0)), "ort")
    assert made(UP, torch.tensor(0)).equal(UP * 2)
    with pytest.raises(RegraftError, match=r"Error: the greatest is <x.max\(\).item\(\)> of 6, in <x.sum"):
        made(UP + 200, torch.tensor(0))
    with pytest.raises(RegraftError, match=r"ValueError: the least is <x.min\(\).item\(\)>, of 6 rows"):
        made(UP - 200, torch.tensor(0))
    with pytest.raises(RegraftError, match=r"KeyError: '<kind> and 3'"):
        made(UP, torch.tensor(1))


# -- returns from loops in loops ---------------------------------------------------------------


class Nested(nn.Module):
    """Exits in a loop in a loop; a Python number counts them, and picks what comes next."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        index, kept = 0, []
        for row in range(2):
            found = []
            for _ in range(3):
                x = self.layers[index](x).tanh()
                found.append(x)
                if row and kept[0].sum() + x.sum() > 1.0:
                    return x + row, index
                if x.sum() > 2.5:
                    return x, index
                index += 1
            kept = found
        return kept[-1] * 2, -1


def test_exits_of_a_loop_in_a_loop() -> None:
    model = randomise(Nested().eval())
    check = [model(x)[1] for x in SHIFTS]
    assert len(set(check)) > 1
    made = compiled(model, (UP,), "ort")
    for x in SHIFTS:
        (ours, at), (eagers, index) = made(x), model(x)
        torch.testing.assert_close(ours, eagers)
        assert int(at) == index


class Named(nn.Module):
    """A size of the call is a local variable where a tensor decides."""

    def forward(self, x: Tensor) -> Tensor:
        n, _ = x.shape
        if x.sum() > 1:
            x = x * 0.5
        while x.sum() > 2:
            x = x - 1
        return x.reshape(n * 4)


def test_sizes_in_local_variables() -> None:
    model = Named().eval()
    for sizes in ({"x": {0: Dim.AUTO}}, {"x": {0: Dim("n", min=2)}}):
        compiled = regraft.compile(model, (torch.ones(3, 4),), dynamic_shapes=sizes)
        for x in (torch.ones(5, 4), -torch.ones(2, 4), 3 * torch.ones(4, 4)):
            assert torch.equal(compiled(x), model(x))
