"""Expressions in which a tensor may decide, as calls."""

from __future__ import annotations

import ast
import copy
from collections.abc import Sequence
from typing import TypeVar, cast

from regraft.compiler.capture.control.jumps import Note
from regraft.compiler.capture.control.tree import PREFIX, Tested, located

_Node = TypeVar("_Node", ast.stmt, ast.expr)
#: What a comprehension goes over, in the function that makes its values.
_ITEMS = f"{PREFIX}items"
#: What stands for the object of calls in converted code; `convert` puts the object in its place.
CALLS = "\0calls of converted code"


def calls_attribute(name: str) -> ast.expr:
    return ast.Attribute(ast.Constant(CALLS), name, ast.Load())


def call(name: str, *args: ast.expr) -> ast.expr:
    return ast.Call(calls_attribute(name), list(args), [])


def _is_ours(node: ast.expr) -> bool:
    """Whether ``node`` is a function of the calls already."""
    held = node.value if isinstance(node, ast.Attribute) else None
    return isinstance(held, ast.Constant) and held.value == CALLS


def _may_be_of_truths(node: ast.Compare) -> bool:
    """Whether ``node`` asks if something, that may be a truth value, is something else than None."""
    sides = (node.left, node.comparators[0])
    of_none = any(isinstance(side, ast.Constant) and side.value is None for side in sides)
    return isinstance(node.ops[0], (ast.Is, ast.IsNot)) and not of_none


def thunk(value: ast.expr, *parameters: str) -> ast.expr:
    """``lambda: value``, or one with ``parameters``."""
    args = [ast.arg(name) for name in parameters]
    return ast.Lambda(
        ast.arguments(posonlyargs=[], args=args, kwonlyargs=[], kw_defaults=[], defaults=[]), value
    )


def index_of(node: ast.expr) -> ast.expr:
    """What stands between brackets, as an expression of its own."""
    if isinstance(node, ast.Slice):
        parts = [part or ast.Constant(None) for part in (node.lower, node.upper, node.step)]
        return call("slice", *parts)
    if isinstance(node, ast.Tuple):
        return ast.Tuple([index_of(each) for each in node.elts], ast.Load())
    return node


def tested(node: ast.expr) -> ast.expr:
    """``node``, of which only the truth is looked at."""
    if isinstance(node, ast.BoolOp):
        return ast.copy_location(Tested(node.op, [tested(each) for each in node.values]), node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ast.copy_location(ast.UnaryOp(node.op, tested(node.operand)), node)
    return node


def loop_tested(node: ast.expr) -> ast.expr:
    """``node``, the test of a `while`, whose parts may be open sizes that decide."""
    if isinstance(node, ast.BoolOp):
        return ast.copy_location(Tested(node.op, [loop_tested(each) for each in node.values]), node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ast.copy_location(ast.UnaryOp(node.op, loop_tested(node.operand)), node)
    return ast.copy_location(call("goes_on", node), node)


class Expressions(ast.NodeTransformer):
    """Converts expressions.

    Fields:
        first: the function's first parameter, which ``super()`` takes without saying so.
        notes: what had to stay as it is.
        optional: the variables that may be a tensor on one path and None on another.
    """

    def __init__(self, first: str | None, notes: list[Note], optional: frozenset[str] = frozenset()) -> None:
        self.first = first
        self.notes = notes
        self.optional = optional

    def of(self, node: _Node) -> _Node:
        """``node``, a statement without blocks or an expression, converted; itself it stays as it was."""
        found = self.visit(copy.deepcopy(node))
        assert isinstance(found, (ast.stmt, ast.expr))
        return cast(_Node, found)

    def visit(self, node: ast.AST) -> ast.AST:
        found = super().visit(node)
        if found is not node and isinstance(node, ast.expr):
            located(found, node)
        return found

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        if self._evaluates_in_place(node, node.values[1:]):
            return node
        self.generic_visit(node)
        values = [call("truth", each) for each in node.values] if isinstance(node, Tested) else node.values
        first, *others = values
        name = "both" if isinstance(node.op, ast.And) else "either"
        return call(name, first, *map(thunk, others))

    visit_Tested = visit_BoolOp

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        if self._evaluates_in_place(node, [node.body, node.orelse]):
            return node
        node.test = tested(node.test)
        self.generic_visit(node)
        return call("choose", call("asked", node.test), thunk(node.body), thunk(node.orelse))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not):
            node.operand = tested(node.operand)
        self.generic_visit(node)
        return call("negate", call("asked", node.operand)) if isinstance(node.op, ast.Not) else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        is_read = node.id in self.optional and isinstance(node.ctx, ast.Load)
        return call("held", node) if is_read else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if self._is_of_none(node):
            found = call("is_none", node.left)
            return found if isinstance(node.ops[0], ast.Is) else call("negate", found)
        if self._evaluates_in_place(node, node.comparators[1:]):
            return node
        self.generic_visit(node)
        names = [type(op).__name__ for op in node.ops]
        if len(names) == 1 and not names[0].endswith("In") and not _may_be_of_truths(node):
            return node
        first, *others = node.comparators
        pairs = [ast.Tuple([ast.Constant(names[0]), thunk(first)], ast.Load())]
        pairs += [
            ast.Tuple([ast.Constant(n), thunk(o)], ast.Load()) for n, o in zip(names[1:], others, strict=True)
        ]
        return call("chain", node.left, *pairs)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        return call("element", node.value, index_of(node.slice))

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        is_read = node.attr == "data" and isinstance(node.ctx, ast.Load)
        return call("data", node.value) if is_read else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "super":
            if not node.args and self.first is not None:
                node.args = [ast.Name("__class__", ast.Load()), ast.Name(self.first, ast.Load())]
        elif not _is_ours(node.func):
            node.func = call("of", node.func)
        return located(node, node)

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        first, *others = node.generators
        tests = node.generators[-1].ifs
        inside = any(
            isinstance(n, (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)) for n in ast.walk(node)
        )
        if (
            inside
            or any(g.is_async for g in node.generators)
            or (others and any(g.ifs for g in node.generators[:-1]))
        ):
            return self.generic_visit(node)
        node.generators[-1].ifs = []
        test = tests[0] if len(tests) == 1 else ast.BoolOp(ast.And(), tests) if tests else ast.Constant(True)
        holds = call("truth", cast(ast.expr, self.visit(tested(located(test, node)))))
        self.generic_visit(node)
        iterated, first.iter = first.iter, ast.Name(_ITEMS, ast.Load())
        pairs = ast.GeneratorExp(ast.Tuple([holds, thunk(node.elt)], ast.Load()), node.generators)
        return call("listed", thunk(pairs, _ITEMS), iterated)

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        for test in node.ifs:
            self._note(test, "a condition in a comprehension cannot be converted; write a loop")
        return self.generic_visit(node)

    def _is_of_none(self, node: ast.Compare) -> bool:
        """``x is None`` or ``x is not None`` of a variable that may be either."""
        right = node.comparators[0]
        return (
            isinstance(node.left, ast.Name)
            and node.left.id in self.optional
            and isinstance(node.ops[0], (ast.Is, ast.IsNot))
            and len(node.ops) == 1
            and isinstance(right, ast.Constant)
            and right.value is None
        )

    def _evaluates_in_place(self, node: ast.expr, operands: Sequence[ast.expr]) -> bool:
        """Whether an operand that is not always evaluated binds a variable, or belongs to a generator."""
        inside = [n for operand in operands for n in ast.walk(operand)]
        if any(isinstance(n, (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)) for n in inside):
            self._note(node, "`:=` in an operand cannot be converted; assign in a statement of its own")
            return True
        return False

    def _note(self, node: ast.expr, reason: str) -> None:
        self.notes.append(Note(node.lineno, node.end_lineno or node.lineno, reason))
