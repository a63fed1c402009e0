"""The ops of a region in another place, where its sizes have other names or are known.

A symbol has one definition wherever it is known. So ops that are copied to a place from which the original
may be seen, or that run over values of other sizes than the arguments they were made for, name sizes anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from regraft.errors import RewriteError
from regraft.ir.core import Op, Region, Value
from regraft.ir.dims import Dim, Expr, Symbol, as_expr, as_symbol, substitute
from regraft.ir.module import symbols_in, unique_name
from regraft.ir.types import TensorType


def size_names(region: Region) -> set[str]:
    """The names of all sizes in ``region``, in the regions inside it and in those around it."""
    while region.parent is not None and region.parent.parent is not None:
        region = region.parent.parent
    found = {symbol.name for argument in region.args for symbol in symbols_in(argument.type)}
    return found | {symbol.name for symbol in (*region.symbols, *_defined(region))}


def sizes_over(
    region: Region, operands: Sequence[Value], place: Region, taken: set[str] | None = None
) -> dict[Symbol, Dim]:
    """What the symbols of a copy of ``region`` over ``operands`` are, which stands in ``place``.

    Those of its arguments are the sizes of ``operands``. Those that its ops define, at any depth, get names
    that are not ``taken``, to which these are added; by default, that no size around ``place`` has.

    Raises:
        RewriteError: no argument has a symbol of ``region`` for one of its sizes.
    """
    found: dict[Symbol, Dim] = {}
    for argument, operand in zip(region.args, operands, strict=True):
        for size, given in zip(_shape(argument), _shape(operand), strict=True):
            symbol = as_symbol(size)
            if symbol is not None and symbol in region.symbols:
                found.setdefault(symbol, given)
    missing = [symbol.name for symbol in region.symbols if symbol not in found]
    if missing:
        raise RewriteError(f"no argument of the region has the size {missing[0]}, so its value is not known")
    defined = dict.fromkeys(_defined(region))
    if defined:
        names = size_names(place) if taken is None else taken
        found |= {each: as_expr(replace(each, name=unique_name(each.name, names))) for each in defined}
    return found


def resize(op: Op, sizes: Mapping[Symbol, Dim]) -> Op:
    """``op``, which is detached, with ``sizes`` in place of symbols; those that it defines get symbols."""
    for each in (op, *(inner for region in op.regions for inner in region.walk())):
        each.symbols = _renamed(each.symbols, sizes)
        each.attrs = {name: resized(value, sizes) for name, value in each.attrs.items()}
        for result in each.results:
            result.type = resized(result.type, sizes)
        for region in each.regions:
            region.symbols = _renamed(region.symbols, sizes)
            for argument in region.args:
                argument.type = resized(argument.type, sizes)
    return op


def resized(value: Any, sizes: Mapping[Symbol, Dim]) -> Any:
    """A type or an attribute with ``sizes`` in place of symbols."""
    if isinstance(value, TensorType):
        return value.with_shape(resized(value.shape, sizes))
    if isinstance(value, Expr):
        return substitute(value, sizes)
    if isinstance(value, tuple):
        return tuple(resized(each, sizes) for each in value)  # pyright: ignore[reportUnknownVariableType]
    return value


def _defined(region: Region) -> Iterator[Symbol]:
    """The symbols that ops in ``region`` define, for what follows them or for their regions."""
    for op in region.walk():
        yield from op.symbols
        for inner in op.regions:
            yield from inner.symbols


def _renamed(symbols: Sequence[Symbol], sizes: Mapping[Symbol, Dim]) -> tuple[Symbol, ...]:
    found = [as_symbol(sizes.get(symbol, as_expr(symbol))) for symbol in symbols]
    assert all(symbol is not None for symbol in found), "a size that an op defines is no symbol"
    return tuple(symbol for symbol in found if symbol is not None)


def _shape(value: Value) -> tuple[Dim, ...]:
    return value.type.shape if isinstance(value.type, TensorType) else ()
