"""Which variables hold a list, dict or set that the function makes itself and shows to nobody.

What becomes of such a container on a path after which no variable that holds it is read matters to nobody.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence

from regraft.compiler.capture.control.tree import (
    CHANGING,
    Branch,
    Extended,
    Guard,
    Loop,
    blocks,
    bound,
    captured,
    expressions,
    own_nodes,
    walk,
)

#: What makes a container.
_MADE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
_MAKERS = frozenset(["list", "dict", "set"])
#: Functions that read a container, and give nothing that holds it.
_READERS = frozenset(
    (
        *("len", "sum", "min", "max", "sorted", "list", "tuple"),
        *("stack", "cat", "concat", "concatenate", "hstack", "vstack", "tensor", "argmax", "argmin"),
    )
)
#: Methods that do the same.
_READING = frozenset(["index", "count", "copy", "get"])
#: Functions and methods of which the results hold the container, and which only read it where these are
#: taken apart at once.
_ITERATORS = frozenset(["zip", "enumerate", "reversed"])
_VIEWS = frozenset(["items", "keys", "values"])


def held_together(statements: Sequence[ast.stmt], parameters: frozenset[str]) -> Mapping[str, frozenset[str]]:
    """Such variables of a function, each with all that may hold the same container."""
    shown = captured(statements) | parameters
    groups: dict[str, set[str]] = {}
    for target, value in _assignments(statements):
        if isinstance(value, ast.Name):
            joined = groups.setdefault(target, {target}) | groups.setdefault(value.id, {value.id})
            groups.update(dict.fromkeys(joined, joined))
        elif _is_made(value):
            groups.setdefault(target, {target})
        else:
            shown |= {target}
    shown |= _bound_otherwise(statements) | _escaping(statements)
    return {name: frozenset(group) for name, group in groups.items() if not group & shown}


def _is_made(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in _MAKERS
    return isinstance(value, _MADE)


def _assignments(statements: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """The variables that are assigned to by name, each with its value."""
    for statement in walk(statements):
        if isinstance(statement, ast.Assign):
            for target, value in _pairs(statement):
                if isinstance(target, ast.Name):
                    yield target.id, value


def _pairs(statement: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What is assigned to what; ``a, b = c, d`` assigns twice."""
    for target in statement.targets:
        if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
            parts = (*target.elts, *statement.value.elts)
            if len(parts) == 2 * len(target.elts) and not any(isinstance(p, ast.Starred) for p in parts):
                yield from zip(target.elts, statement.value.elts, strict=True)
                continue
        yield target, statement.value


def _bound_otherwise(statements: Iterable[ast.stmt]) -> frozenset[str]:
    """The variables that something else than an assignment to them alone binds."""
    found: set[str] = set()
    for statement in walk(statements):
        if isinstance(statement, ast.Assign):
            found |= bound([target for target, _ in _pairs(statement) if not isinstance(target, ast.Name)])
            found |= bound([statement.value])
        elif isinstance(statement, Loop):
            found |= statement.targets
        elif not list(blocks(statement)) and not isinstance(statement, Extended):
            found |= bound([statement])
        else:
            found |= bound(list(expressions(statement)))
    return frozenset(found)


def _escaping(statements: Iterable[ast.stmt]) -> frozenset[str]:
    """The variables that are used in a way that may show what they hold to somebody."""
    found: set[str] = set()
    for statement in walk(statements):
        if isinstance(statement, ast.Assign):
            others = [
                v for t, v in _pairs(statement) if not (isinstance(t, ast.Name) and isinstance(v, ast.Name))
            ]
            found = found.union(*map(_shown_by, (*statement.targets, *others)))
            continue
        inside = isinstance(statement, (Branch, Guard, Loop)) or bool(list(blocks(statement)))
        parts = list(expressions(statement)) if inside else [statement]
        if isinstance(statement, (Branch, Guard, Loop)):  # they look at what decides, or go over it
            parts = [each for part in parts for each in _taken_apart(part) if not isinstance(each, ast.Name)]
        found = found.union(*map(_shown_by, parts))
    return frozenset(found)


def _shown_by(node: ast.AST) -> set[str]:
    """The names in ``node`` that stand where more is done than to look at what they hold."""
    kept: set[int] = set()
    for each in own_nodes(node):
        kept |= {id(part) for part in _looked_at(each)}
    names = [n for n in own_nodes(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    return {n.id for n in names if id(n) not in kept}


def _looked_at(node: ast.AST) -> list[ast.AST]:
    """The parts of ``node`` of which it takes only elements, a length or a truth."""
    if isinstance(node, ast.Subscript):
        return [node.value]
    if isinstance(node, ast.Compare):
        return _all_taken_apart([node.left, *node.comparators])
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, ast.comprehension):
        return _taken_apart(node.iter)
    if not isinstance(node, ast.Call):
        return []
    function = node.func
    if isinstance(function, ast.Name):
        return _read_by(function.id, node)
    if isinstance(function, ast.Attribute):
        return [function.value] if function.attr in CHANGING | _READING else _read_by(function.attr, node)
    return []


def _read_by(name: str, node: ast.Call) -> list[ast.AST]:
    return _all_taken_apart(node.args) if name in _READERS else []


def _all_taken_apart(nodes: Iterable[ast.AST]) -> list[ast.AST]:
    return [part for node in nodes for part in _taken_apart(node)]


def _taken_apart(node: ast.AST) -> list[ast.AST]:
    """What is read where the value of ``node`` is: of an iterator or a view, what it goes over."""
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Name) and function.id in _ITERATORS:
            return _all_taken_apart(node.args)
        if isinstance(function, ast.Attribute) and function.attr in _VIEWS and not node.args:
            return _taken_apart(function.value)
    return [node]
