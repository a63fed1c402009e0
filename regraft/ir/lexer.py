"""The text form as tokens, and the cursor that parsers read them with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, NoReturn

from regraft.errors import ParseError

Kind = Literal["name", "value", "at", "string", "number", "punctuation", "end"]

# Each alternative begins with a character that no other takes, so that matching never goes back far.
_TOKEN = re.compile(
    r"""(?P<space>(?:[ \t\r\n]+|//[^\n]*)+)
    |(?P<name>[A-Za-z_][A-Za-z0-9_.$]*)
    |(?P<value>%[A-Za-z0-9_][A-Za-z0-9_.$]*)
    |(?P<at>@(?:[A-Za-z_][A-Za-z0-9_.$]*|"(?:[^"\\\n]|\\.)*"))
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    |(?P<punctuation>->|[(){}\[\],:=+\-*%^?])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-f]{1,6})\}|(.)|)", re.DOTALL)
_SIMPLE_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}


class Token(NamedTuple):
    kind: Kind
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    def __str__(self) -> str:
        if self.kind == "end":
            return "the end of the text"
        return f"'{self.text}'" if len(self.text) <= 40 else f"'{self.text[:40]}...'"


@dataclass
class Cursor:
    """The tokens of a text, and how far they have been read. The last token is always ``end``."""

    text: str
    tokens: list[Token]
    position: int = 0

    @property
    def token(self) -> Token:
        """The next token, not yet taken."""
        return self.tokens[self.position]

    @property
    def following(self) -> Token:
        """The token after the next."""
        return self.tokens[min(self.position + 1, len(self.tokens) - 1)]

    def take(self) -> Token:
        token = self.tokens[self.position]
        if token.kind != "end":
            self.position += 1
        return token

    def at(self, text: str) -> bool:
        """Whether the next token is this name or punctuation."""
        token = self.tokens[self.position]
        return token.text == text and token.kind in ("punctuation", "name")

    def accept(self, text: str) -> bool:
        found = self.at(text)
        if found:
            self.position += 1
        return found

    def expect(self, text: str, why: str = "") -> Token:
        """Take the name or punctuation ``text``.

        Raises:
            ParseError: something else is next; ``why`` is added to the message.
        """
        if not self.at(text):
            self.fail(f"expected '{text}'{f' {why}' if why else ''}, found {self.token}")
        return self.take()

    def expect_kind(self, kind: Kind, what: str) -> Token:
        """Take a token of ``kind``, which the message calls ``what``.

        Raises:
            ParseError: something else is next.
        """
        if self.token.kind != kind:
            self.fail(f"expected {what}, found {self.token}")
        return self.take()

    def fail(self, message: str, token: Token | None = None) -> NoReturn:
        """Refuse the text at ``token`` (the next one unless given).

        Raises:
            ParseError: always.
        """
        raise parse_error(self.text, (token or self.token).start, message)


def parse_error(text: str, offset: int, message: str) -> ParseError:
    """The error at ``offset``, with its line, its column and the line's text."""
    start = text.rfind("\n", 0, offset) + 1
    end = text.find("\n", offset)
    line = text[start : len(text) if end < 0 else end].removesuffix("\r")
    return ParseError(message, text.count("\n", 0, offset) + 1, offset - start + 1, line)


def tokenize(text: str) -> Cursor:
    """The tokens of ``text``.

    Raises:
        ParseError: a character starts no token, or a string is not closed on its line.
    """
    tokens: list[Token] = []
    offset = 0
    while offset < len(text):
        match = _TOKEN.match(text, offset)
        if match is None:
            message = f"unexpected character {text[offset]!r}"
            if text[offset] == '"' or text.startswith('@"', offset):
                message = "the string is not closed on its line"
            raise parse_error(text, offset, message)
        if match.lastgroup != "space":
            tokens.append(Token(match.lastgroup, match.group(), offset))  # type: ignore[arg-type]
        offset = match.end()
    tokens.append(Token("end", "", len(text)))
    return Cursor(text, tokens)


def unquote(cursor: Cursor, token: Token) -> str:
    """The string that a literal (behind ``@`` or not) stands for.

    Raises:
        ParseError: an escape is unknown.
    """
    literal = token.text.removeprefix("@")

    def replace(match: re.Match[str]) -> str:
        code, simple = match.groups()
        if code is not None and int(code, 16) <= 0x10FFFF:
            return chr(int(code, 16))
        if simple not in _SIMPLE_ESCAPES:
            raise parse_error(cursor.text, token.start, f"unknown escape '{match.group()}' in a string")
        return _SIMPLE_ESCAPES[simple]

    return _ESCAPE.sub(replace, literal[1:-1])


def name_of(cursor: Cursor, token: Token) -> str:
    """The name behind ``@``, quoted or not."""
    return unquote(cursor, token) if token.text.startswith('@"') else token.text[1:]
