"""How the examples of this family write scans."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.ir import Builder, Value
from regraft.rewrites.dynamic.samples import Body, region


def scan(
    op: Builder, carried: Sequence[Value], scanned: Sequence[Value], fixed: Sequence[Value], trip: Body
) -> tuple[Value, ...]:
    """``trip`` over ``carried``, a slice of each of ``scanned``, and ``fixed``: the results."""
    slices = [each.tensor.with_shape(each.tensor.shape[1:]) for each in scanned]
    types = [*(each.type for each in carried), *slices, *(each.type for each in fixed)]
    operands = (tuple(carried), tuple(scanned), tuple(fixed))
    return op.create("cf.scan", operands, regions=(region(op, types, trip),)).results
