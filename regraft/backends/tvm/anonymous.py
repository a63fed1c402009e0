"""Functions without names: layers that compute the same have the same text, so that they are built once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regraft.backends.tvm.lower import LOWERINGS
from regraft.backends.tvm.lower.kinds import Pointwise
from regraft.ir import UNKNOWN, Function, Op


def forget_names(function: Function) -> None:
    """Take the hints of values from ``function``, and the source lines that no message of a kernel names."""
    for value in function.args:
        value.hint = ""
    for op in function.walk():
        for value in (*op.results, *(argument for region in op.regions for argument in region.args)):
            value.hint = ""
        if not _is_checked(op):
            op.loc = UNKNOWN


def _is_checked(op: Op) -> bool:
    """Whether a kernel looks at values before it reads with them, and names the line where they are wrong."""
    lowering = LOWERINGS.get(op.name)
    return isinstance(lowering, Pointwise) and bool(lowering.indices(op))


def renamed(program: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """``program`` with its constants under other names."""
    buffers: list[dict[str, Any]] = program["buffers"]
    own = [{**b, "constant": names[b["constant"]]} if "constant" in b else b for b in buffers]
    return {**program, "buffers": own}
