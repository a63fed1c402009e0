"""Converted code in the place of the original for the time of a trace.

A function keeps everything but its ``__code__``: bound methods, decorators and closures need nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType

#: Codes that have no source of their own.
_PARTS = frozenset(["<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"])


@contextmanager
def swapped(codes: Collection[tuple[CodeType, CodeType]]) -> Generator[None]:
    """Functions whose code is the first of a pair of ``codes`` have the second one, in the block."""
    made = {id(original): code for original, code in codes}
    functions = functions_of(*(original for original, _ in codes)) if codes else []
    originals = [function.__code__ for function in functions]
    try:
        for function, code in zip(functions, originals, strict=True):
            function.__code__ = made[id(code)]
        yield
    finally:
        for function, code in zip(functions, originals, strict=True):
            function.__code__ = code


def owners(code: CodeType) -> Sequence[CodeType]:
    """The codes of living functions that ``code`` belongs to: its own, or that of the function around it."""
    if code.co_name not in _PARTS and functions_of(code):
        return [code]
    return [each for each in _codes_in(code.co_filename) if code in nested(each)]


def around(code: CodeType) -> Sequence[CodeType]:
    """The codes of living functions that define ``code`` in them: each of their calls makes it anew."""
    return [each for each in _codes_in(code.co_filename) if each is not code and code in nested(each)]


def _codes_in(file: str) -> list[CodeType]:
    """The codes of the living functions of ``file``, equal ones too: which of them runs is not known."""
    found = {id(f.__code__): f.__code__ for f in _functions() if f.__code__.co_filename == file}
    return [each for each in found.values() if each.co_name not in _PARTS]


def nested(code: CodeType) -> Iterator[CodeType]:
    """``code`` and the codes of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested(constant)


def functions_of(*codes: CodeType) -> list[FunctionType]:
    """The living functions that run one of these very ``codes``, not one that is equal.

    To have Python's collector look for them takes a quarter of looking at all functions.
    """
    referring = (each for each in gc.get_referrers(*codes) if type(each) is FunctionType)
    return [function for function in referring if any(function.__code__ is code for code in codes)]


def _functions() -> Iterator[FunctionType]:
    # Some libraries' objects answer isinstance() with a deprecation.
    return (each for each in gc.get_objects() if type(each) is FunctionType)
