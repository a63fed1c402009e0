"""What may be done with an op: left out, moved, run where it would not have run.

An op with regions may be as harmless as what is in them, which its definition alone cannot know.
"""

from __future__ import annotations

from regraft.ir.core import Op
from regraft.ir.opdef import Trait


def is_pure(op: Op) -> bool:
    """Whether ``op`` has no effect: it may be left out when unused, and may change places with any op."""
    return op.has(Trait.PURE) or (op.has(Trait.RECURSIVE) and all(map(is_pure, _inside(op))))


def is_speculatable(op: Op) -> bool:
    """Whether ``op`` may run where it would not have run: it is pure, raises nothing and comes to an end."""
    return op.has(Trait.SPECULATABLE) and is_pure(op) and all(map(is_speculatable, _inside(op)))


def is_dead(op: Op) -> bool:
    """Whether nothing observes ``op``: it is pure, defines no symbol, and none of its results is used."""
    kept = op.has(Trait.TERMINATOR) or op.symbols or any(r.uses for r in op.results)
    return not kept and is_pure(op)


def _inside(op: Op) -> list[Op]:
    return [inner for region in op.regions for inner in region.ops]
