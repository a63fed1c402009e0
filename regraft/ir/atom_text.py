"""Types, attributes, symbols and locations, read from text."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from regraft.ir.core import Location
from regraft.ir.dim_text import MAX_DEPTH, read_dim, read_int
from regraft.ir.dims import Dim, Symbol
from regraft.ir.dtypes import DType
from regraft.ir.lexer import Cursor, Token, name_of, unquote
from regraft.ir.opdef import Attr, Constant
from regraft.ir.types import TensorType, TokenType, Type

_DTYPES = {dtype.value: dtype for dtype in DType}
_WORDS: Mapping[str, Attr] = {"none": None, "true": True, "false": False}

T = TypeVar("T")


def read_list(cursor: Cursor, closing: str, item: Callable[[], T]) -> list[T]:
    """Read items with commas between them, up to and with ``closing``.

    Raises:
        ParseError: an item is malformed, or neither a comma nor ``closing`` follows it.
    """
    items: list[T] = []
    if cursor.accept(closing):
        return items
    while True:
        items.append(item())
        if cursor.accept(closing):
            return items
        if not cursor.at(","):
            cursor.fail(f"expected ',' or '{closing}', found {cursor.token}")
        cursor.take()


@dataclass
class Atoms:
    """Reads the small parts of a text, in the light of the names known so far."""

    cursor: Cursor
    constants: dict[str, Constant] = field(default_factory=dict[str, Constant])

    # -- types and sizes -----------------------------------------------------------------------

    def type(self, symbols: Mapping[str, Symbol]) -> Type:
        cursor = self.cursor
        token = cursor.expect_kind("name", "a type such as f32[2, s0]")
        if token.text == "token":
            return TokenType()
        if token.text not in _DTYPES:
            cursor.fail(f"unknown type '{token.text[:40]}'; there are token, {', '.join(_DTYPES)}", token)
        cursor.expect("[", "before the sizes")
        shape = read_list(cursor, "]", lambda: read_dim(cursor, symbols))
        return TensorType(_DTYPES[token.text], tuple(shape), self._device())

    def _device(self) -> str:
        cursor = self.cursor
        if cursor.token.kind != "at":
            return "cpu"
        token = cursor.take()
        device = name_of(cursor, token)
        colon, number = cursor.token, cursor.following
        # An index belongs to the device only without a space: `f32[2]@cuda:0`.
        if colon.text == ":" and colon.start == token.end and number.start == colon.end:
            cursor.take()
            device = f"{device}:{read_int(cursor)}"
        return device

    def symbols(self, known: Mapping[str, Symbol]) -> list[Symbol]:
        """Declarations such as ``s0 in [2, 512] % 8, s1 in [0, inf]``."""
        found: dict[str, Symbol] = {}
        while True:
            token = self.cursor.token
            symbol = self._symbol()
            if symbol.name in found or symbol.name in known:
                self.cursor.fail(f"the symbol '{symbol.name}' is defined already", token)
            found[symbol.name] = symbol
            if not self.cursor.accept(","):
                return list(found.values())

    def _symbol(self) -> Symbol:
        cursor = self.cursor
        name = cursor.expect_kind("name", "the name of a symbol")
        cursor.expect("in", "and the range of the symbol")
        cursor.expect("[")
        low = self._signed()
        cursor.expect(",")
        high = None if cursor.accept("inf") else self._signed()
        cursor.expect("]")
        divisor = read_int(cursor) if cursor.accept("%") else 1
        return Symbol(name.text, low, high, divisor)

    def _signed(self) -> int:
        return -read_int(self.cursor) if self.cursor.accept("-") else read_int(self.cursor)

    # -- attributes ----------------------------------------------------------------------------

    def attr(self, symbols: Mapping[str, Symbol], depth: int = 0) -> Attr:
        """The value of an attribute."""
        cursor, token = self.cursor, self.cursor.token
        if token.kind == "string":
            return unquote(cursor, cursor.take())
        if token.kind == "at":
            return self.constant(cursor.take())
        if cursor.at("("):
            return self._tuple(symbols, depth + 1)
        if token.kind == "name" and token.text in _WORDS:
            cursor.take()
            return _WORDS[token.text]
        if token.kind == "name" and token.text in _DTYPES:
            cursor.take()
            return _DTYPES[token.text]
        if cursor.accept("complex"):
            cursor.expect("(")
            real = self._float()
            cursor.expect(",")
            imaginary = self._float()
            cursor.expect(")")
            return complex(real, imaginary)
        return self._number(symbols)

    def constant(self, token: Token) -> Constant:
        name = name_of(self.cursor, token)
        if name not in self.constants:
            self.cursor.fail(f"unknown constant '@{name[:40]}'; declare it above as a leaf or recipe", token)
        return self.constants[name]

    def _tuple(self, symbols: Mapping[str, Symbol], depth: int) -> Attr:
        cursor, opening = self.cursor, self.cursor.take()
        if depth > MAX_DEPTH:
            cursor.fail(f"tuples nest deeper than {MAX_DEPTH}", opening)
        items: list[Attr] = []
        while not cursor.accept(")"):
            items.append(self.attr(symbols, depth))
            if cursor.at(")") and len(items) > 1:
                continue
            # A tuple of one keeps its comma, as in Python.
            cursor.expect(",", "(a tuple of one is written (x,))" if len(items) == 1 else "or ')'")
        return tuple(items)

    def _number(self, symbols: Mapping[str, Symbol]) -> Dim | float:
        token = self.cursor.following if self.cursor.at("-") else self.cursor.token
        if _is_float(token):
            return self._float()
        if token.kind not in ("name", "number"):
            self.cursor.fail(f"expected the value of an attribute, found {token}", token)
        return read_dim(self.cursor, symbols)

    def _float(self) -> float:
        cursor = self.cursor
        sign = -1.0 if cursor.accept("-") else 1.0
        token = cursor.token
        if not _is_float(token):
            cursor.fail(f"expected a floating-point number such as 1.0, found {token}")
        cursor.take()
        if token.text == "nan" and cursor.accept("("):
            return self._nan()
        return sign * float(token.text)

    def _nan(self) -> float:
        """A ``nan`` with its bits: ``nan("7ff8000000000001")``."""
        cursor = self.cursor
        token = cursor.expect_kind("string", "the bits of the nan in quotes")
        cursor.expect(")")
        digits = unquote(cursor, token)
        try:
            (value,) = struct.unpack(">d", bytes.fromhex(digits))
        except (ValueError, struct.error):
            cursor.fail("expected 16 hexadecimal digits", token)
        return value

    # -- locations -----------------------------------------------------------------------------

    def location(self) -> Location:
        """What stands in ``loc(...)``; the word itself has been read."""
        cursor = self.cursor
        cursor.expect("(")
        file, line, module = "", 0, ""
        made_by: list[str] = []
        if cursor.token.kind == "string":
            file = unquote(cursor, cursor.take())
            cursor.expect(":", "and the line")
            line = read_int(cursor)
        if cursor.accept("in"):
            module = unquote(cursor, cursor.expect_kind("string", "a module's path in quotes"))
        if cursor.accept("by"):
            made_by.append(self._maker())
            while cursor.accept(","):
                made_by.append(self._maker())
        cursor.expect(")")
        return Location(file, line, module, tuple(made_by))

    def _maker(self) -> str:
        if self.cursor.token.kind == "string":
            return unquote(self.cursor, self.cursor.take())
        return self.cursor.expect_kind("name", "the name of a rewrite").text


def _is_float(token: Token) -> bool:
    if token.kind == "number":
        return not token.text.isdigit()
    return token.kind == "name" and token.text in ("inf", "nan")
