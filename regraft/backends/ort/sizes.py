"""Sizes as ONNX values: each symbol and each expression of symbols is computed once a scope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir

from regraft.backends.ort.graph import GraphBuilder, SizeSource
from regraft.errors import BackendError
from regraft.ir import Dim, DType, Expr, Symbol, TensorType, Type
from regraft.ir import dims as algebra

Shape = tuple[Dim, ...]

#: The end of a slice that runs to the end of its axis.
TO_END = np.iinfo(np.int64).max


class SizeBuilder(GraphBuilder):
    """A graph builder that can compute sizes. A size is an ``i64[1]``, ready to be concatenated."""

    def __init__(self, size_names: Mapping[str, str], *, allow_size_inputs: bool) -> None:
        super().__init__(size_names)
        self.allow_size_inputs = allow_size_inputs
        self.size_inputs: dict[str, str] = {}
        self._reshaped: dict[ir.Value, tuple[ir.Value, Shape]] = {}

    # -- symbols -------------------------------------------------------------------------------

    def define_symbols(self, value: ir.Value, type: Type, only: Sequence[Symbol] | None = None) -> None:
        """Let the symbols in the shape of ``value`` be read from it, unless a better source is known."""
        if not isinstance(type, TensorType):
            return
        for axis, dim in enumerate(type.shape):
            found = _affine(dim)
            if found is None or (only is not None and found[0] not in only):
                continue
            symbol, scale, offset = found
            known = self.scope.symbols.get(symbol)
            if known is None or (known.scale, known.offset) != (1, 0) == (scale, offset):
                self.scope.symbols[symbol] = SizeSource(value, axis, scale, offset)

    def redefine(self, symbols: Sequence[Symbol]) -> None:
        """Forget ``symbols`` in this scope, and what was computed from sizes: they get other values."""
        for symbol in symbols:
            self.scope.symbols.pop(symbol, None)
        for derived in (self.scope.sizes, self.scope.shapes, self.scope.memo, self._reshaped):
            derived.clear()

    def define_size(self, symbol: Symbol, value: ir.Value) -> None:
        """Let the integer ``value`` (rank 0) be ``symbol``."""
        self.scope.symbols[symbol] = SizeSource(self.op("Reshape", value, self.ints(1)), None)

    def _depth(self, dim: Dim) -> int:
        """The innermost open scope that defines a symbol of ``dim``."""
        return max((self._depth_of(symbol) for symbol in algebra.symbols_of(dim)), default=0)

    def _depth_of(self, symbol: Symbol) -> int:
        for depth in reversed(range(len(self.scopes))):
            if symbol in self.scopes[depth].symbols:
                return depth
        if not self.allow_size_inputs:
            raise BackendError(f"the size {symbol} cannot be read from an input's shape", backend="ort")
        # A part of a model may need a size that none of its own inputs has; the runtime knows it.
        source = self.value(f"size.{symbol}", DType.I64, (1,))
        self.inputs.append(source)
        assert source.name is not None
        self.size_inputs[symbol.name] = source.name
        self.scopes[0].symbols[symbol] = SizeSource(source, None)
        return 0

    # -- single sizes --------------------------------------------------------------------------

    def size(self, dim: Dim) -> ir.Value:
        """``dim`` as an ``i64[1]``."""
        if isinstance(dim, int):
            return self.ints(dim)
        depth = self._depth(dim)
        known = self.scopes[depth].sizes
        if dim not in known:
            with self.at(depth):
                known[dim] = self._compute(dim)
        return known[dim]

    def size_scalar(self, dim: Dim) -> ir.Value:
        """``dim`` as an ``i64[]``."""
        if isinstance(dim, int):
            return self.scalar(dim, DType.I64)
        depth = self._depth(dim)
        memo = self.scopes[depth].memo
        if ("scalar", dim) not in memo:
            with self.at(depth):
                memo["scalar", dim] = self.op("Squeeze", self.size(dim), self.ints(0))
        return memo["scalar", dim]

    def _compute(self, dim: Expr) -> ir.Value:
        symbol = algebra.as_symbol(dim)
        if symbol is not None:
            return self._read(self.scope.symbols[symbol])
        terms = [self._term(monomial, factor) for monomial, factor in dim.terms]
        return reduce(lambda a, b: self.op("Add", a, b), terms)

    def _read(self, source: SizeSource) -> ir.Value:
        value = source.value
        if source.axis is not None:
            value = self.op("Shape", value, start=source.axis, end=source.axis + 1)
        if source.offset:
            value = self.op("Sub", value, self.ints(source.offset))
        return value if source.scale == 1 else self.op("Div", value, self.ints(source.scale))

    def _term(self, monomial: tuple[algebra.Atom, ...], factor: int) -> ir.Value:
        factors = [self._atom(atom) for atom in monomial]
        if factor != 1 or not factors:
            factors.append(self.ints(factor))
        return reduce(lambda a, b: self.op("Mul", a, b), factors)

    def _atom(self, atom: algebra.Atom) -> ir.Value:
        if isinstance(atom, Symbol):
            return self.size(Expr((((atom,), 1),)))
        left, right = (self.size(arg) for arg in atom.args)
        if atom.fn in ("min", "max"):
            return self.op(atom.fn.capitalize(), left, right)
        if atom.fn == "mod":
            return self.op("Mod", left, right)
        return self._floordiv(atom, left, right)

    def _floordiv(self, call: algebra.Call, left: ir.Value, right: ir.Value) -> ir.Value:
        low = algebra.bounds(call.args[0])[0]
        if low is None or low < 0:  # ONNX's Div rounds towards zero, its Mod takes the divisor's sign
            left = self.op("Sub", left, self.op("Mod", left, right))
        return self.op("Div", left, right)

    # -- shapes --------------------------------------------------------------------------------

    def shape(self, dims: Sequence[Dim]) -> ir.Value:
        """``dims`` as a vector; one constant when no dim is symbolic."""
        key = tuple(dims)
        if all(isinstance(d, int) for d in key):
            return self.ints(*(d for d in key if isinstance(d, int)))
        depth = max(self._depth(d) for d in key)
        known = self.scopes[depth].shapes
        if key not in known:
            with self.at(depth):
                parts = [p if isinstance(p, ir.Value) else self.ints(*p) for p in self._runs(key)]
                known[key] = parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)
        return known[key]

    def _runs(self, dims: Shape) -> list[ir.Value | list[int]]:
        """Symbolic sizes one by one, constant ones in runs."""
        parts: list[ir.Value | list[int]] = []
        for dim in dims:
            if not isinstance(dim, int):
                parts.append(self.size(dim))
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(dim)
            else:
                parts.append([dim])
        return parts

    def reshape(self, value: ir.Value, old: Sequence[Dim], new: Sequence[Dim]) -> ir.Value:
        """``value`` of shape ``old`` in the shape ``new``."""
        old, new = tuple(old), tuple(new)
        if value in self._reshaped:  # reshapes of reshapes start from the first value
            value, old = self._reshaped[value]
        if old == new:
            return value
        short = constant_reshape(old, new)
        if short is not None:
            result = self.op("Reshape", value, self.ints(*short))
        else:
            result = self.op("Reshape", value, self.shape(new), allowzero=1)
        self._reshaped[result] = value, old
        return result

    def is_reshaped_matrix(self, value: ir.Value) -> bool:
        """Whether ``value`` is the reshape of a value of two axes, which is at hand."""
        return value in self._reshaped and len(self._reshaped[value][1]) == 2

    def expand(self, value: ir.Value, old: Sequence[Dim], new: Sequence[Dim]) -> ir.Value:
        """``value`` of shape ``old`` broadcast to the shape ``new``."""
        if tuple(old) == tuple(new):
            return value
        padded = (1,) * (len(new) - len(old)) + tuple(old)
        # Expand broadcasts both ways, so an axis that stays may be given as 1: often no size is needed.
        sizes = [1 if a == b else b for a, b in zip(padded, new, strict=True)]
        return self.op("Expand", value, self.shape(sizes))


def constant_reshape(old: Shape, new: Shape) -> tuple[int, ...] | None:
    """``new`` in Reshape's own words (0 keeps the axis, -1 is worked out), or None when that is unsafe."""
    words: list[int] = []
    unknown = False
    kept_may_be_empty = False
    for axis, dim in enumerate(new):
        if isinstance(dim, int):
            if dim == 0:  # would mean "keep the axis"
                return None
            words.append(dim)
        elif axis < len(old) and old[axis] == dim:
            low = algebra.bounds(dim)[0]
            kept_may_be_empty = kept_may_be_empty or low is None or low < 1
            words.append(0)
        elif unknown:
            return None
        else:
            unknown = True
            words.append(-1)
    # -1 beside an empty axis is ambiguous, and ONNX Runtime refuses it.
    return None if unknown and kept_may_be_empty else tuple(words)


def _affine(dim: Dim) -> tuple[Symbol, int, int] | None:
    """``(symbol, scale, offset)`` when ``dim`` is ``scale * symbol + offset`` with a positive scale."""
    if isinstance(dim, int):
        return None
    offset = dict(dim.terms).get((), 0)
    rest = [(m, c) for m, c in dim.terms if m]
    if len(rest) != 1:
        return None
    (monomial, scale) = rest[0]
    if scale < 1 or len(monomial) != 1 or not isinstance(monomial[0], Symbol):
        return None
    return monomial[0], scale, offset
