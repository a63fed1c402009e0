"""What the model's Python decided from sizes, as checks of each call.

torch.export follows one path through the code and writes down what it assumed about sizes, as Python
over ``L['argument'].size()[axis]``. A call that breaks an assumption needs another graph.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils import _pytree as pytree

from regraft.errors import CaptureError
from regraft.ir import Dim, Symbol, dims, parse_dim
from regraft.runtime import GuardSpec, TensorSpec

_OPERATORS: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_ARITHMETIC: Mapping[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: dims.floordiv,
    ast.Mod: dims.mod,
}


def leaf_sources(arguments: Mapping[str, Any], leaves: Sequence[Any]) -> dict[str, Any]:
    """How a guard spells each leaf of ``arguments``, such as ``L['batch']['ids']`` -> its spec."""
    paths = [path for path, _ in pytree.tree_flatten_with_path(dict(arguments))[0]]
    return {"L" + "".join(str(key) for key in path): leaf for path, leaf in zip(paths, leaves, strict=True)}


def guard_specs(
    texts: Sequence[str], sources: Mapping[str, Any], symbols: Sequence[Symbol]
) -> tuple[GuardSpec, ...]:
    """The guards that the ranges of ``symbols`` do not imply.

    Raises:
        CaptureError: a guard cannot be expressed over sizes, so no call could be checked.
    """
    reader = _Reader(sources, {s.name: s for s in symbols})
    found: list[GuardSpec] = []
    for text in texts:
        try:
            comparisons = reader.read(ast.parse(text, mode="eval").body)
        except (ValueError, KeyError, SyntaxError) as error:
            raise CaptureError(
                f"the model's code assumes '{text}', which a call cannot be checked for",
                hint="make that size static, or remove what depends on it",
            ) from error
        found += [GuardSpec(str(a), op, str(b)) for a, op, b in comparisons if not _holds(a, op, b)]
    return tuple(dict.fromkeys(found))


def _holds(a: Dim, op: str, b: Dim) -> bool:
    """Whether the comparison is proved for all sizes in range."""
    if op == "==":
        return dims.eq(a, b) is True
    if op == "!=":
        return dims.eq(a, b) is False
    low, high = (a, b) if op in ("<", "<=") else (b, a)
    return dims.le(low + (op in ("<", ">")), high) is True


class _Reader:
    """Reads guards over the leaves' shapes."""

    def __init__(self, sources: Mapping[str, Any], symbols: Mapping[str, Symbol]) -> None:
        self.sources = sources
        self.symbols = symbols

    def read(self, node: ast.expr) -> list[tuple[Dim, str, Dim]]:
        """The comparisons that ``node`` asks to hold together."""
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            return [each for value in node.values for each in self.read(value)]
        if isinstance(node, ast.BoolOp):
            proved = [value for value in node.values if all(_holds(*c) for c in self.read(value))]
            if proved:
                return []
        if not isinstance(node, ast.Compare) or len(node.ops) != 1 or type(node.ops[0]) not in _OPERATORS:
            raise ValueError(ast.unparse(node))
        left, right = self.dim(node.left), self.dim(node.comparators[0])
        return [(left, _OPERATORS[type(node.ops[0])], right)]

    def dim(self, node: ast.expr) -> Dim:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return _ARITHMETIC[type(node.op)](self.dim(node.left), self.dim(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return 0 - self.dim(node.operand)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
            pick = dims.minimum if node.func.id == "min" else dims.maximum
            first, second = (self.dim(arg) for arg in node.args)
            return pick(first, second)
        return self._size(node)

    def _size(self, node: ast.expr) -> Dim:
        """``L[...].size()[axis]``."""
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Constant)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Attribute)
            and node.value.func.attr == "size"
        ):
            spec = self.sources[ast.unparse(node.value.func.value)]
            if isinstance(spec, TensorSpec):
                size = spec.shape[int(str(node.slice.value))]
                return size if isinstance(size, int) else parse_dim(size, self.symbols)
        raise ValueError(ast.unparse(node))
