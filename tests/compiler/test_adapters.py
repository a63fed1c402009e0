"""Adapters of weights that a branch reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import regraft
from regraft.compiler import control
from regraft.errors import OptionError


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


def test_a_weight_inside_of_a_branch_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'inside\.weight' is used in a branch or a loop"):
        regraft.compile(Branching().eval(), (torch.ones(3, 8),), adapters={"a": adapter("inside")})


def test_a_weight_outside_of_it_is_not() -> None:
    model, x = Branching().eval(), torch.ones(3, 8)
    compiled = regraft.compile(model, (x,), adapters={"a": adapter("before")})
    compiled.set_adapter("a")
    hidden = model.before(x) + x.sum(1, keepdim=True)
    expected = model.inside(hidden) if hidden.sum() > 0 else torch.relu(hidden)
    torch.testing.assert_close(compiled(x), expected.detach())
