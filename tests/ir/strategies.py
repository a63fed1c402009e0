"""Random dimensions, with what they evaluate to in Python; random attributes."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from hypothesis import strategies as st

from regraft.errors import ShapeError
from regraft.ir import Dim, DType, Symbol, dims

SYMBOLS = (Symbol("s0"), Symbol("s1", 1, 16), Symbol("s2", 8, 64, 8), Symbol("u0", -3, 5), Symbol("u1", 2, 2))
BY_NAME = {s.name: s for s in SYMBOLS}

Tree: TypeAlias = "int | Symbol | tuple[str, Tree, Tree]"
Sizes: TypeAlias = Mapping[Symbol, int]

_BUILD: Mapping[str, Callable[[Dim, Dim], Dim]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    **dims.FUNCTIONS,
}
_PYTHON: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "min": min,
    "max": max,
    "ceildiv": lambda a, b: -(-a // b),
}


@dataclass(frozen=True)
class Undefined(Exception):
    """A division by zero, or one that ``ceildiv`` does not promise."""


def build(tree: Tree) -> Dim:
    """The dimension that ``tree`` spells.

    Raises:
        Undefined: it divides by the constant 0.
    """
    if isinstance(tree, Symbol):
        return dims.as_expr(tree)
    if isinstance(tree, int):
        return tree
    fn, left, right = tree
    try:
        return _BUILD[fn](build(left), build(right))
    except ShapeError as error:
        raise Undefined from error


def value(tree: Tree, sizes: Sizes) -> int:
    """What Python makes of ``tree``.

    Raises:
        Undefined: it divides by zero, or rounds up a quotient by a negative number.
    """
    if isinstance(tree, Symbol):
        return sizes[tree]
    if isinstance(tree, int):
        return tree
    fn, left, right = tree
    a, b = value(left, sizes), value(right, sizes)
    if fn in ("floordiv", "mod", "ceildiv") and (b == 0 or (fn == "ceildiv" and b < 0)):
        raise Undefined
    return _PYTHON[fn](a, b)


def trees(max_leaves: int = 8) -> st.SearchStrategy[Tree]:
    leaf = st.one_of(st.integers(-6, 6), st.sampled_from(SYMBOLS))
    functions = st.sampled_from(sorted(_PYTHON))
    return st.recursive(leaf, lambda inner: st.tuples(functions, inner, inner), max_leaves=max_leaves)


@st.composite
def sizes(draw: Any) -> Sizes:
    """A value for each symbol, within its range and a multiple of its divisor."""
    found: dict[Symbol, int] = {}
    for symbol in SYMBOLS:
        low = -(-symbol.lo // symbol.divisor)
        high = (40 if symbol.hi is None else symbol.hi) // symbol.divisor
        found[symbol] = symbol.divisor * draw(st.integers(low, high))
    return found


def _float_of(bits: int) -> float:
    return struct.unpack("<d", bits.to_bytes(8, "little"))[0]


FLOATS = st.one_of(st.floats(), st.integers(0, 2**64 - 1).map(_float_of))


def attrs(max_leaves: int = 6) -> st.SearchStrategy[Any]:
    """Any attribute but a constant; sizes are over ``SYMBOLS``."""
    leaf = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**200), 2**200),
        FLOATS,
        st.builds(complex, FLOATS, FLOATS),
        st.text(),
        st.text(st.characters()),
        st.sampled_from(DType),
        st.tuples(st.sampled_from("+-*"), st.sampled_from(SYMBOLS), st.sampled_from(SYMBOLS)).map(build),
    )
    return st.recursive(leaf, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=max_leaves)
