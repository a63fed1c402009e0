"""Recurrent layers, over sequences of one length and of any."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import regraft
from regraft.errors import CaptureError
from regraft.testing import assert_close, randomise
from tests.models import in_double

LAYERS: Mapping[str, Any] = {
    "lstm": lambda: nn.LSTM(6, 4, num_layers=2, batch_first=True),
    "lstm-both-ways": lambda: nn.LSTM(6, 4, bidirectional=True),
    "gru": lambda: nn.GRU(6, 4, num_layers=2),
    "gru-both-ways": lambda: nn.GRU(6, 4, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(6, 4, batch_first=True),
    "rnn-relu": lambda: nn.RNN(6, 4, nonlinearity="relu", bias=False),
}


class Reader(nn.Module):
    """A layer, and what else looks at the length of its result."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        y, last = self.layer(x)
        return self.out(y.unflatten(-1, (-1, 4)).mean(-2)) + torch.arange(y.shape[1])[:, None], last


@pytest.mark.parametrize("name", LAYERS)
def test_any_length_and_batch(name: str) -> None:
    model = randomise(Reader(LAYERS[name]()).eval())
    shapes = ({0: Dim.AUTO, 1: Dim.AUTO},)
    compiled = regraft.compile(model, (torch.randn(3, 5, 6),), dynamic_shapes=shapes)
    assert set(compiled.report.to_dict()["executors"]) == {"ort"}
    for first, second in ((1, 1), (1, 4), (7, 2), (2, 13)):
        x = torch.randn(first, second, 6)
        assert_close(compiled(x), in_double(model, x), model(x))


def test_states_of_the_callers() -> None:
    model = randomise(nn.GRU(6, 4, batch_first=True).eval())
    shapes = {"input": {1: Dim.AUTO}, "hx": None}
    compiled = regraft.compile(model, (torch.randn(2, 5, 6), torch.randn(1, 2, 4)), dynamic_shapes=shapes)
    x, state = torch.randn(2, 9, 6), torch.randn(1, 2, 4)
    assert_close(compiled(x, state), in_double(model, x, state), model(x, state))


def test_projections_run_in_eager() -> None:
    model = randomise(nn.LSTM(6, 4, proj_size=2).eval())
    shapes = ({0: Dim.AUTO},)
    x = torch.randn(5, 2, 6)
    with pytest.raises(regraft.errors.UnsupportedOpError, match=r"aten\.lstm\.input"):
        regraft.compile(model, (x,), dynamic_shapes=shapes)
    compiled = regraft.compile(model, (x,), dynamic_shapes=shapes, fallback="eager")
    (fallback,) = compiled.report.to_dict()["fallbacks"]
    assert "random" not in fallback["reason"]
    assert "generator" not in fallback["reason"]
    x = torch.randn(8, 2, 6)
    assert_close(compiled(x), in_double(model, x), model(x))


def test_torchs_own_tracing_is_as_before() -> None:
    """What capture changes of it is put back, after errors too."""
    layer = nn.LSTM(6, 4).eval()
    with pytest.raises(CaptureError):
        regraft.compile(lambda x: layer(x)[0].reshape(7, 11), (torch.randn(5, 3, 6),))
    model, shapes = nn.Sequential(layer).eval(), ({0: Dim.AUTO},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights in a list, and of pytrees
        program = torch.export.export(model, (torch.randn(5, 3, 6),), dynamic_shapes=shapes)
    assert not program.range_constraints, "torch fixes the length; where it no longer does, drop lengths.py"
