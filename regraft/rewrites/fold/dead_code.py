"""Removes what nothing observes."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.ir import Module, PassContext, Region, Rewriter, is_dead


@dataclass(frozen=True)
class DeadCode:
    """Erases pure ops without users, users before producers."""

    name: str = "dead-code"
    stage: str = "fold"
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def run(self, module: Module, context: PassContext) -> bool:
        rewriter = context.rewriter(self.name)
        changes = [_sweep(function.body, rewriter) for function in module.functions.values()]
        return any(changes)


def _sweep(region: Region, rewriter: Rewriter) -> bool:
    changed = False
    for op in region.reversed_ops:
        if is_dead(op):
            rewriter.erase(op)
            changed = True
        else:
            for inner in op.regions:
                changed = _sweep(inner, rewriter) or changed
    return changed
