"""Converted code in the place of the original for the time of a trace.

A function keeps everything but its ``__code__``: bound methods, decorators and closures need nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType

#: Codes that have no source of their own.
_PARTS = frozenset(["<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"])


@contextmanager
def swapped(codes: Mapping[CodeType, CodeType]) -> Generator[None]:
    """Functions whose code is among ``codes`` have the code that is given for it, in the block."""
    functions = [f for f in _functions() if f.__code__ in codes] if codes else []
    originals = [function.__code__ for function in functions]
    try:
        for function, code in zip(functions, originals, strict=True):
            function.__code__ = codes[code]
        yield
    finally:
        for function, code in zip(functions, originals, strict=True):
            function.__code__ = code


def owners(code: CodeType) -> Sequence[CodeType]:
    """The codes of living functions that ``code`` belongs to: its own, or that of the function around it."""
    same_file = {f.__code__ for f in _functions() if f.__code__.co_filename == code.co_filename}
    found = {each for each in same_file if each.co_name not in _PARTS}
    if code in found:
        return [code]
    return [each for each in found if code in nested(each)]


def around(code: CodeType) -> Sequence[CodeType]:
    """The codes of living functions that define ``code`` in them: each of their calls makes it anew."""
    same_file = {f.__code__ for f in _functions() if f.__code__.co_filename == code.co_filename}
    named = (each for each in same_file if each.co_name not in _PARTS and each is not code)
    return [each for each in named if code in nested(each)]


def nested(code: CodeType) -> Iterator[CodeType]:
    """``code`` and the codes of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested(constant)


def _functions() -> Iterator[FunctionType]:
    # Some libraries' objects answer isinstance() with a deprecation.
    return (each for each in gc.get_objects() if type(each) is FunctionType)
