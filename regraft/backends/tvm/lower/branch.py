"""Conditions whose arms hold nothing but what has kernels: the program branches, between kernels."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.backends.tvm.lower.kinds import Branching
from regraft.ir import Op, Value, dims

#: The most bytes that are copied where an arm hands them on: some 170 microseconds if they are in no cache.
_COPIED = 1 << 20


def _least_bytes(value: Value) -> int:
    """Of a value whose size is open, as many as there are in every call."""
    return (dims.bounds(value.tensor.numel)[0] or 0) * value.tensor.dtype.bits // 8


def _check(op: Op) -> str | None:
    """Arms share the memory of operands and results, whose sizes must be known to be the same in both."""
    if op.symbols or any(arm.symbols for arm in op.regions):
        return "a size in an arm depends on values"
    for arm in op.regions:
        handed_on = [value for value in arm.results if value.op is None]
        if any(_least_bytes(value) > _COPIED for value in handed_on):
            return "an arm hands on a large value, which would be copied"
        given = zip((*op.operands[1:], *op.results), (*arm.args, *arm.results), strict=True)
        if not all(dims.eq(a.tensor.numel, b.tensor.numel) is True for a, b in given):
            return "an arm may be given, or give, other sizes"
    return None


LOWERINGS: Mapping[str, Branching] = {"cf.cond": Branching(_check)}
