"""The text of messages in which values stand that only a call knows: the source stands in their place."""

from __future__ import annotations

import ast
import copy
import re
from typing import Any, TypeVar, cast

from regraft.compiler.capture.control.tree import located

#: A directive of ``%``, but for the letter that says what it takes.
_DIRECTIVE = re.compile(r"%(\([^)]*\))?[-#0 +]*(\d+|\*)?(\.(\d+|\*))?[a-zA-Z]")


class Words:
    """Stands in a message for a value that is not known; ``source`` is how the code has it."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __str__(self) -> str:
        return f"<{self.source}>"

    __repr__ = __str__

    def __format__(self, form: str) -> str:
        return str(self)


def filled(form: str, values: Any) -> str:
    """``form % values``; what is not known fits every directive."""
    parts = cast("tuple[Any, ...]", values) if isinstance(values, tuple) else (values,)
    if any(isinstance(each, Words) for each in parts):
        form = _DIRECTIVE.sub(lambda found: f"%{found.group(1) or ''}s", form)
    return form % values


_Node = TypeVar("_Node", ast.stmt, ast.expr)


def worded(node: _Node, call: Any) -> _Node:
    """A copy of ``node`` in which calls, named by ``call``, see what goes into texts."""
    return _Worded(call).visit(copy.deepcopy(node))


class _Worded(ast.NodeTransformer):
    """Lets ``text`` and ``filled`` of the calls, named by ``call``, see what goes into texts."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def _text(self, node: ast.expr) -> ast.expr:
        return located(self._call("text", node, ast.Constant(ast.unparse(node))), node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        node.value = self._text(node.value)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        if not isinstance(node.op, ast.Mod) or not _is_text(node.left):
            return self.generic_visit(node)
        if isinstance(node.right, ast.Tuple):
            node.right.elts = [self._text(each) for each in node.right.elts]
        else:
            node.right = self._text(node.right)
        return located(self._call("filled", node.left, node.right), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        if isinstance(function, ast.Attribute):
            takes_text = function.attr == "format" and _is_text(function.value)
        else:
            takes_text = isinstance(function, ast.Name) and function.id in ("str", "repr")
        if not takes_text:
            return self.generic_visit(node)
        node.args = [self._text(each) for each in node.args]
        for each in node.keywords:
            each.value = self._text(each.value)
        return node


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
