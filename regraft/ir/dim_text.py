"""Dimensions, read from text: ``2*s0 + floordiv(s1, 4) - 1``."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.errors import ShapeError
from regraft.ir.dims import FUNCTIONS, Dim, Expr, Symbol, as_expr
from regraft.ir.lexer import Cursor, tokenize

MAX_DEPTH = 64
"""How deep calls may nest, so that no text exhausts the stack."""
_MAX_DIGITS = 80
_MAX_TOKENS = 1000
_MAX_PRODUCT = 4000
_MAX_SIZE = 1 << 256


def parse_dim(text: str, symbols: Mapping[str, Symbol]) -> Dim:
    """The dimension that ``text`` describes, over the ``symbols`` of that name.

    Raises:
        ParseError: the text is not a dimension.
    """
    cursor = tokenize(text)
    dim = read_dim(cursor, symbols)
    if cursor.token.kind != "end":
        cursor.fail(f"expected the end of the size, found {cursor.token}")
    return dim


def read_dim(cursor: Cursor, symbols: Mapping[str, Symbol], depth: int = 0) -> Dim:
    """Read a dimension: terms joined by ``+`` and ``-``."""
    start = cursor.position
    total = -1 * _term(cursor, symbols, depth) if cursor.accept("-") else _term(cursor, symbols, depth)
    while cursor.at("+") or cursor.at("-"):
        sign = 1 if cursor.take().text == "+" else -1
        total = total + sign * _term(cursor, symbols, depth)
        # Sums are kept sorted, so a long one takes quadratic time.
        if cursor.position - start > _MAX_TOKENS:
            cursor.fail("the size is too long", cursor.tokens[start])
    return total


def _term(cursor: Cursor, symbols: Mapping[str, Symbol], depth: int) -> Dim:
    start = cursor.position
    term = _factor(cursor, symbols, depth)
    while cursor.accept("*"):
        factor = _factor(cursor, symbols, depth)
        if cursor.position - start > _MAX_TOKENS or _length(term) * _length(factor) > _MAX_PRODUCT:
            cursor.fail("the size is too long", cursor.tokens[start])
        term = term * factor
    coefficients = [term] if isinstance(term, int) else [c for _, c in term.terms]
    if any(abs(c) >= _MAX_SIZE for c in coefficients):
        cursor.fail("the size is too large", cursor.tokens[start])
    return term


def _length(dim: Dim) -> int:
    return len(dim.terms) if isinstance(dim, Expr) else 1


def _factor(cursor: Cursor, symbols: Mapping[str, Symbol], depth: int) -> Dim:
    token = cursor.token
    if token.kind == "number":
        return read_int(cursor)
    if token.kind != "name":
        cursor.fail(f"expected a size (a number, a symbol or a call), found {token}")
    cursor.take()
    if cursor.at("("):
        return _call(cursor, token.text, symbols, depth + 1)
    if token.text not in symbols:
        known = f"; known here: {', '.join(list(symbols)[:10])}" if symbols else "; none is known here"
        cursor.fail(f"unknown symbol '{token.text[:40]}'{known}", token)
    return as_expr(symbols[token.text])


def _call(cursor: Cursor, name: str, symbols: Mapping[str, Symbol], depth: int) -> Dim:
    opening = cursor.tokens[cursor.position - 1]
    function = FUNCTIONS.get(name)
    if function is None:
        cursor.fail(f"unknown function '{name[:40]}'; there are {', '.join(FUNCTIONS)}", opening)
    if depth > MAX_DEPTH:
        cursor.fail(f"sizes nest deeper than {MAX_DEPTH}", opening)
    cursor.expect("(")
    left = read_dim(cursor, symbols, depth)
    cursor.expect(",", "between the two arguments")
    right = read_dim(cursor, symbols, depth)
    cursor.expect(")", "after the two arguments")
    try:
        return function(left, right)
    except ShapeError as error:
        cursor.fail(str(error), opening)


def read_int(cursor: Cursor) -> int:
    """Read a natural number."""
    token = cursor.expect_kind("number", "a whole number")
    if not token.text.isdigit():
        cursor.fail(f"expected a whole number, found {token}", token)
    if len(token.text) > _MAX_DIGITS:
        cursor.fail("the number has too many digits", token)
    return int(token.text)
