"""torch's ops by the names that the IR has for them, and those that draw from torch's generator."""

from __future__ import annotations

import torch
from torch._ops import OpOverload

#: The attribute of a random op that says how its operands lie in memory: for each the order of its axes.
MEMORY_ORDER = "memory_order"

#: Ops that reach outside the process; an artefact must not name them.
_FORBIDDEN = frozenset({"aten.from_file"})


def is_random(op: OpOverload) -> bool:
    """Whether ``op`` may draw random numbers; dropout, say, draws some when it trains."""
    takes_generator = any(argument.name == "generator" for argument in op._schema.arguments)
    return takes_generator or torch.Tag.nondeterministic_seeded in op.tags


def torch_op(name: str) -> OpOverload | None:
    """The torch op that the IR calls ``name``, or None when there is none that may run here."""
    namespace, _, rest = name.partition(".")
    packet_name, _, overload = rest.partition(".")
    if not packet_name or name in _FORBIDDEN:
        return None
    packet = getattr(getattr(torch.ops, namespace), packet_name, None)
    found = getattr(packet, overload or "default", None)
    if not isinstance(found, OpOverload) or found._schema.is_mutable:
        return None
    return found
