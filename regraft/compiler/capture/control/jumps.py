"""``return``, ``break`` and ``continue`` out of the way: afterwards both arms of a branch run to their end.

Where an arm ends in a jump, the rest of its block moves into the other arm, so that nothing is written twice
and a chain of early exits becomes nested branches. A loop that may be left becomes one whose trip says, at
its very end, whether another follows (``Next``): the iterations of an unrolled loop nest in the same way.
Only where an arm may jump or not does a flag say whether to go on.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from regraft.compiler.capture.control.tree import (
    PREFIX,
    RESULT,
    SCOPES,
    Branch,
    Flag,
    Guard,
    Loop,
    Next,
    blocks,
    expressions,
    located,
    own_nodes,
    walk,
)

_JUMPS: Mapping[type[ast.stmt], str] = {ast.Return: "return", ast.Break: "break", ast.Continue: "continue"}
#: Statements that are left as they are, with all they hold.
_KEPT: Mapping[type[ast.stmt], str] = {
    ast.Try: "a decision inside `try` cannot be converted; move it out of the try",
    ast.TryStar: "a decision inside `try` cannot be converted; move it out of the try",
    ast.Match: "`match` on a tensor's value cannot be converted; write if and elif",
    ast.AsyncFor: "`async for` cannot be converted",
    ast.AsyncWith: "`async with` cannot be converted",
}
#: Which flags a jump of each kind sets; a kind that is not there cannot occur.
Flags = Mapping[str, tuple[str, ...]]
_Made = Callable[[Flags], list[ast.stmt]]


@dataclass(frozen=True)
class Note:
    """Why the lines ``first`` to ``last`` are not converted."""

    first: int
    last: int
    reason: str


@dataclass
class Lowering:
    """Lowers the body of one function.

    Fields:
        notes: what had to stay as it is.
        names: the flags made so far.
    """

    notes: list[Note] = field(default_factory=list[Note])
    names: list[str] = field(default_factory=list[str])
    loops: int = 0

    def function(self, body: Sequence[ast.stmt], end: ast.stmt) -> list[ast.stmt]:
        """``body`` with its jumps lowered, its result in ``RESULT``. ``end`` is what falling off it does."""
        return self.block(body, [end], {"return": ()})

    def block(self, statements: Sequence[ast.stmt], end: list[ast.stmt], flags: Flags) -> list[ast.stmt]:
        """``statements``, then ``end`` where they run to their end. ``end`` is placed once at most."""
        out: list[ast.stmt] = []
        for i, statement in enumerate(statements):
            rest = statements[i + 1 :]
            if type(statement) in _JUMPS:
                return [*out, *_jump(statement, flags)]
            if self._stays(statement, rest):
                out.append(statement)
                continue
            tail = _Tail(rest, end, flags)
            if isinstance(statement, ast.If):
                found, ended = self._branch(statement, tail)
            elif isinstance(statement, ast.With) and _jumps([statement]):
                found, ended = self._with(statement, tail)
            elif isinstance(statement, ast.With):
                found, ended = [self._with_body(statement, {})], False
            elif isinstance(statement, (ast.For, ast.While)):
                found, ended = self._loop(statement, tail)
            else:
                found, ended = [statement], False
            out += found
            if ended:
                return out
        return [*out, *end]

    def _stays(self, statement: ast.stmt, rest: Sequence[ast.stmt]) -> bool:
        """Whether ``statement`` is left alone, with all it holds."""
        reason = _KEPT.get(type(statement))
        compound = isinstance(statement, (ast.If, ast.For, ast.While, ast.With))
        if compound and reason is None:
            moved = [statement, *(rest if _jumps([statement]) else ())]
            reason = _cannot_move(moved)
        if reason is None:
            return False
        self.notes.append(Note(statement.lineno, statement.end_lineno or statement.lineno, reason))
        return True

    def _branch(self, node: ast.If, tail: _Tail) -> tuple[list[ast.stmt], bool]:
        if _only_raises(node.body):
            guard = Guard(node, node.test, node.body)
            return [guard, *self.block([*node.orelse, *tail.rest], tail.end, tail.flags)], True
        if _only_raises(node.orelse):
            guard = Guard(node, negated(node.test), node.orelse)
            return [guard, *self.block([*node.body, *tail.rest], tail.end, tail.flags)], True
        if not _jumps([node]):
            return [self._arms(node, node.body, node.orelse, _Tail((), [], {}))], False
        if not _falls(node.body):
            orelse = [*node.orelse, *tail.rest]
            if not _falls(node.orelse):
                orelse = node.orelse
            return [self._arms(node, node.body, orelse, tail)], True
        if not _falls(node.orelse):
            return [self._arms(node, [*node.body, *tail.rest], node.orelse, tail, end_first=True)], True
        return self._flagged(
            node, tail, lambda flags: [self._arms(node, node.body, node.orelse, _Tail((), [], flags))]
        )

    def _arms(
        self,
        node: ast.If,
        body: Sequence[ast.stmt],
        orelse: Sequence[ast.stmt],
        tail: _Tail,
        *,
        end_first: bool = False,
    ) -> Branch:
        nothing: list[ast.stmt] = []
        first, second = (tail.end, nothing) if end_first else (nothing, tail.end)
        arms = self.block(body, first, tail.flags), self.block(orelse, second, tail.flags)
        return Branch(node, node.test, *arms)

    def _flagged(self, node: ast.stmt, tail: _Tail, made: _Made) -> tuple[list[ast.stmt], bool]:
        """``node`` with a flag that its jumps set, and what follows where it is not set."""
        if not tail.rest and not tail.end:
            return made(tail.flags), True
        flag = self._flag()
        inner = made({kind: (*names, flag) for kind, names in tail.flags.items()})
        follows = self.block(tail.rest, tail.end, tail.flags)
        test = self._unset(flag, node)
        return [
            _assign(node, flag, value=False),
            *inner,
            located(Branch(node, test, follows, [], flag), node),
        ], True

    def _with(self, node: ast.With, tail: _Tail) -> tuple[list[ast.stmt], bool]:
        if not _falls(node.body):
            return [self._with_body(node, tail.flags)], True
        return self._flagged(node, tail, lambda flags: [self._with_body(node, flags)])

    def _with_body(self, node: ast.With, flags: Flags) -> ast.stmt:
        return ast.copy_location(ast.With(node.items, self.block(node.body, [], flags) or [ast.Pass()]), node)

    def _loop(self, node: ast.For | ast.While, tail: _Tail) -> tuple[list[ast.stmt], bool]:
        own = _jumps(node.body)
        self.loops += 1
        loop = Loop(node, self.loops, leaves=bool(own & {"break", "return"}))
        outer = _jumps(node.orelse) | (own & {"return"})
        if own & {"return"} and "break" not in own and tail.is_last(node):
            loop.body = self._trip(node, loop, {"return": ()})
            loop.done = self.block([*node.orelse, *tail.rest], tail.end, tail.flags)
            return [loop], True
        if not outer:
            loop.body = self._trip(node, loop, {})
            loop.done = self.block(node.orelse, [], {})
            return [loop], False

        def made(flags: Flags) -> list[ast.stmt]:
            loop.body = self._trip(node, loop, {k: v for k, v in flags.items() if k == "return"})
            loop.done = self.block(node.orelse, [], flags)
            return [loop]

        return self._flagged(node, tail, made)

    def _trip(self, node: ast.For | ast.While, loop: Loop, outer: Flags) -> list[ast.stmt]:
        """One trip, ``outer`` being the flags of the jumps that also leave what is around the loop."""
        jumps = _jumps(node.body)
        following = Next(loop)
        if "continue" not in jumps:
            return self.block(node.body, [following], {"break": (), **outer})
        if not loop.leaves:
            return [*self.block(node.body, [], {"continue": ()}), following]
        flag = self._flag()
        leaving = {kind: (*names, flag) for kind, names in {"break": (), **outer}.items()}
        body = self.block(node.body, [], {"continue": (), **leaving})
        test = self._unset(flag, node)
        return [_assign(node, flag, value=False), *body, Branch(node, test, [following], [], flag)]

    @staticmethod
    def _unset(flag: str, origin: ast.AST) -> ast.expr:
        return located(ast.UnaryOp(ast.Not(), ast.Name(flag, ast.Load())), origin)

    def _flag(self) -> str:
        self.names.append(f"{PREFIX}left_{len(self.names)}")
        return self.names[-1]


@dataclass(frozen=True)
class _Tail:
    """What follows a statement: the ``rest`` of its block, then its ``end``; jumps set ``flags``."""

    rest: Sequence[ast.stmt]
    end: list[ast.stmt]
    flags: Flags

    def is_last(self, node: ast.For | ast.While) -> bool:
        """Whether a ``return`` in ``node`` needs no flag: only the function's end comes next.

        Another trip of a loop around it may come next as well, where each is made in the arm that goes on.
        """
        nests = isinstance(node, ast.For) or not any(isinstance(s, Next) for s in self.end)
        return self.flags.get("return") == () and nests


def negated(test: ast.expr) -> ast.expr:
    """``not test``, simplified where ``test`` is a negation."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return test.operand
    return ast.copy_location(ast.UnaryOp(ast.Not(), test), test)


def _assign(origin: ast.AST, name: str, *, value: bool) -> ast.stmt:
    return located(Flag(name, value=value), origin)


def _jump(node: ast.stmt, flags: Flags) -> list[ast.stmt]:
    """What a jump leaves behind: the value that is returned, and its flags."""
    found = [_assign(node, flag, value=True) for flag in flags[_JUMPS[type(node)]]]
    if isinstance(node, ast.Return):
        value = node.value or ast.Constant(None)
        found.insert(0, located(ast.Assign([ast.Name(RESULT, ast.Store())], value), node))
    return found or [ast.copy_location(ast.Pass(), node)]


def _jumps(statements: Sequence[ast.stmt]) -> frozenset[str]:
    """The kinds of jump that may leave ``statements``."""
    found: set[str] = set()
    for statement in statements:
        if type(statement) in _JUMPS:
            found.add(_JUMPS[type(statement)])
        elif isinstance(statement, (ast.For, ast.While, ast.AsyncFor)):
            found |= _jumps(statement.body) - {"break", "continue"} | _jumps(statement.orelse)
        else:
            found = found.union(*(_jumps(block) for block in blocks(statement)))
    return frozenset(found)


def _falls(statements: Sequence[ast.stmt]) -> bool:
    """Whether ``statements`` may run to their end."""
    for statement in statements:
        if isinstance(statement, (*_JUMPS, ast.Raise)):
            return False
        if isinstance(statement, ast.If) and not _falls(statement.body) and not _falls(statement.orelse):
            return False
        if isinstance(statement, ast.With) and not _falls(statement.body):
            return False
        if isinstance(statement, ast.While) and _is_endless(statement):
            return False
    return True


def _is_endless(node: ast.While) -> bool:
    """Whether the statement after the loop is never reached."""
    return isinstance(node.test, ast.Constant) and bool(node.test.value) and "break" not in _jumps(node.body)


def _only_raises(statements: Sequence[ast.stmt]) -> bool:
    """Whether ``statements`` make an exception and raise it."""
    if not statements or not isinstance(statements[-1], ast.Raise) or statements[-1].exc is None:
        return False
    return all(isinstance(s, (ast.Assign, ast.AnnAssign)) for s in statements[:-1])


def _cannot_move(statements: Sequence[ast.stmt]) -> str | None:
    """Why ``statements`` cannot become the body of a function, or a part of one."""
    for statement in walk(statements):
        if isinstance(statement, ast.While) and any(
            isinstance(n, ast.NamedExpr) for n in ast.walk(statement.test)
        ):
            return "`:=` in the test of a loop cannot be converted; assign at the end of its body"
        if type(statement) in _KEPT and _jumps([statement]):
            return (
                f"a jump out of `{type(statement).__name__.removesuffix('Star').lower()}` cannot be converted"
            )
        if not isinstance(statement, SCOPES):
            for part in expressions(statement):
                if any(isinstance(n, (ast.Yield, ast.YieldFrom, ast.Await)) for n in own_nodes(part)):
                    return "a generator cannot be converted; return a list"
    return None
