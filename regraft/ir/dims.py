"""Dimensions: integers, or expressions over symbols with a closed set of operators.

A dimension is an ``int`` or an :class:`Expr`. Expressions are immutable, equal by value and kept in
a normal form (a polynomial with integer coefficients over symbols and ``floordiv``, ``mod``,
``min``, ``max`` calls), so that two spellings of one size are usually equal by construction.
Questions are three-valued: ``True``, ``False`` or ``None`` for *unknown*, and asking never
constrains a symbol. Harder proofs go to sympy (``dims_sympy``), which is loaded only then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

from regraft.errors import ShapeError


@dataclass(frozen=True, order=True)
class Symbol:
    """A named size, a multiple of ``divisor``. ``lo`` and ``hi`` are inclusive (``hi=None``: unbounded)."""

    name: str
    lo: int = 0
    hi: int | None = None
    divisor: int = 1

    @property
    def key(self) -> str:
        return self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Call:
    """``floordiv``, ``mod``, ``min`` or ``max`` of two dimensions that the normal form keeps apart."""

    fn: str
    args: tuple[Dim, Dim]

    @property
    def key(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.fn}({self.args[0]}, {self.args[1]})"


Atom: TypeAlias = Symbol | Call
Monomial: TypeAlias = tuple[Atom, ...]
Bounds: TypeAlias = tuple[int | None, int | None]

_PICKS = ("min", "max")
_MAX_SPLITS = 4

#: No size is larger: torch and ONNX write "to the end" of a slice this way.
MAX_SIZE = 2**63 - 1


class Expr:
    """A non-constant dimension: a sum of integer multiples of products of atoms."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and self._hash == other._hash and self.terms == other.terms

    def __add__(self, other: Dim) -> Dim:
        return _from_terms(_merge(_terms(self), _terms(other)))

    def __mul__(self, other: Dim) -> Dim:
        product: dict[Monomial, int] = {}
        for left, a in _terms(self).items():
            for right, b in _terms(other).items():
                monomial = tuple(sorted(left + right, key=lambda atom: atom.key))
                product[monomial] = product.get(monomial, 0) + a * b
        return _from_terms(product)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return (-self) + other

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __str__(self) -> str:
        parts = [_format_term(monomial, coefficient) for monomial, coefficient in self.terms]
        return " + ".join(parts).replace("+ -", "- ")

    def __repr__(self) -> str:
        return f"Expr({self})"


Dim: TypeAlias = int | Expr


def symbol(name: str, lo: int = 0, hi: int | None = None, divisor: int = 1) -> Expr:
    """The dimension that is the symbol ``name``."""
    return as_expr(Symbol(name, lo, hi, divisor))


def as_expr(atom: Atom) -> Expr:
    return Expr((((atom,), 1),))


def as_symbol(dim: Dim) -> Symbol | None:
    """The symbol that ``dim`` is, or None when it is a constant or a compound expression."""
    if isinstance(dim, Expr) and len(dim.terms) == 1:
        monomial, coefficient = dim.terms[0]
        if coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], Symbol):
            return monomial[0]
    return None


def _terms(dim: Dim) -> dict[Monomial, int]:
    if isinstance(dim, Expr):
        return dict(dim.terms)
    return {(): dim} if dim else {}


def _merge(a: dict[Monomial, int], b: dict[Monomial, int]) -> dict[Monomial, int]:
    for monomial, coefficient in b.items():
        a[monomial] = a.get(monomial, 0) + coefficient
    return a


def _from_terms(terms: Mapping[Monomial, int]) -> Dim:
    kept = {monomial: c for monomial, c in terms.items() if c}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    # Constants last and higher degrees first, so that sizes read as people write them.
    ordered = sorted(kept.items(), key=lambda term: (-len(term[0]), [atom.key for atom in term[0]]))
    return Expr(tuple(ordered))


def _format_term(monomial: Monomial, coefficient: int) -> str:
    if not monomial:
        return str(coefficient)
    product = "*".join(str(atom) for atom in monomial)
    if coefficient == 1:
        return product
    return f"-{product}" if coefficient == -1 else f"{coefficient}*{product}"


def _split(dim: Dim, divides: Callable[[Monomial, int], bool]) -> tuple[Dim, Dim]:
    """``dim`` as (terms for which ``divides`` holds, the other terms)."""
    chosen = {m: c for m, c in _terms(dim).items() if divides(m, c)}
    rest = {m: c for m, c in _terms(dim).items() if m not in chosen}
    return _from_terms(chosen), _from_terms(rest)


def floordiv(a: Dim, b: Dim) -> Dim:
    """``a // b`` rounded towards minus infinity.

    Raises:
        ShapeError: ``b`` is the constant 0.
    """
    if b == 0:
        raise ShapeError(f"division of the size {a} by zero")
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 1 or a == 0:
        return a
    if isinstance(b, int):
        exact, rest = _split(a, lambda _, c: c % b == 0)
        quotient = _from_terms({m: c // b for m, c in _terms(exact).items()})
        if rest == 0:
            return quotient
        low, high = bounds(rest)
        if low is not None and high is not None and low // b == high // b:
            return quotient + low // b
        inner = _as_quotient(rest)
        if inner is not None and b > 0:
            # A quotient of a quotient rounds as one division by both: stacked convolutions give these.
            return quotient + floordiv(inner[0], inner[1] * b)
        return quotient + as_expr(Call("floordiv", (rest, b)))
    if a == b:
        return 1
    quotient = _exact_quotient(a, b)
    return as_expr(Call("floordiv", (a, b))) if quotient is None else quotient


def _as_quotient(dim: Dim) -> tuple[Dim, int] | None:
    """Numerator and divisor of ``dim`` when it is a quotient by a number, plus a number."""
    terms = _terms(dim)
    constant = terms.pop((), 0)
    if len(terms) != 1:
        return None
    ((monomial, coefficient),) = terms.items()
    if coefficient != 1 or len(monomial) != 1:
        return None
    (atom,) = monomial
    if not isinstance(atom, Call) or atom.fn != "floordiv" or not isinstance(atom.args[1], int):
        return None
    return atom.args[0] + constant * atom.args[1], atom.args[1]


def _exact_quotient(a: Dim, b: Expr) -> Dim | None:
    """``a / b`` when ``b`` is one term that divides every term of ``a``."""
    if len(b.terms) != 1:
        return None
    divisor, scale = b.terms[0]
    result: dict[Monomial, int] = {}
    for monomial, coefficient in _terms(a).items():
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % scale:
            return None
        result[tuple(rest)] = coefficient // scale
    return _from_terms(result)


def mod(a: Dim, b: Dim) -> Dim:
    """``a - b * (a // b)``, with the sign of ``b``.

    Raises:
        ShapeError: ``b`` is the constant 0.
    """
    if b == 0:
        raise ShapeError(f"remainder of the size {a} by zero")
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if isinstance(b, int):
        _, a = _split(a, lambda m, c: (c * _divisor(m)) % b == 0)
        low, high = bounds(a)
        if low is not None and high is not None and low >= 0 and high < b:
            return a
        if isinstance(a, int):
            return a % b
    elif a == b or _exact_quotient(a, b) is not None:
        return 0
    return as_expr(Call("mod", (a, b)))


def _divisor(monomial: Monomial) -> int:
    return reduce(lambda d, atom: d * (atom.divisor if isinstance(atom, Symbol) else 1), monomial, 1)


def ceildiv(a: Dim, b: Dim) -> Dim:
    """``a / b`` rounded up, for positive ``b``."""
    return floordiv(a + b - 1, b)


def minimum(a: Dim, b: Dim) -> Dim:
    return _extremum("min", a, b)


def maximum(a: Dim, b: Dim) -> Dim:
    return _extremum("max", a, b)


def _extremum(fn: str, a: Dim, b: Dim) -> Dim:
    for x, y in ((a, b), (b, a)):
        if isinstance(x, int) and x >= MAX_SIZE:
            return y if fn == "min" else x
        if isinstance(x, Expr) and _is_argument(fn, y, x):
            return x
    # Sorted first: where both are equal, the answer must not depend on the order either.
    left, right = sorted((a, b), key=str)
    less = le(left, right)
    if less is None and (more := le(right, left)) is not None:
        less = not more
    if less is not None:
        return left if less == (fn == "min") else right
    return as_expr(Call(fn, (left, right)))


def _is_argument(fn: str, a: Dim, b: Expr) -> bool:
    """Whether ``b`` is ``fn(a, ...)``, so that taking the extremum with ``a`` again changes nothing."""
    if len(b.terms) != 1 or b.terms[0][1] != 1 or len(b.terms[0][0]) != 1:
        return False
    (atom,) = b.terms[0][0]
    return isinstance(atom, Call) and atom.fn == fn and a in atom.args


FUNCTIONS: Mapping[str, Callable[[Dim, Dim], Dim]] = {
    "floordiv": floordiv,
    "mod": mod,
    "min": minimum,
    "max": maximum,
    "ceildiv": ceildiv,
}


def product(dims: Iterable[Dim]) -> Dim:
    return reduce(lambda a, b: a * b, dims, 1)


# -- questions ---------------------------------------------------------------------------------


def bounds(dim: Dim) -> Bounds:
    """An inclusive interval that holds ``dim``; ``None`` is an open end."""
    if isinstance(dim, int):
        return dim, dim
    low: int | None = 0
    high: int | None = 0
    for monomial, coefficient in dim.terms:
        term = reduce(_multiply, (_atom_bounds(atom) for atom in monomial), (1, 1))
        term = _multiply(term, (coefficient, coefficient))
        low = None if low is None or term[0] is None else low + term[0]
        high = None if high is None or term[1] is None else high + term[1]
    return low, high


def _multiply(a: Bounds, b: Bounds) -> Bounds:
    if a == (0, 0) or b == (0, 0):
        return 0, 0
    if None not in a and None not in b:
        corners = [x * y for x in a for y in b if x is not None and y is not None]
        return min(corners), max(corners)
    if a[0] is not None and a[0] >= 0 and b[0] is not None and b[0] >= 0:
        return a[0] * b[0], None
    for x, y in ((a, b), (b, a)):
        if x[0] == x[1] and x[0] is not None and x[0] < 0:
            flipped = (y[1], y[0])
            return tuple(None if end is None else end * x[0] for end in flipped)  # type: ignore[return-value]
    return None, None


def _atom_bounds(atom: Atom) -> Bounds:
    if isinstance(atom, Symbol):
        return atom.lo, atom.hi
    (a_low, a_high), (b_low, b_high) = (bounds(arg) for arg in atom.args)
    if atom.fn in ("min", "max"):
        pick = min if atom.fn == "min" else max
        lows = [x for x in (a_low, b_low) if x is not None]
        highs = [x for x in (a_high, b_high) if x is not None]
        if atom.fn == "min":
            return (pick(lows) if len(lows) == 2 else None), (pick(highs) if highs else None)
        return (pick(lows) if lows else None), (pick(highs) if len(highs) == 2 else None)
    if b_low is None or b_low <= 0:
        return None, None
    if atom.fn == "mod":
        return 0, None if b_high is None else b_high - 1
    low = None if a_low is None else (a_low // (b_high or a_low + 1) if a_low >= 0 else a_low // b_low)
    high = None if a_high is None else (a_high // b_low if a_high >= 0 else -1)
    return low, high


def eq(a: Dim, b: Dim) -> bool | None:
    """Whether two sizes are equal for every value of their symbols; None when that is not known."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if a == b:
        return True
    difference = a - b
    if isinstance(difference, int):
        return difference == 0
    low, high = bounds(difference)
    if (low is not None and low > 0) or (high is not None and high < 0):
        return False
    return None


def le(a: Dim, b: Dim) -> bool | None:
    """Whether ``a <= b`` for every value of the symbols; None when that is not known."""
    if _by_definition(a, b):
        return True
    difference = b - a
    if _is_natural(difference):
        return True
    return False if _is_natural(-1 - difference) else None


def _is_natural(dim: Dim, splits: int = _MAX_SPLITS) -> bool:
    """Whether ``dim`` is proved to be at least 0: by its bounds, without a quotient, or case by case."""
    low, _ = bounds(dim)
    if low is not None and low >= 0:
        return True
    if isinstance(dim, int) or splits == 0:
        return False
    if (multiple := _without_quotient(dim)) is not None and _is_natural(multiple, splits - 1):
        return True
    choices = [
        (m[0], c) for m, c in dim.terms if len(m) == 1 and isinstance(m[0], Call) and m[0].fn in _PICKS
    ]
    # The sum is the smallest of its cases or the largest: all must be natural, or one. Those first of
    # which all must be: a later choice may then depend on the case.
    if not choices:
        return False
    call, coefficient = min(choices, key=lambda choice: _is_largest(*choice))
    rest = dim - coefficient * as_expr(call)
    cases = (_is_natural(rest + coefficient * arg, splits - 1) for arg in call.args)
    return any(cases) if _is_largest(call, coefficient) else all(cases)


def _without_quotient(dim: Expr) -> Dim | None:
    """A size that is at least 0 only if ``dim`` is, with one quotient by a number less; None without one.

    With q = a // c in ``dim = rest + k * q``, q is in [(a - c + 1) / c, a / c], so that c * dim is at least
    ``c * rest + k * a``, less ``k * (c - 1)`` for a positive k. An integer is at least 0 if c times it is
    more than -c.
    """
    for monomial, k in dim.terms:
        if len(monomial) == 1 and isinstance(call := monomial[0], Call) and call.fn == "floordiv":
            a, c = call.args
            if isinstance(c, int) and c > 0:
                rest = dim - k * as_expr(call)
                return c * rest + k * a - max(k, 0) * (c - 1) + (c - 1)
    return None


def _is_largest(call: Call, coefficient: int) -> bool:
    """Whether ``coefficient`` times a ``min`` or ``max`` is the largest of the products of its arguments."""
    return (call.fn == "max") == (coefficient > 0)


def _by_definition(a: Dim, b: Dim) -> bool:
    """Whether ``a <= b`` follows from what ``min``, ``max`` and ``mod`` are."""
    smaller, larger = _as_call(a), _as_call(b)
    if smaller is not None and smaller.fn == "min" and b in smaller.args:
        return True
    if larger is not None and larger.fn == "max" and a in larger.args:
        return True
    is_rest = smaller is not None and smaller.fn == "mod" and smaller.args[1] == b
    return is_rest and (bounds(b)[0] or 0) > 0


def _as_call(dim: Dim) -> Call | None:
    if isinstance(dim, Expr) and len(dim.terms) == 1:
        monomial, coefficient = dim.terms[0]
        if coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], Call):
            return monomial[0]
    return None


def power_of_two_ratio(large: Dim, small: Dim) -> int | None:
    """``n`` when ``large`` is proved to be ``n * small`` and ``n`` is one of 1, 2, 4, ... 32; else None."""
    return next((n for n in (1, 2, 4, 8, 16, 32) if eq(small * n, large) is True), None)


def symbols_of(dim: Dim) -> Iterator[Symbol]:
    """Every symbol in ``dim``, in order of appearance, repeated as it is repeated."""
    if isinstance(dim, int):
        return
    for monomial, _ in dim.terms:
        for atom in monomial:
            if isinstance(atom, Symbol):
                yield atom
            else:
                for arg in atom.args:
                    yield from symbols_of(arg)


def substitute(dim: Dim, values: Mapping[Symbol, Dim]) -> Dim:
    """``dim`` with symbols replaced; with a number for each symbol the result is an ``int``."""
    if isinstance(dim, int):
        return dim
    total: Dim = 0
    for monomial, coefficient in dim.terms:
        term: Dim = coefficient
        for atom in monomial:
            term = term * _substitute_atom(atom, values)
        total = total + term
    return total


def _substitute_atom(atom: Atom, values: Mapping[Symbol, Dim]) -> Dim:
    if isinstance(atom, Symbol):
        value = values.get(atom)
        return as_expr(atom) if value is None else value
    left, right = (substitute(arg, values) for arg in atom.args)
    return FUNCTIONS[atom.fn](left, right)
