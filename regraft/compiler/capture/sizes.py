"""Symbols and dims of an exported program."""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from regraft.errors import CaptureError
from regraft.ir import Dim, DType, Symbol, TensorType, Type, dims, from_sympy
from regraft.runtime import DTYPE_NAMES, SymbolSpec


class Sizes:
    """Turns torch's SymInts into dims, with symbols named in order of appearance.

    Sizes of inputs are ``s0, s1, ...``, sizes that values decide ``len0, len1, ...``.
    """

    def __init__(self, program: ExportedProgram, relaxed: frozenset[str] = frozenset()) -> None:
        """``relaxed`` names the symbols that may be 1 although torch.export assumed more."""
        self._ranges = program.range_constraints
        self._relaxed = relaxed
        self._symbols: dict[str, Symbol] = {}
        self._fresh: list[Symbol] = []
        #: What symbols of values' own sizes are, where these values are sizes themselves.
        self._settled: dict[Symbol, Dim] = {}
        #: The greatest length of a result that depends on values, while it is known.
        self.longest: int | None = None

    def take_fresh(self) -> tuple[Symbol, ...]:
        """The symbols of values' own sizes that came up since the last call: an op defines them."""
        fresh, self._fresh = tuple(self._fresh), []
        return fresh

    def settle(self, size: int | torch.SymInt, dim: Dim) -> bool:
        """Let ``size``, a symbol that did not come up before, be ``dim``; whether it is such a one."""
        known = len(self._symbols)
        symbol = dims.as_symbol(self.dim(size))
        if symbol is None or symbol not in self._fresh or len(self._symbols) != known + 1:
            return False
        self._fresh.remove(symbol)
        self._settled[symbol] = dim
        return True

    def new_symbol(self) -> Symbol:
        """A symbol for a size that torch has no symbol for."""
        count = sum(not known.startswith("s") for known in self._symbols)
        return self._symbols.setdefault(f"joined{count}", Symbol(f"len{count}", 0, self.longest))

    def dim(self, size: int | torch.SymInt) -> Dim:
        """The dim of a size.

        Raises:
            CaptureError: the size uses an operator that dims do not have.
        """
        return size if isinstance(size, int) else self.from_expression(size.node.expr)

    def from_expression(self, expression: Any) -> Dim:
        """The dim of a sympy expression of torch's symbols; raises as ``dim`` does."""
        if expression.is_Integer:
            return int(expression)
        for symbol in sorted(expression.free_symbols, key=str):
            self._register(symbol)
        try:
            return dims.substitute(from_sympy(expression, self._symbols), self._settled)
        except ValueError as error:
            raise CaptureError(f"the size {expression} cannot be expressed: {error}") from error

    def _register(self, symbol: Any) -> None:
        name = str(symbol)
        if name in self._symbols:
            return
        if not name.startswith("s"):
            # Not torch's own name: u8 would read as a dtype.
            count = sum(not known.startswith("s") for known in self._symbols)
            self._symbols[name] = Symbol(f"len{count}", 0, self.longest)
            self._fresh.append(self._symbols[name])
            return
        bounds = self._ranges.get(symbol)
        low, high = (0, None) if bounds is None else (_bound(bounds.lower), _bound(bounds.upper))
        own = f"s{sum(s.name.startswith('s') for s in self._symbols.values())}"
        self._symbols[name] = Symbol(own, 1 if own in self._relaxed else low or 0, high)

    def tensor_type(self, tensor: torch.Tensor) -> TensorType:
        """The IR type of a real or fake tensor.

        Raises:
            CaptureError: it is sparse, quantized or of a dtype without a name here.
        """
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPE_NAMES:
            raise CaptureError(
                f"tensors of dtype {tensor.dtype} and layout {tensor.layout} are not supported"
            )
        shape = tuple(self.dim(d) for d in tensor.shape)
        return TensorType(DType(DTYPE_NAMES[tensor.dtype]), shape, tensor.device.type)

    def input_symbols(self, inputs: Sequence[Type]) -> tuple[tuple[Symbol, ...], tuple[SymbolSpec, ...]]:
        """The symbols, and for each the input axis from which a call's value is solved.

        Raises:
            CaptureError: a symbol appears only in expressions that cannot be solved for it.
        """
        symbols = tuple(s for name, s in self._symbols.items() if name.startswith("s"))
        sites = [
            (i, axis, dim)
            for i, type in enumerate(inputs)
            if isinstance(type, TensorType)
            for axis, dim in enumerate(type.shape)
        ]
        return symbols, tuple(_spec(symbol, sites) for symbol in symbols)


def _spec(symbol: Symbol, sites: Sequence[tuple[int, int, Dim]]) -> SymbolSpec:
    found: list[tuple[int, SymbolSpec]] = []
    for index, axis, dim in sites:
        line = linear_in(dim, symbol)
        if line is not None:
            scale, offset = line
            spec = SymbolSpec(
                symbol.name, index, axis, symbol.lo, symbol.hi, symbol.divisor, scale=scale, offset=offset
            )
            found.append((abs(scale) + (offset != 0), spec))
    if not found:
        raise CaptureError(
            f"the size {symbol.name} cannot be computed from the shapes of the arguments",
            hint="let torch find what sizes must be: Dim.AUTO in dynamic_shapes in place of a Dim by name",
        )
    return min(found, key=lambda each: each[0])[1]


def linear_in(dim: Dim, symbol: Symbol) -> tuple[int, int] | None:
    """``(scale, offset)`` when ``dim`` is ``scale * symbol + offset``, else None."""
    if isinstance(dim, int) or set(dims.symbols_of(dim)) != {symbol}:
        return None
    offset = dims.substitute(dim, {symbol: 0})
    at_one = dims.substitute(dim, {symbol: 1})
    if not isinstance(offset, int) or not isinstance(at_one, int):
        return None
    scale = at_one - offset
    line = dims.as_expr(symbol) * scale + offset
    return (scale, offset) if scale and line == dim else None


def _bound(value: Any) -> int | None:
    return int(value) if value.is_Integer else None
