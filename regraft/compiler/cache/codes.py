"""Code objects as text, and the names that they use."""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any


@dataclass(frozen=True)
class Names:
    """The names in a function, those of the functions inside it included.

    Fields:
        globals: what it looks up among globals and built-ins; None when only ``all`` was asked for.
        imports: modules that it imports when it runs.
        all: these, attributes, and strings that could name an attribute.
    """

    globals: frozenset[str] | None
    imports: frozenset[str]
    all: frozenset[str]


def digest(code: CodeType) -> str:
    """A hash of everything in ``code``, its place in its file included, as locations in graphs have it."""
    return hashlib.sha256("\n".join(_lines(code)).encode("utf-8", "surrogatepass")).hexdigest()


def _lines(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield code.co_exceptiontable.hex()
    yield code.co_linetable.hex()
    yield repr(
        (
            code.co_name,
            code.co_qualname,
            code.co_filename,
            code.co_firstlineno,
            code.co_argcount,
            code.co_posonlyargcount,
            code.co_kwonlyargcount,
            code.co_flags,
            code.co_names,
            code.co_varnames,
            code.co_freevars,
            code.co_cellvars,
        )
    )
    for constant in code.co_consts:
        yield from _constant(constant)


def _constant(value: Any) -> Iterator[str]:
    if isinstance(value, CodeType):
        yield from _lines(value)
    elif isinstance(value, frozenset):  # printed in the order of the process's own hash seed
        yield f"frozenset {sorted(repr(v) for v in value)}"  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    elif isinstance(value, tuple):
        yield f"tuple {len(value)}"  # pyright: ignore[reportUnknownArgumentType]
        for each in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _constant(each)
    else:
        yield f"{type(value).__name__} {value!r}"


def names_of(code: CodeType, *, exact: bool) -> Names:
    """The names in ``code``; ``exact`` tells globals and imports from attributes, which takes longer."""
    every: set[str] = set()
    found: set[str] = set()
    imports: set[str] = set()
    for each in _nested(code):
        every.update(each.co_names)
        every.update(each.co_varnames)
        every.update(part for text in _strings(each.co_consts) for part in _identifiers(text))
        if exact:
            for instruction in dis.get_instructions(each):
                if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                    found.add(str(instruction.argval))
                elif instruction.opname == "IMPORT_NAME":
                    imports.add(str(instruction.argval))
    return Names(frozenset(found) if exact else None, frozenset(imports), frozenset(every))


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _strings(constants: tuple[Any, ...]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple):
            yield from _strings(constant)  # pyright: ignore[reportUnknownArgumentType]


def _identifiers(text: str) -> Iterator[str]:
    """The attributes that ``text`` could name: itself, or the parts of a dotted path."""
    if len(text) <= 200:
        yield from (part for part in text.split(".") if part.isidentifier())
