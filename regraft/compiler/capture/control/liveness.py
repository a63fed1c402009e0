"""Which variables are still read after each branch and loop of a function whose jumps are lowered."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from regraft.compiler.capture.control.tree import (
    SCOPES,
    Branch,
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
    """Set the ``live_*`` and ``spent`` fields of what is in ``statements``, the body of a function with such
    ``parameters``; ``after`` is read when they have run.

    Names that inner functions read, and those that are not the function's own, are live everywhere.
    """
    elsewhere = declared(statements, ast.Global) | declared(statements, ast.Nonlocal)
    _block(statements, after | elsewhere | captured(statements))
    own = (bound(statements) | parameters) - elsewhere
    for node in walk(statements):
        if isinstance(node, Loop) and isinstance(node.original, ast.For):
            node.spent = handed_over(node.original.iter) & own - node.live_head


def _block(statements: Sequence[ast.stmt], live: frozenset[str]) -> frozenset[str]:
    """What is read before ``statements`` run, ``live`` being what is read after them."""
    for statement in reversed(statements):
        live = _statement(statement, live)
    return live


def _statement(node: ast.stmt, live: frozenset[str]) -> frozenset[str]:
    if isinstance(node, Branch):
        node.live_after = live
        return read(node.test) | _block(node.body, live) | _block(node.orelse, live)
    if isinstance(node, Guard):
        return live | read(node.test) | _reads(node.body)
    if isinstance(node, Next):
        return node.loop.live_head
    if isinstance(node, Loop):
        return _loop(node, live)
    if isinstance(node, ast.With):
        return _reads(node.items) | _block(node.body, live)
    if isinstance(node, SCOPES):
        return (live - bound([node])) | read(node)
    if isinstance(node, _SIMPLE):
        return (live - _overwritten(node)) | read(node)
    return live | read(node)


def _loop(node: Loop, live: frozenset[str]) -> frozenset[str]:
    node.live_after = live
    done = _block(node.done, live)
    tested = _NONE if isinstance(node.original, ast.For) else read(node.original.test)
    node.live_head = tested | done | live
    while True:
        trip = _block(node.body, live | {node.goes_on}) - node.targets - {node.goes_on}
        head = node.live_head | trip
        if head == node.live_head:
            break
        node.live_head = head
    return head | _reads(list(expressions(node)))


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
