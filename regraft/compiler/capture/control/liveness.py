"""Which variables are still read after each branch and loop of a function whose jumps are lowered."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field

from regraft.compiler.capture.control.tree import (
    PREFIX,
    SCOPES,
    Branch,
    Flag,
    Guard,
    Loop,
    Next,
    bound,
    captured,
    declared,
    expressions,
    handed_over,
    read,
    walk,
)

_NONE: frozenset[str] = frozenset()
_SIMPLE = (ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom)


def set_live(statements: Sequence[ast.stmt], after: frozenset[str], parameters: frozenset[str]) -> None:
    """Set the ``live_*``, ``spent``, ``unread`` and ``dead`` fields of what is in ``statements``, the body of
    a function with such ``parameters``; ``after`` is read when they have run.

    Names that inner functions read, and those that are not the function's own, are live everywhere.
    """
    elsewhere = declared(statements, ast.Global) | declared(statements, ast.Nonlocal)
    everywhere = elsewhere | captured(statements)
    own = (bound(statements) | parameters) - elsewhere
    _Liveness(everywhere, own).block(statements, after | everywhere)
    for node in walk(statements):
        if isinstance(node, Loop) and isinstance(node.original, ast.For):
            node.spent = handed_over(node.original.iter) & own - node.live_head


@dataclass(frozen=True)
class _Liveness:
    """What is read before statements run, the names of ``everywhere`` being read at any time."""

    everywhere: frozenset[str]
    #: The function's own variables.
    own: frozenset[str]
    #: What is read where a jump has set a flag, from the end of what the flag skips on.
    skipped: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])

    #: What is read only where the flag is not set.
    needed: dict[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])

    def block(self, statements: Sequence[ast.stmt], live: frozenset[str]) -> frozenset[str]:
        """What is read before ``statements`` run, ``live`` being what is read after them."""
        for statement in reversed(statements):
            live = self._statement(statement, live)
        return live

    def _statement(self, node: ast.stmt, live: frozenset[str]) -> frozenset[str]:
        if isinstance(node, Branch):
            node.live_after = live
            # Only a flag that is read later tells of this run of the arms.
            flags = bound([node]) & live & self.skipped.keys()
            node.unread = {flag: live - self.skipped[flag] - {flag} for flag in flags}
            if node.skipped_by is not None:
                self.skipped[node.skipped_by] = live
            before = read(node.test) | self.block(node.body, live) | self.block(node.orelse, live)
            if node.skipped_by is not None:
                self.needed[node.skipped_by] = before - live - {node.skipped_by}
            return before
        if isinstance(node, Guard):
            return live | read(node.test) | _reads(node.body)
        if isinstance(node, Next):
            return node.loop.live_head
        if isinstance(node, Loop):
            return self._loop(node, live)
        if isinstance(node, ast.With):
            return _reads(node.items) | self.block(node.body, live)
        if isinstance(node, SCOPES):
            return self._without(live, bound([node])) | read(node)
        if isinstance(node, Flag) and node.is_set:
            # The flags of one jump are set one after the other, the one that skips most first.
            return self.skipped[node.name] | {name for name in live - {node.name} if name.startswith(PREFIX)}
        if isinstance(node, Flag):
            node.dead = self.needed[node.name] & self.own - live
        if isinstance(node, _SIMPLE):
            return self._without(live, _overwritten(node)) | read(node)
        return live | read(node)

    def _loop(self, node: Loop, live: frozenset[str]) -> frozenset[str]:
        node.live_after = live
        done = self.block(node.done, live)
        tested = _NONE if isinstance(node.original, ast.For) else read(node.original.test)
        node.live_head = tested | done | live
        while True:
            body = self.block(node.body, live | {node.goes_on})
            trip = self._without(body, node.targets) - {node.goes_on}
            head = node.live_head | trip
            if head == node.live_head:
                break
            node.live_head = head
        return head | _reads(list(expressions(node)))

    def _without(self, live: frozenset[str], bound: frozenset[str]) -> frozenset[str]:
        """What is read before ``bound`` are bound for certain, ``live`` being read afterwards."""
        return live - (bound - self.everywhere)


def _overwritten(node: ast.stmt) -> frozenset[str]:
    """Names that are bound for certain, whole."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    if isinstance(node, ast.AnnAssign) and node.value is None:
        return _NONE
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return bound([node])
    return bound([target for target in targets if isinstance(target, (ast.Name, ast.Tuple, ast.List))])


def _reads(nodes: Sequence[ast.AST]) -> frozenset[str]:
    return _NONE.union(*(read(node) for node in nodes))
