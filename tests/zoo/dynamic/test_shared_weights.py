"""A module that a model runs several times has its weights once: in memory, in an artefact and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.testing import assert_close, randomise
from tests.models import in_double
from tests.zoo.dynamic.layers import EncoderLayer

TRIPS = 6


class Universal(nn.Module):
    """One layer, run ``TRIPS`` times, as in ALBERT and the universal transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = EncoderLayer(128, 4, 512)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(())
        for _ in range(TRIPS):
            x = self.layer(x, mask)
        return x


class Leaving(Universal):
    """The same with an exit after each trip, as in PALBERT and PABEE."""

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(())
        for _ in range(TRIPS):
            x = self.layer(x, mask)
            if x.abs().max() > 30:
                return x
        return x * 2


class Halting(Universal):
    """The same in a loop of which a tensor decides the trips."""

    def forward(self, x: Tensor) -> Tensor:
        mask, steps = torch.zeros(()), 0
        while x.abs().max() < 30 and steps < TRIPS:
            x, steps = self.layer(x, mask), steps + 1
        return x


X = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(0))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", [Universal, Leaving, Halting])
def test_weights_are_there_once(kind: type[nn.Module], tmp_path: Path) -> None:
    model = randomise(kind().eval())
    own = sum(parameter.nbytes for parameter in model.parameters())
    compiled = regraft.compile(model, (X,), cache=False)
    with torch.no_grad():
        assert_close([compiled(X)], [in_double(model, X)], [model(X)], reassociates=True)
    assert compiled.report.to_dict()["memory"]["constants"] < 1.1 * own
    compiled.save(tmp_path / "artefact")
    (tmp_path / "file").mkdir()
    regraft.export_onnx(model, (X,), tmp_path / "file" / "model.onnx")
    # Of two copies of anything large each would be well above this.
    assert own < size_of(tmp_path / "artefact") < 1.3 * own
    assert own < size_of(tmp_path / "file") < 1.3 * own
