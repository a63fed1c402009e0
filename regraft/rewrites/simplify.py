"""The pass that applies a set of rewrites and keeps the normal form."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.errors import RewriteError
from regraft.ir import Module, PassContext, Rewrite, RewritePass
from regraft.rewrites.canonical import CanonicalSpellings

_MAX_ROUNDS = 20


class Simplify:
    """Canonical spellings, then ``rewrites`` to a fixpoint, again while these write other spellings."""

    def __init__(
        self,
        name: str,
        stage: str,
        rewrites: Sequence[Rewrite],
        after: tuple[str, ...] = (),
        before: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.stage = stage
        self.after = after
        self.before = before
        self.spellings = CanonicalSpellings(f"{name}.spellings", stage)
        self._driver = RewritePass(name, stage, rewrites)
        self.rewrites = self._driver.rewrites

    def run(self, module: Module, context: PassContext) -> bool:
        changed = False
        for _ in range(_MAX_ROUNDS):
            respelled = self.spellings.run(module, context)
            rewritten = self._driver.run(module, context)
            changed = changed or respelled or rewritten
            if not rewritten:
                return changed
        raise RewriteError(
            f"'{self.name}' does not settle: its rewrites and the canonical spellings undo each other"
        )
