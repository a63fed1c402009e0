"""The bridge between dimensions and sympy, which is loaded on the first call.

torch describes sizes in sympy; here they become dimensions. In the other direction sympy does proofs
that the normal form of ``dims`` does not, and checks it in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import reduce
from importlib import import_module
from typing import Any

from regraft.ir.dims import (
    Atom,
    Dim,
    Symbol,
    as_expr,
    bounds,
    ceildiv,
    eq,
    floordiv,
    maximum,
    minimum,
    mod,
    product,
)

_MAX_POWER = 16


def _sympy() -> Any:
    # It has no type stubs, and importing it takes half a second.
    return import_module("sympy")


# -- from sympy --------------------------------------------------------------------------------


def from_sympy(expression: Any, symbols: Mapping[str, Symbol]) -> Dim:
    """The dimension that a sympy expression of torch's ``ShapeEnv`` (or an int) describes.

    Raises:
        ValueError: the expression has an unknown symbol or a function that dimensions lack; the message
            names it.
    """
    if isinstance(expression, int):
        return int(expression)
    # Classes are told by name: torch's are not sympy's, and neither library is imported for this.
    kind = type(expression).__name__
    if getattr(expression, "is_Integer", False):
        return int(expression)
    if getattr(expression, "is_Symbol", False):
        return _symbol(expression, symbols)
    if kind == "TruncToInt":
        return _scaled(expression, symbols)
    convert = _CONVERTERS.get(kind)
    if convert is None:
        raise ValueError(f"the size {expression} uses {kind}, which has no counterpart")
    if kind in _ON_QUOTIENT:
        return convert(
            [_ratio_part(p, symbols, expression) for p in _fraction(expression.args[0])], expression
        )
    return convert([from_sympy(a, symbols) for a in expression.args], expression)


#: Larger denominators do not come from a factor that somebody wrote down.
_MAX_DENOMINATOR = 1 << 16


def _scaled(expression: Any, symbols: Mapping[str, Symbol]) -> Dim:
    """``int(size * factor)`` in floating point, for a factor with which the product is exact."""
    factors: Any = expression.args[0].args if type(expression.args[0]).__name__ == "Mul" else ()
    numbers = [f for f in factors if getattr(f, "is_Float", False)]
    sizes = [f for f in factors if type(f).__name__ == "ToFloat"]
    if len(factors) != 2 or len(numbers) != 1 or len(sizes) != 1:
        raise ValueError(f"the size {expression} uses TruncToInt, which has no counterpart")
    factor, size = Fraction(float(numbers[0])), from_sympy(sizes[0].args[0], symbols)
    low = bounds(size)[0]
    if factor < 0 or low is None or low < 0 or factor.denominator > _MAX_DENOMINATOR:
        raise ValueError(f"the size {expression} goes through floating point")
    return floordiv(size * factor.numerator, factor.denominator)


def _symbol(expression: Any, symbols: Mapping[str, Symbol]) -> Dim:
    found = symbols.get(str(expression))
    if found is None:
        raise ValueError(f"the size {expression} is not a symbol of the graph; known: {', '.join(symbols)}")
    return as_expr(found)


def _fraction(quotient: Any) -> tuple[Any, Any]:
    """Numerator and denominator of what a rounding function is applied to."""
    if type(quotient).__name__ == "IntTrueDiv":
        return quotient.args
    sympy = _sympy()
    return sympy.fraction(sympy.together(quotient))


def _ratio_part(part: Any, symbols: Mapping[str, Symbol], whole: Any) -> Dim:
    if getattr(part, "is_Float", False):
        raise ValueError(f"the size {whole} goes through floating point")
    return from_sympy(part, symbols)


Converter = Callable[[Sequence[Dim], Any], Dim]


def _power(args: Sequence[Dim], expression: Any) -> Dim:
    base, exponent = args
    if not isinstance(exponent, int) or not 0 <= exponent <= _MAX_POWER:
        raise ValueError(f"the size {expression} has an exponent that is not a small natural number")
    return product([base] * exponent)


def _modular_index(args: Sequence[Dim], expression: Any) -> Dim:
    base, divisor, modulus = args
    return mod(floordiv(base, divisor), modulus)


def _pairwise(fn: Callable[[Dim, Dim], Dim]) -> Converter:
    return lambda args, _: reduce(fn, args)


_CONVERTERS: Mapping[str, Converter] = {
    "Add": _pairwise(lambda a, b: a + b),
    "Mul": lambda args, _: product(args),
    "Pow": _power,
    "PowByNatural": _power,
    "Max": _pairwise(maximum),
    "Min": _pairwise(minimum),
    "Mod": _pairwise(mod),
    "PythonMod": _pairwise(mod),
    "FloorDiv": _pairwise(floordiv),
    "CleanDiv": _pairwise(floordiv),
    "CeilDiv": _pairwise(ceildiv),
    "ModularIndexing": _modular_index,
    "Identity": lambda args, _: args[0],
    # Rounded quotients: the arguments are the numerator and the denominator.
    "floor": _pairwise(floordiv),
    "FloorToInt": _pairwise(floordiv),
    "ceiling": _pairwise(ceildiv),
    "CeilToInt": _pairwise(ceildiv),
}
_ON_QUOTIENT = frozenset({"floor", "FloorToInt", "ceiling", "CeilToInt"})


# -- to sympy ----------------------------------------------------------------------------------


def to_sympy(dim: Dim) -> Any:
    """``dim`` as a sympy expression over integer symbols of the same names."""
    sympy = _sympy()
    return _to_sympy(dim, lambda s: sympy.Symbol(s.name, integer=True))


def _to_sympy(dim: Dim, symbol: Callable[[Symbol], Any]) -> Any:
    sympy = _sympy()
    if isinstance(dim, int):
        return sympy.Integer(dim)
    terms = [c * sympy.Mul(*(_atom(atom, symbol) for atom in monomial)) for monomial, c in dim.terms]
    return sympy.Add(*terms)


def _atom(atom: Atom, symbol: Callable[[Symbol], Any]) -> Any:
    sympy = _sympy()
    if isinstance(atom, Symbol):
        return symbol(atom)
    left, right = (_to_sympy(arg, symbol) for arg in atom.args)
    if atom.fn == "floordiv":
        return sympy.floor(left / right)
    if atom.fn == "mod":
        # Not sympy.Mod: one function for both lets the identity of quotient and remainder cancel.
        return left - right * sympy.floor(left / right)
    return (sympy.Min if atom.fn == "min" else sympy.Max)(left, right)


def prove_equal(a: Dim, b: Dim) -> bool | None:
    """Whether two sizes are equal for every value of their symbols; None when sympy cannot tell.

    ``False`` means that they differ everywhere, as for ``dims.eq``.
    """
    known = eq(a, b)
    if known is not None:
        return known
    sympy = _sympy()
    difference = sympy.expand(_to_sympy(a, _ranged) - _to_sympy(b, _ranged))
    if difference.is_zero is None:
        difference = sympy.simplify(difference)
    return None if difference.is_zero is None else bool(difference.is_zero)


def _ranged(symbol: Symbol) -> Any:
    """A symbol's value as ``divisor * (k + first)`` with a natural ``k``, so that sympy knows its range."""
    first = -(-symbol.lo // symbol.divisor)
    return symbol.divisor * (_sympy().Symbol(symbol.name, integer=True, nonnegative=True) + first)
