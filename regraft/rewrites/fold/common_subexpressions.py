"""Computes each thing once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from regraft.ir import Module, Op, PassContext, Region, Rewriter, Trait
from regraft.rewrites.fold.keys import op_key


@dataclass(frozen=True)
class CommonSubexpressions:
    """Replaces a pure op by an earlier equal one of the same region.

    Constants are equal when they are the same object. Ops with regions, and ops that define a symbol,
    stay: two symbols are two sizes even where they come from equal values.
    """

    name: str = "common-subexpressions"
    stage: str = "fold"
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def run(self, module: Module, context: PassContext) -> bool:
        rewriter = context.rewriter(self.name)
        changes = [_merge(function.body, rewriter) for function in module.functions.values()]
        return any(changes)


def _merge(region: Region, rewriter: Rewriter) -> bool:
    seen: dict[Hashable, Op] = {}
    changed = False
    for op in region.ops:
        for inner in op.regions:
            changed = _merge(inner, rewriter) or changed
        if not can_share(op):
            continue
        first = seen.setdefault(op_key(op, [id(operand) for operand in op.operands]), op)
        if first is not op:
            rewriter.replace(op, first.results)
            changed = True
    return changed


def can_share(op: Op) -> bool:
    """Whether one run of ``op`` may stand for two."""
    return op.has(Trait.PURE) and not op.has(Trait.TERMINATOR) and not op.regions and not op.symbols
