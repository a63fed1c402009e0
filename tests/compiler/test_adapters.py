"""Adapters of weights that a branch reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.compiler import control


class Branching(nn.Module):
    """One layer before a branch, one inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inside = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        (y,) = control.cond(x.sum() > 0, lambda: (self.inside(x),), lambda: (torch.relu(x),))
        return y


def adapter(layer: str) -> dict[str, Tensor]:
    return {f"{layer}.lora_A.weight": torch.ones(1, 8), f"{layer}.lora_B.weight": torch.ones(8, 1)}


@pytest.mark.parametrize("layer", ["before", "inside"])
def test_a_weight_of_either_side_of_a_branch(layer: str) -> None:
    model, x = Branching().eval(), torch.ones(3, 8)
    compiled = regraft.compile(model, (x,), adapters={"a": adapter(layer)})
    compiled.set_adapter("a")
    taken: set[bool] = set()
    for given in (x, -x, 3 * x, -3 * x):
        hidden = model.before(given) + (layer == "before") * given.sum(1, keepdim=True)
        inside = model.inside(hidden) + (layer == "inside") * hidden.sum(1, keepdim=True)
        taken.add(bool(hidden.sum() > 0))
        expected = inside if hidden.sum() > 0 else torch.relu(hidden)
        torch.testing.assert_close(compiled(given), expected.detach())
    assert taken == {True, False}
