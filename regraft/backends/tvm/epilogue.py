"""What may follow a product in its kernel: elementwise ops over rows, columns and results of its shape."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from regraft.backends.tvm.lower.elementwise import calls_library
from regraft.backends.tvm.lower.kinds import is_elementwise
from regraft.backends.tvm.problems import last_bias
from regraft.ir import Dim, DType, Op, Value, dims, symbols_in

Axes = tuple[Literal["batch", "rows", "columns", "depth"], ...]


#: What templates store, and read besides their matrices.
TYPES = frozenset({DType.F32, DType.BF16})


def can_follow(product: Op, inlined: Collection[Op], root: Op) -> bool:
    """Whether ``inlined``, with ``root`` the last of them, can be computed from the sums of ``product``."""
    shape = root.result.tensor.shape
    if root.result.tensor.dtype not in TYPES:
        return False
    for op in inlined:
        if not (is_number(op) or _is_step(op)):
            return False
        outer = _outer(op, (product,), inlined)
        if any(v.tensor.dtype not in TYPES or _axes(v, shape) is None for v in outer):
            return False
    return True


def is_number(op: Op) -> bool:
    """Whether each element of ``op`` is one number that is known here: it has no place, and no size in it."""
    return op.name == "aten.full" and not _has_sizes(op.attr("fill_value"))


def _is_step(op: Op) -> bool:
    """Whether ``op`` can be a part of an epilogue: a template's kernel knows no sizes but its own."""
    has_sizes = any(map(_has_sizes, op.attrs.values()))
    is_short = op.name not in _LONG and not calls_library(op)
    return is_elementwise(op) and not has_sizes and is_short


#: Functions that templates, which settle nothing (``Kernel.settle``), would write out wherever their parts
#: are used: TVM would take a quarter of a minute for one.
_LONG = ("aten.log1p", "aten.softplus")


def _has_sizes(attr: object) -> bool:
    return next(symbols_in(attr), None) is not None


def leaves(products: Sequence[Op], inlined: Collection[Op]) -> tuple[Value, ...]:
    """The values that the epilogue reads, each once; first of all the products' biases."""
    biases = [bias for op in products if (bias := last_bias(op)) is not None]
    read = (v for op in inlined if op not in products for v in _outer(op, products, inlined))
    return tuple(dict.fromkeys((*biases, *read)))


def axes_of_leaf(value: Value, root: Op) -> Axes:
    """Along which axes of the result ``value`` has elements."""
    axes = _axes(value, root.result.tensor.shape)
    assert axes is not None, "checked when the cluster was formed"
    return axes


def _outer(op: Op, products: Collection[Op], inlined: Collection[Op]) -> Sequence[Value]:
    return [v for v in op.operands if v.op not in products and v.op not in inlined]


def _axes(value: Value, shape: Sequence[Dim]) -> Axes | None:
    """None where the value is broadcast along some of the leading axes only."""
    own = value.tensor.shape
    if dims.eq(value.tensor.numel, 1) is True:
        return ()
    if _equal(own[-1:], shape[-1:]) and dims.eq(dims.product(own[:-1]), 1) is True:
        return ("columns",)
    if len(own) != len(shape) or not _equal(own[:-1], shape[:-1]):
        return None
    if _equal(own[-1:], shape[-1:]):
        return ("rows", "columns")
    return ("rows",) if dims.eq(own[-1], 1) is True else None


def _equal(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    return len(a) == len(b) and all(dims.eq(x, y) is True for x, y in zip(a, b, strict=True))
