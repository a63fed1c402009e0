"""The lowering tables, one module a family of ops, and what they take."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.backends.tvm.expand import EXPANSIONS
from regraft.backends.tvm.lower import (
    attention,
    branch,
    create,
    elementwise,
    gather,
    matmul,
    norm,
    parts,
    reduce,
    scan,
    views,
)
from regraft.backends.tvm.lower.kinds import Branching, Lowering, Swept, untyped
from regraft.ir import Op, Trait

_FAMILIES = (elementwise, views, create, gather, parts, reduce, norm, matmul, attention, scan, branch)

#: Op name -> how its kernel is written.
LOWERINGS: Mapping[str, Lowering] = {
    name: lowering for family in _FAMILIES for name, lowering in family.LOWERINGS.items()
}

#: Handled by the clustering itself.
STRUCTURAL = ("rg.const", "cf.yield")


def supports(op: Op) -> str | None:
    """Why ``op`` cannot be lowered to a kernel; None when it can."""
    reason = untyped(op)
    if reason is not None or op.name in STRUCTURAL:
        return reason
    if op.has(Trait.RANDOM):
        return "it draws from torch's generator"
    lowering = LOWERINGS.get(op.name)
    if isinstance(lowering, Branching):
        return lowering.check(op) or _refusal_in_arms(op)
    if op.regions and not isinstance(lowering, Swept):
        return "loops that data end, and forms chosen by size, have no kernels"
    if op.symbols:
        return "the length of its result depends on values"
    expansion = EXPANSIONS.get(op.name)
    if expansion is not None:
        return expansion.check(op)
    if lowering is None:
        return "there is no lowering to a kernel"
    if op.definition.opaque:
        return op.definition.uncovered
    return lowering.check(op)


def _refusal_in_arms(op: Op) -> str | None:
    for inner in (inner for arm in op.regions for inner in arm.ops):
        reason = supports(inner)
        if reason is not None:
            return f"in an arm, {inner.name} at {inner.loc}: {reason}"
    return None
