"""Statements whose jumps are lowered, and the names that statements bind, read and change.

Names are those of one function's own scope. What functions, lambdas and classes inside it bind is theirs;
what they read may be read at any time, since nobody knows when they are called.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

_Node = TypeVar("_Node", bound=ast.AST)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SEQUENCES = frozenset(["append", "extend", "insert", "pop", "remove", "clear", "reverse", "sort"])
_MAPPINGS = frozenset(["update", "setdefault", "popitem", "add", "discard"])
#: Methods that change a container.
CHANGING = _SEQUENCES | _MAPPINGS
#: What the names of ours in converted code begin with.
PREFIX = "_rg_"
#: The variable that holds what the function returns.
RESULT = f"{PREFIX}result"


class Loop(ast.stmt):
    """A ``for`` or ``while`` whose jumps are lowered.

    Fields:
        original: what it was made from. Its target, iterable and test count.
        number: tells the function's loops apart.
        body: one trip. It ends in a ``Next`` where another may follow, in nothing where the loop is left.
        done: what follows once no trip is left to make: the ``else`` block, and the rest of the function
            where that is the only way to it.
        leaves: whether a trip may leave the loop.
        live_head, live_after: the names that are read later, before a trip and after the loop.
        spent: the variables that hold what is gone over, and that nobody reads again.
    """

    def __init__(self, original: ast.For | ast.While, number: int, *, leaves: bool) -> None:
        super().__init__()
        self.original = original
        self.number = number
        self.leaves = leaves
        self.body: list[ast.stmt] = []
        self.done: list[ast.stmt] = []
        self.live_head: frozenset[str] = frozenset()
        self.live_after: frozenset[str] = frozenset()
        self.spent: frozenset[str] = frozenset()
        ast.copy_location(self, original)

    @property
    def goes_on(self) -> str:
        """The variable that says whether another trip may follow."""
        return f"{PREFIX}goes_on_{self.number}"

    @property
    def outer(self) -> Loop | None:
        """The loop around this one that goes on where this one is done."""
        return _ended_by(self.done)

    @property
    def chain(self) -> list[Loop]:
        """This loop, and those around it of which trips may follow in an arm that ends a trip of this one."""
        return [self, *(self.outer.chain if self.outer is not None else ())]

    @property
    def targets(self) -> frozenset[str]:
        return bound([self.original.target]) if isinstance(self.original, ast.For) else frozenset()


class Next(ast.stmt):
    """The end of a trip after which ``loop`` goes on. It is the last statement of its block."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop = loop
        ast.copy_location(self, loop)


class Branch(ast.stmt):
    """An ``if`` whose arms do not jump.

    Fields:
        test, body, orelse: as in ``ast.If``.
        skipped_by: the flag that, where a jump has set it, keeps all of this from being done.
        live_after: the names that are read later.
        unread: for flags that the arms may set, the names that nobody reads where the flag is set.
    """

    def __init__(
        self,
        origin: ast.AST,
        test: ast.expr,
        body: list[ast.stmt],
        orelse: list[ast.stmt],
        skipped_by: str | None = None,
    ) -> None:
        super().__init__()
        self.test = test
        self.body = body
        self.orelse = orelse
        self.skipped_by = skipped_by
        self.live_after: frozenset[str] = frozenset()
        self.unread: Mapping[str, frozenset[str]] = {}
        ast.copy_location(self, origin)

    @property
    def ends(self) -> Loop | None:
        """The loop of which this ends a trip, one arm with its ``Next``, the other without."""
        return _ended_by(self.body) or _ended_by(self.orelse)


class Flag(ast.Assign):
    """``name = value``: whether a jump has been made.

    Fields:
        name, is_set: what is assigned.
        dead: the variables that what the flag skips reads, and that have no use until then: on a path that
            jumps they have no value, so that nothing of an earlier trip goes on.
    """

    def __init__(self, name: str, *, value: bool) -> None:
        super().__init__([ast.Name(name, ast.Store())], ast.Constant(value))
        self.name = name
        self.is_set = value
        self.dead: frozenset[str] = frozenset()


def _ended_by(block: Sequence[ast.stmt]) -> Loop | None:
    """The loop of which a trip ends at the end of ``block``."""
    last = block[-1] if block else None
    if isinstance(last, Next):
        return last.loop
    if isinstance(last, Loop):
        return last.outer
    return last.ends if isinstance(last, Branch) else None


class Extended(ast.Expr):
    """``x.extend(...)`` of the variable ``name``, which may hold another list afterwards."""

    def __init__(self, value: ast.Call, name: str) -> None:
        super().__init__(value)
        self.call = value
        self.name = name


class Tested(ast.BoolOp):
    """An ``and`` or ``or`` of which only the truth is looked at."""


class Guard(ast.stmt):
    """An ``if`` of which one arm does nothing but raise.

    Fields:
        test: whether to raise.
        body: makes the exception and raises it.
    """

    def __init__(self, origin: ast.AST, test: ast.expr, body: list[ast.stmt]) -> None:
        super().__init__()
        self.test = test
        self.body = body
        ast.copy_location(self, origin)


def blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks directly inside a statement, those of other scopes left out."""
    if isinstance(statement, SCOPES):
        return
    if isinstance(statement, Loop):
        yield from (statement.body, statement.done)
        return
    for name in ("body", "orelse", "finalbody"):
        yield from [block] if (block := getattr(statement, name, None)) else []
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body


def expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """The parts of a statement that are no blocks."""
    if isinstance(statement, Loop):
        original = statement.original
        yield from [original.iter] if isinstance(original, ast.For) else [original.test]
    elif isinstance(statement, (Branch, Guard)):
        yield statement.test
    elif not isinstance(statement, Next):
        for node in ast.iter_child_nodes(statement):
            if isinstance(node, ast.ExceptHandler):
                yield from [node.type] if node.type else []
            elif isinstance(node, ast.match_case):
                yield from [node.pattern, *([node.guard] if node.guard else [])]
            elif not isinstance(node, ast.stmt) or isinstance(statement, SCOPES):
                yield node


def walk(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements, at any depth, of this scope."""
    for statement in statements:
        yield statement
        for block in blocks(statement):
            yield from walk(block)


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and what is below it in the same scope; a scope inside it counts, but not what it holds."""
    yield node
    if not isinstance(node, SCOPES):
        for child in ast.iter_child_nodes(node):
            yield from own_nodes(child)


def bound(nodes: Sequence[ast.AST]) -> frozenset[str]:
    """The names that ``nodes``, statements or targets, bind or delete."""
    return frozenset(name for node in nodes for name in _bound(node))


def _bound(node: ast.AST) -> Iterator[str]:
    if isinstance(node, Next):
        yield node.loop.goes_on
    elif isinstance(node, Loop):
        yield from (node.goes_on, *node.targets, *node.spent)
    elif isinstance(node, Extended):
        yield node.name
    elif isinstance(node, Flag):
        yield from (node.name, *node.dead)
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
        return
    elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
        yield node.id
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest
    if isinstance(node, COMPREHENSIONS):
        # Its own variables stay inside; a walrus binds outside.
        yield from (n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
    elif isinstance(node, ast.stmt):
        for part in (*expressions(node), *(s for block in blocks(node) for s in block)):
            yield from _bound(part)
        for handler in getattr(node, "handlers", ()):
            yield from [handler.name] if handler.name else []
    elif not isinstance(node, ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _bound(child)


def read(node: ast.AST) -> frozenset[str]:
    """The names that ``node`` reads, at any depth."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    names |= {
        n.target.id for n in ast.walk(node) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)
    }
    return frozenset(names)


def handed_over(node: ast.expr) -> frozenset[str]:
    """The variables whose values ``node`` takes whole: it is one itself, or gives it to a function."""
    if isinstance(node, ast.Name):
        return frozenset({node.id})
    if isinstance(node, ast.Starred):
        return handed_over(node.value)
    if isinstance(node, ast.Call):
        given = (*node.args, *(keyword.value for keyword in node.keywords))
        return frozenset(name for each in given for name in handed_over(each))
    return frozenset()


def captured(statements: Iterable[ast.stmt]) -> frozenset[str]:
    """The names that functions, lambdas, classes and generator expressions in ``statements`` read."""
    found: set[str] = set()
    for statement in walk(statements):
        own = [statement] if isinstance(statement, SCOPES) else []
        for node in (n for part in (*own, *expressions(statement)) for n in own_nodes(part)):
            if isinstance(node, (*SCOPES, ast.GeneratorExp)):
                found |= read(node)
    return frozenset(found)


def declared(statements: Iterable[ast.stmt], kind: type[ast.Global] | type[ast.Nonlocal]) -> frozenset[str]:
    """The names that the function declares global, or nonlocal."""
    return frozenset(name for s in walk(statements) if isinstance(s, kind) for name in s.names)


def optional(statements: Iterable[ast.stmt], parameters: ast.arguments) -> frozenset[str]:
    """The variables to which None is assigned, or which are parameters that are None if nobody says more."""
    statements = list(statements)
    found: set[str] = set()
    for statement in walk(statements):
        targets = (
            statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        )
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and is_none(statement.value):
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    positional = [*parameters.posonlyargs, *parameters.args]
    defaults = zip(reversed(positional), reversed(parameters.defaults), strict=False)
    for parameter, value in (*defaults, *zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True)):
        found |= {parameter.arg} if is_none(value) else set()
    return frozenset(found)


def left_behind(statements: Iterable[ast.stmt]) -> frozenset[str]:
    """The variables that trips of loops bind which may be left, and that are read after the loop."""
    loops = [node for node in walk(statements) if isinstance(node, Loop) and node.leaves]
    names = {name for loop in loops for name in bound(loop.body) & loop.live_after}
    return frozenset(name for name in names if not name.startswith(PREFIX))


def is_none(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def places(statements: Iterable[ast.stmt]) -> frozenset[str]:
    """The containers and attributes that ``statements`` visibly change, as dotted paths from a variable.

    ``outs.append(x)`` and ``outs[0] = x`` change ``outs``, ``self.state = x`` changes ``self.state``.
    """
    found: set[str | None] = set()
    for statement in walk(statements):
        whole = not isinstance(statement, (Branch, Guard, Loop)) and not list(blocks(statement))
        for part in [statement] if whole else expressions(statement):
            found.update(_place(node) for node in own_nodes(part))
        if isinstance(statement, Loop) and isinstance(statement.original, ast.For):
            found.update(_place(node) for node in own_nodes(statement.original.target))
    return frozenset(place for place in found if place is not None)


def appended(statements: Sequence[ast.stmt]) -> frozenset[str]:
    """The variables with which ``statements`` do nothing but append to them."""
    nodes = [n for statement in statements for n in ast.walk(statement)]
    functions = [n.func for n in nodes if isinstance(n, ast.Call)]
    methods = [f for f in functions if isinstance(f, ast.Attribute) and f.attr == "append"]
    appends = Counter(f.value.id for f in methods if isinstance(f.value, ast.Name))
    uses = Counter(n.id for n in nodes if isinstance(n, ast.Name))
    return frozenset(name for name, count in appends.items() if uses[name] == count)


def _place(node: ast.AST) -> str | None:
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return path_of(node.value)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
        return path_of(node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
        return path_of(node.func.value)
    return None


def path_of(node: ast.expr) -> str | None:
    """``a.b.c`` where ``node`` is a variable or attributes of one."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = path_of(node.value)
        return f"{base}.{node.attr}" if base else None
    return None


def at_start(node: ast.AST, origin: ast.AST) -> None:
    """Place ``node`` where ``origin`` begins: a call of several lines would count as on its last one."""
    ast.copy_location(node, origin)
    if isinstance(node, (ast.stmt, ast.expr)):
        node.end_lineno, node.end_col_offset = node.lineno, node.col_offset


def located(node: _Node, origin: ast.AST) -> _Node:
    """``node``, what has no place in it being placed where ``origin`` begins."""
    for each in ast.walk(node):
        if not hasattr(each, "lineno"):
            at_start(each, origin)
    return node
