"""Dimensions against Python's integers and against sympy."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.utils._sympy import functions as torch_functions

from regraft.errors import ParseError, ShapeError
from regraft.ir import Symbol, dims, from_sympy, parse_dim, prove_equal, symbol, to_sympy
from tests.ir import strategies
from tests.ir.strategies import BY_NAME, SYMBOLS, Sizes, Tree, Undefined


def both(tree: Tree, sizes: Sizes) -> tuple[dims.Dim, int]:
    """The dimension and its value; a tree that has none is not tested."""
    try:
        return strategies.build(tree), strategies.value(tree, sizes)
    except Undefined:
        assume(False)
        raise


@settings(max_examples=600)
@given(strategies.trees(), strategies.sizes())
def test_evaluates_as_python(tree: Tree, sizes: Sizes) -> None:
    dim, value = both(tree, sizes)
    assert dims.substitute(dim, dict(sizes)) == value


@settings(max_examples=600)
@given(strategies.trees(), strategies.sizes())
def test_bounds_hold(tree: Tree, sizes: Sizes) -> None:
    dim, value = both(tree, sizes)
    low, high = dims.bounds(dim)
    assert low is None or low <= value
    assert high is None or value <= high


@settings(max_examples=600)
@given(strategies.trees(5), strategies.trees(5), strategies.sizes())
def test_answers_are_never_wrong(a: Tree, b: Tree, sizes: Sizes) -> None:
    (left, x), (right, y) = both(a, sizes), both(b, sizes)
    assert dims.eq(left, right) in (None, x == y)
    assert dims.le(left, right) in (None, x <= y)


@settings(max_examples=300)
@given(strategies.trees(4), strategies.trees(4), strategies.trees(4))
def test_normal_form(x: Tree, y: Tree, z: Tree) -> None:
    try:
        a, b, c = (strategies.build(tree) for tree in (x, y, z))
    except Undefined:
        assume(False)
        raise
    pairs = [
        (a + b, b + a),
        (a * b, b * a),
        ((a + b) + c, a + (b + c)),
        ((a * b) * c, a * (b * c)),
        (a * (b + c), a * b + a * c),
        (a - a, 0),
        (a - b, -1 * (b - a)),
        (dims.minimum(a, b), dims.minimum(b, a)),
        (dims.maximum(a, b), dims.maximum(b, a)),
    ]
    for left, right in pairs:
        assert left == right
        assert hash(left) == hash(right)
        assert str(left) == str(right)


@settings(max_examples=300)
@given(strategies.trees())
def test_text_round_trip(tree: Tree) -> None:
    try:
        dim = strategies.build(tree)
    except Undefined:
        assume(False)
        raise
    assert parse_dim(str(dim), BY_NAME) == dim


@settings(max_examples=100)
@given(strategies.trees(5), strategies.sizes())
def test_sympy_agrees(tree: Tree, sizes: Sizes) -> None:
    dim, value = both(tree, sizes)
    expression = to_sympy(dim)
    assert expression.subs({sympy.Symbol(s.name, integer=True): n for s, n in sizes.items()}) == value


@settings(max_examples=100)
@given(strategies.trees(4), strategies.sizes())
def test_sympy_round_trip(tree: Tree, sizes: Sizes) -> None:
    dim, value = both(tree, sizes)
    try:
        again = from_sympy(to_sympy(dim), BY_NAME)
    except ValueError:
        # sympy pulls constants out of a rounded quotient, and the rest may be no integer.
        assume(False)
        raise
    assert dims.substitute(again, dict(sizes)) == value


@settings(max_examples=60)
@given(strategies.trees(3), strategies.trees(3), strategies.sizes())
@example(("mod", SYMBOLS[2], 8), 0, {s: s.lo for s in SYMBOLS})
def test_proofs_are_never_wrong(a: Tree, b: Tree, sizes: Sizes) -> None:
    (left, x), (right, y) = both(a, sizes), both(b, sizes)
    assert prove_equal(left, right) in (None, x == y)


def test_proofs_that_the_normal_form_does_not_give() -> None:
    n = symbol("n")
    rest = dims.mod(n, 4) + 4 * dims.floordiv(n, 4)
    assert dims.eq(rest, n) is None
    assert prove_equal(rest, n) is True
    assert prove_equal(n, 2 * n) is None
    assert prove_equal(n, n + 1) is False
    assert prove_equal(dims.floordiv(symbol("m", 0, None, 8), 4) * 4, symbol("m", 0, None, 8)) is True


def test_known_simplifications() -> None:
    n, m = symbol("n", 1, 16), symbol("m", 0, None, 8)
    assert str(dims.floordiv(4 * n + 2, 4)) == "n"
    assert str(dims.floordiv(4 * n + 5, 4)) == "n + 1"
    assert dims.mod(m * 3 + 2, 8) == 2
    assert dims.minimum(n, 16) == n
    assert dims.maximum(n, 0) == n
    assert dims.floordiv(n * m, n) == m
    assert str(dims.ceildiv(n, 4)) == "floordiv(n + 3, 4)"
    assert str(2 * n - m + 3) == "-m + 2*n + 3"


@pytest.mark.parametrize("fn", [dims.floordiv, dims.mod])
def test_division_by_zero(fn: Any) -> None:
    with pytest.raises(ShapeError, match="zero"):
        fn(symbol("n"), 0)


S0, S1 = (sympy.Symbol(n, integer=True, positive=True) for n in ("s0", "s1"))
TORCH_EXPRESSIONS = {
    "floor": (sympy.floor((S0 + 1) / 3), lambda a, b: (a + 1) // 3),
    "floor of products": (sympy.floor(S0 * S1 / 4), lambda a, b: a * b // 4),
    "ceiling": (sympy.ceiling(S0 / 3), lambda a, b: -(-a // 3)),
    "power": (S0**3 - 2 * S1, lambda a, b: a**3 - 2 * b),
    "FloorDiv": (torch_functions.FloorDiv(S0 + 3, S1), lambda a, b: (a + 3) // b),
    "Mod": (torch_functions.Mod(S0, 5), lambda a, b: a % 5),
    "PythonMod": (torch_functions.PythonMod(S0 - 7, 5), lambda a, b: (a - 7) % 5),
    "Max": (torch_functions.Max(S0, S1, 3), lambda a, b: max(a, b, 3)),
    "Min": (torch_functions.Min(S0, S1), lambda a, b: min(a, b)),
    "ModularIndexing": (torch_functions.ModularIndexing(S0, 2, 3), lambda a, b: a // 2 % 3),
    "CeilToInt": (
        torch_functions.CeilToInt(torch_functions.IntTrueDiv(S0, 3)),
        lambda a, b: -(-a // 3),
    ),
    "PowByNatural": (torch_functions.PowByNatural(S0, 2), lambda a, b: a * a),
    "CeilDiv": (torch_functions.CeilDiv(S0, 4), lambda a, b: -(-a // 4)),
    "Identity": (torch_functions.Identity(S0), lambda a, b: a),
    "sympy.Mod": (sympy.Mod(S0, 3), lambda a, b: a % 3),
    "TruncToInt": (
        torch_functions.TruncToInt(1.5 * torch_functions.ToFloat(S0)),
        lambda a, b: a * 3 // 2,
    ),
    "int": (7, lambda a, b: 7),
    "Integer": (sympy.Integer(-2), lambda a, b: -2),
}


@pytest.mark.parametrize("name", TORCH_EXPRESSIONS)
def test_from_torch(name: str) -> None:
    expression, expected = TORCH_EXPRESSIONS[name]
    found = from_sympy(expression, BY_NAME)
    for a in (0, 1, 5, 12, 33):
        for b in (1, 2, 7, 16):
            assert dims.substitute(found, {BY_NAME["s0"]: a, BY_NAME["s1"]: b}) == expected(a, b)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (sympy.Symbol("q"), "not a symbol of the graph; known: s0"),
        (S0 / 2, "no counterpart"),
        (torch_functions.TruncToInt(1.3 * torch_functions.ToFloat(S0)), "floating point"),
        (sympy.floor(sympy.sqrt(S0)), "no counterpart"),
        (sympy.floor(0.5 * S0), "floating point|no counterpart"),
        (S0**S1, "exponent"),
        (sympy.sin(S0), "uses sin, which has no counterpart"),
    ],
)
def test_from_sympy_refuses(expression: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_sympy(expression, BY_NAME)


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("s0 + ", 6, "expected a size"),
        ("s0 s1", 4, "expected the end"),
        ("q0", 1, "unknown symbol 'q0'; known here: s0"),
        ("2*foo(s0, 1)", 3, "unknown function 'foo'"),
        ("mod(s0, 0)", 1, "by zero"),
        ("mod(s0)", 7, "expected ','"),
        ("min(" * 100, 1 + 4 * 64, "nest deeper"),
        ("1.5", 1, "whole number"),
        ("9" * 100, 1, "too many digits"),
        ("*".join(["9" * 70] * 9), 1, "too large"),
        ("+".join(["s0"] * 2000), 1, "too long"),
        ("s0 # 1", 4, "unexpected character '#'"),
    ],
)
def test_malformed_text(text: str, column: int, reason: str) -> None:
    with pytest.raises(ParseError, match=reason) as caught:
        parse_dim(text, BY_NAME)
    assert (caught.value.line, caught.value.column) == (1, column)


def test_symbols_of_nested_calls() -> None:
    a, b = symbol("a"), symbol("b", 1)
    dim = dims.floordiv(dims.minimum(a, b) + 1, b)
    assert {s.name for s in dims.symbols_of(dim)} == {"a", "b"}
    assert dims.as_symbol(a) == Symbol("a")
    assert dims.as_symbol(a + 1) is None


@given(st.integers(-50, 50), st.integers(1, 9))
def test_ceildiv_of_numbers(a: int, b: int) -> None:
    assert dims.ceildiv(a, b) == -(-a // b)


def test_a_quotient_is_no_larger_than_what_is_divided() -> None:
    s = dims.symbol("s")
    half = dims.floordiv(s, 2)
    assert dims.le(half, s) is True
    assert dims.le(0, s - half) is True
    assert dims.le(2 * half, s) is True
    assert dims.le(s, 2 * half + 1) is True
    assert dims.le(s, 2 * half) is None
    assert dims.le(s, half) is None


@pytest.mark.parametrize("constant", [0, 1, -3])
def test_a_quotient_of_a_quotient_is_one_division(constant: int) -> None:
    """What convolutions with strides give, one after the other or as sympy has it."""
    s = dims.symbol("s", 1)
    stacked = dims.floordiv(dims.floordiv(s - 1, 4) + constant, 2)
    assert stacked == dims.floordiv(s - 1 + 4 * constant, 8)
    for value in range(-3, 40):
        assert dims.substitute(stacked, {dims.as_symbol(s): value}) == ((value - 1) // 4 + constant) // 2
