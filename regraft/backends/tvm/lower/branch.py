"""Conditions whose arms hold nothing but what has kernels: the program branches, between kernels."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.backends.tvm.lower.kinds import Branching
from regraft.ir import Op, dims


def _check(op: Op) -> str | None:
    """Arms share the memory of operands and results, whose sizes must be known to be the same in both."""
    if op.symbols or any(arm.symbols for arm in op.regions):
        return "a size in an arm depends on values"
    for arm in op.regions:
        given = zip((*op.operands[1:], *op.results), (*arm.args, *arm.results), strict=True)
        if not all(dims.eq(a.tensor.numel, b.tensor.numel) is True for a, b in given):
            return "an arm may be given, or give, other sizes"
    return None


LOWERINGS: Mapping[str, Branching] = {"cf.cond": Branching(_check)}
