"""Sizes at run time. The compiler hands them over as text; here they become functions.

Symbol names and a closed set of operators are all that is accepted, since the text may come from a
file: it is parsed, checked node by node, and only then compiled.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

from regraft.errors import ArtefactError

Size = Callable[[Mapping[str, int]], int]

_FUNCTIONS = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "min": min,
    "max": max,
}
_MAX_TEXT = 10_000


def compile_dim(text: str | int) -> Size:
    """A function from symbol values to the size that ``text`` describes, such as ``2*s0 + 1``.

    Raises:
        ArtefactError: the text is not a size expression.
    """
    if isinstance(text, int):
        return lambda sizes: text
    if text.isidentifier():
        return lambda sizes: sizes[text]
    try:
        if len(text) > _MAX_TEXT:
            raise ValueError("too long")
        tree = ast.parse(text, mode="eval")
        _check(tree.body)
        code = compile(tree, "<size>", "eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ArtefactError(f"'{text[:80]}' is not a size expression") from error
    return lambda sizes: eval(code, {"__builtins__": {}, **_FUNCTIONS}, dict(sizes))


def _check(node: ast.expr) -> None:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return
    if isinstance(node, ast.Name):
        return
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult)):
        _check(node.left)
        _check(node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check(node.operand)
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _FUNCTIONS
        and len(node.args) == 2
        and not node.keywords
    ):
        for arg in node.args:
            _check(arg)
    else:
        raise ValueError(ast.dump(node))
