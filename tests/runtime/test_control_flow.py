"""Control flow as executables over plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.runtime import Block, HostExecutable, Plan, Step


class Sum:
    """The sum of what comes in, and its double."""

    backend = "sum"

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        total = sum(inputs, torch.zeros(()))
        return [total, 2 * total]

    def save(self, writer: Any) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("trips", [0, 1, 5])
def test_scan_of_any_number_of_trips(trips: int) -> None:
    body = Plan(3, 5, (Step(Sum(), (0, 1, 2), (3, 4)),), (3, 4))
    scan = HostExecutable(
        "cf.scan",
        (Block(body),),
        (0, 1, 2),
        (0, 1),
        details={"carried": 1, "scanned": 1, "rows": [["f32", [2]]]},
    )
    carried, rows = scan.run([torch.zeros(2), torch.ones(trips, 2), torch.ones(2)], {})
    assert torch.equal(carried, torch.full((2,), 2.0 * trips))
    assert torch.equal(rows, torch.arange(1, trips + 1)[:, None].expand(trips, 2) * 4.0)


def test_forms_are_chosen_by_rows() -> None:
    first, second = (
        Plan(1, 3, (Step(Sum(), (0,), (1, 2)),), (1,)),
        Plan(1, 3, (Step(Sum(), (0,), (1, 2)),), (2,)),
    )
    details = {"rows": "2*s0", "cuts": [4, 8], "order": [1, 0, 1]}
    forms = HostExecutable("rg.alt", (Block(first), Block(second)), (0,), (0,), details=details)
    found = [forms.run([torch.ones(1)], {"s0": size})[0].item() for size in (1, 2, 3, 4, 9)]
    assert found == [2, 1, 1, 2, 2]


def test_what_a_scan_hands_through_is_fresh() -> None:
    body = Plan(2, 2, (), (1,))
    scan = HostExecutable(
        "cf.scan", (Block(body),), (0, 1), (0,), details={"carried": 1, "scanned": 1, "rows": []}
    )
    x = torch.ones(3, 2)
    (last,) = scan.run([torch.zeros(2), x], {})
    last.zero_()
    assert torch.equal(x, torch.ones(3, 2))
