"""Statements of a function in forms that its conversion knows, of those that mean the same."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from keyword import iskeyword

from regraft.compiler.capture.control.tree import Extended, bound, declared, is_none, path_of


def spelt_out(statements: Sequence[ast.stmt], parameters: frozenset[str]) -> list[ast.stmt]:
    """``statements``, the body of a function with such ``parameters``, but for inner functions.

    ``x = a if t else None`` becomes an `if` that assigns in each arm: only variables may be None on one path.
    ``x.extend(...)`` of a variable of the function's own becomes ``Extended``, and ``setattr(a.b, "c", x)``
    an assignment to ``a.b.c``.
    """
    elsewhere = declared(statements, ast.Global) | declared(statements, ast.Nonlocal)
    spelling = _Spelling((bound(statements) | parameters) - elsewhere)
    return [spelling.visit(statement) for statement in statements]


class _Spelling(ast.NodeTransformer):
    def __init__(self, own: frozenset[str]) -> None:
        self._own = own

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        value = node.value
        if len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            return node
        if not isinstance(value, ast.IfExp) or not _may_be_none(value):
            return node
        arms = [ast.copy_location(ast.Assign(node.targets, arm), node) for arm in (value.body, value.orelse)]
        then, otherwise = ([self.visit_Assign(arm)] for arm in arms)
        return ast.copy_location(ast.If(value.test, then, otherwise), node)

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            return self._assigned(node, call)
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            return node
        owner = call.func.value
        takes_one = len(call.args) == 1 and not isinstance(call.args[0], ast.Starred) and not call.keywords
        if call.func.attr != "extend" or not takes_one or not isinstance(owner, ast.Name):
            return node
        return ast.copy_location(Extended(call, owner.id), node) if owner.id in self._own else node

    def _assigned(self, node: ast.Expr, call: ast.Call) -> ast.stmt:
        function, args = call.func, call.args
        if not isinstance(function, ast.Name) or function.id != "setattr" or "setattr" in self._own:
            return node
        if (
            len(args) != 3
            or call.keywords
            or path_of(args[0]) is None
            or not isinstance(args[1], ast.Constant)
        ):
            return node
        name = args[1].value
        # A class changes private names that are written out.
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("__") or iskeyword(name):
            return node
        target = ast.copy_location(ast.Attribute(args[0], name, ast.Store()), args[0])
        return ast.copy_location(ast.Assign([target], args[2]), node)


def _may_be_none(value: ast.expr) -> bool:
    if isinstance(value, ast.IfExp):
        return _may_be_none(value.body) or _may_be_none(value.orelse)
    return is_none(value)
