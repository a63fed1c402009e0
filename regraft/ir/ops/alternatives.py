"""``rg.alt``: several forms of one computation, of which one runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir.dims import bounds
from regraft.ir.opdef import CallSite, Trait
from regraft.ir.ops.control import require_types
from regraft.ir.ops.rules import define, require
from regraft.ir.types import Type


def _alternatives(site: CallSite) -> Sequence[Type]:
    """Every region takes the operands and gives what region 0, the reference, gives."""
    regions = site.regions
    require(bool(regions), site, "there is no region")
    for number, region in enumerate(regions):
        require_types(site, region.arg_types, site.operand_types, f"the arguments of region {number}")
        require_types(site, region.result_types, regions[0].result_types, f"the results of region {number}")
    _require_choice(site, len(regions))
    return regions[0].result_types


def _require_choice(site: CallSite, count: int) -> None:
    cuts, order, forms = site.ints("cuts"), site.ints("order"), site.attr("forms")
    site.dim_attr("rows")
    require(len(forms) == count, site, f"there are {count} regions and {len(forms)} names of forms")
    require(len(order) == len(cuts) + 1, site, f"{len(cuts)} cuts make {len(cuts) + 1} intervals")
    require(list(cuts) == sorted(set(cuts)), site, f"the cuts {cuts} do not increase")
    require(all(0 <= index < count for index in order), site, f"order {order} names no region")


def chosen_form(op: Any, rows: int) -> int:
    """The region of the ``rg.alt`` ``op`` that runs at ``rows`` rows."""
    return op.attr("order")[sum(cut <= rows for cut in op.attr("cuts"))]


def settled_form(op: Any) -> int | None:
    """The region of the ``rg.alt`` ``op`` that runs whatever the sizes are, or None."""
    order = set(op.attr("order"))
    if len(order) == 1:
        return order.pop()
    low, high = bounds(op.site.dim_attr("rows"))
    if low is None or high is None:
        return None
    first, last = chosen_form(op, low), chosen_form(op, high)
    inside = [cut for cut in op.attr("cuts") if low < cut <= high]
    return first if first == last and not inside else None


OPS = (
    define(
        "rg.alt(Tensor[] operands, *, Dim rows=1, int[] cuts=[], int[] order=[0], str[] forms)",
        _alternatives,
        Trait.PURE,
        decompose=lambda b, op: b.copy(op.regions[0], op.operands),
        regions=None,
    ),
)
