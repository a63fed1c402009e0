"""torch's own conditions and loops, in models and in exported programs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from functorch.experimental.control_flow import map as map_rows  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.scan import scan

import regraft
from regraft.errors import CaptureError
from regraft.ir import print_module
from tests.compiler.capture.running import AUTO, BACKENDS, check_calls, compare, compiled, rows

UP, DOWN = rows(6, shift=1.0), rows(6, shift=-1.0)
ROWS = ({0: AUTO},)


class Conditions(nn.Module):
    """A condition in a condition, with weights that only one arm uses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        def inner(x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 20, lambda x: self.linear(x), lambda x: x * 2, [x])

        y = torch.cond(x.sum() > 0, inner, lambda x: x - 1, [x])
        return y, y.sum(0)


class Loops(nn.Module):
    def forward(self, x: Tensor) -> Any:
        def body(i: Tensor, h: Tensor) -> Any:
            h = torch.cond(i % 2 == 0, lambda h: h * 3, lambda h: h.abs(), [h])
            return i + 1, h + x.mean(0)

        start = torch.zeros((), dtype=torch.int64)
        return torch.while_loop(lambda i, h: (i < 7) & (h.sum() < 50), body, (start, x))


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return map_rows(lambda row, y: row * y + row.sum(), x, x.mean(0))  # pyright: ignore[reportArgumentType]


class Scans(nn.Module):
    def forward(self, x: Tensor) -> Any:
        def step(h: Tensor, row: Tensor) -> Any:
            return (h * 0.5 + row).tanh(), (h * row).sum()

        last, found = scan(step, x.mean(0), x, dim=0)
        backwards, whole = scan(lambda h, row: (h + row, h - row), last, x, dim=0, reverse=True)
        return last, found, backwards, whole


class Prefixes(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return associative_scan(lambda a, b: a * 0.5 + b, x, dim=0, combine_mode="generic")


MODELS = [Conditions, Loops, Maps, Scans, Prefixes]
CALLS = [(rows(n, seed=n, shift=s),) for n in (3, 7) for s in (-1.0, 0.5, 3.0)]


@pytest.mark.parametrize("kind", MODELS)
def test_in_a_model(kind: type[nn.Module]) -> None:
    dynamic: Any = {} if kind is Prefixes else {"dynamic_shapes": ROWS}
    check_calls(kind().eval(), (UP,), [(DOWN,)] if kind is Prefixes else CALLS, **dynamic)


@pytest.mark.parametrize("kind", MODELS)
def test_in_an_exported_program(kind: type[nn.Module]) -> None:
    model = kind().eval()
    dynamic = None if kind is Prefixes else ROWS
    with torch.no_grad():
        program = torch.export.export(model, (UP,), dynamic_shapes=dynamic, strict=False)
    before = str(program)
    for backend in BACKENDS:
        made = compiled(program, (), backend)
        for call in [(DOWN,)] if kind is Prefixes else CALLS:
            compare(made, model, copy.deepcopy(model).double(), call)
    assert str(program) == before


def test_what_they_become() -> None:
    text = print_module(regraft.capture(Loops().eval(), (UP,)))
    assert text.count("cf.while(") == 1
    assert text.count("cf.cond(") == 1
    assert print_module(regraft.capture(Maps().eval(), (UP,), dynamic_shapes=ROWS)).count("cf.while(") == 1


class Counts(nn.Module):
    """Carries a Python number."""

    def forward(self, x: Tensor) -> Any:
        return torch.while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, h * 2), (0, x))


def test_a_number_that_is_carried_is_refused() -> None:
    with pytest.raises(CaptureError, match="while_loop cannot be captured: it carries a number") as caught:
        regraft.capture(Counts().eval(), (UP,))
    assert "test_control_higher_order.py" in str(caught.value.location)
