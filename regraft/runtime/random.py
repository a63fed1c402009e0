"""Ops that draw from torch's generator."""

from __future__ import annotations

import torch
from torch._ops import OpOverload

#: The attribute of a random op that says how its operands lie in memory: for each the order of its axes.
MEMORY_ORDER = "memory_order"


def is_random(op: OpOverload) -> bool:
    """Whether ``op`` may draw random numbers; dropout, say, draws some when it trains."""
    takes_generator = any(argument.name == "generator" for argument in op._schema.arguments)
    return takes_generator or torch.Tag.nondeterministic_seeded in op.tags
