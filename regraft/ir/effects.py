"""What may be done with an op: left out, moved, run where it would not have run.

An op with regions may be as harmless as what is in them, which its definition alone cannot know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from regraft.ir.core import Op, Region
from regraft.ir.module import symbols_in
from regraft.ir.opdef import Trait


def is_pure(op: Op) -> bool:
    """Whether ``op`` has no effect: it may be left out when unused, and may change places with any op."""
    return op.has(Trait.PURE) or (op.has(Trait.RECURSIVE) and all(map(is_pure, _inside(op))))


def is_speculatable(op: Op) -> bool:
    """Whether ``op`` may run where it would not have run: it is pure, raises nothing and comes to an end."""
    return op.has(Trait.SPECULATABLE) and is_pure(op) and all(map(is_speculatable, _inside(op)))


def is_dead(op: Op) -> bool:
    """Whether nothing observes ``op``: it is pure, and nobody uses a result of it or names a symbol."""
    kept = op.has(Trait.TERMINATOR) or any(r.uses for r in op.results)
    return not kept and is_pure(op) and not _is_named(op)


def _is_named(op: Op) -> bool:
    """Whether a symbol that ``op`` defines stands in another op."""
    if not op.symbols or op.parent is None:
        return False
    return any(s in op.symbols for said in _said_in(op.parent, op) for s in symbols_in(said))


def _said_in(region: Region, besides: Op) -> Iterator[Any]:
    """What may name symbols in a region, but for what ``besides`` says: types and attributes."""
    for op in region.ops:
        if op is besides:
            continue
        yield from (result.type for result in op.results)
        yield from op.attrs.values()
        for inner in op.regions:
            yield from inner.arg_types
            yield from _said_in(inner, besides)


def _inside(op: Op) -> list[Op]:
    return [inner for region in op.regions for inner in region.ops]
