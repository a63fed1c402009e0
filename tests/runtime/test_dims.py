"""Sizes at run time: what is no size is refused, and what is one has the IR's value."""

from __future__ import annotations

import pytest
from hypothesis import assume, given

from regraft.errors import ArtefactError
from regraft.ir import dims
from regraft.runtime import compile_dim
from tests.ir import strategies


@given(strategies.trees(), strategies.sizes())
def test_is_the_value_in_the_ir(tree: strategies.Tree, sizes: strategies.Sizes) -> None:
    try:
        dim = strategies.build(tree)
        expected = strategies.value(tree, sizes)
    except strategies.Undefined:
        assume(False)
        return
    named = {symbol.name: value for symbol, value in sizes.items()}
    assert compile_dim(dim if isinstance(dim, int) else str(dim))(named) == expected
    assert dims.substitute(dim, sizes) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (12, 12),
        ("12", 12),
        ("s0", 5),
        ("-s0", -5),
        ("2*s0 + floordiv(s1, 4) - 1", 12),
        ("min(s0, max(s1, mod(s0, 3)))", 5),
        ("floordiv(-s0, 3)", -2),
        ("mod(-s0, 3)", 1),
    ],
)
def test_examples(text: str | int, expected: int) -> None:
    assert compile_dim(text)({"s0": 5, "s1": 13}) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s0 +",
        "s0 / 2",
        "s0 // 2",
        "s0 % 2",
        "s0 ** 2",
        "2.5",
        "1e3",
        "True + 1",
        "'a'",
        "s0.real",
        "s0[0]",
        "s0 if s0 else 1",
        "s0 and s1",
        "s0 < s1",
        "lambda: 1",
        "(s0 := 1)",
        "[s0]",
        "f'{s0}'",
        "__import__('os')",
        "open('/etc/passwd')",
        "print(s0, s1)",
        "max(s0)",
        "max(s0, s1, 1)",
        "max(s0, key=s1)",
        "max(*s0, s1)",
        "max.__self__",
        "(max)(s0, s1)()",
        "s0; s1",
        "s0\ns1",
        "1 " * 6000,
        "-" * 9000 + "1",
        "(" * 4000 + "1" + ")" * 4000,
        "+".join(["s0"] * 3000),
        "9" * 5000,
        "a\0b",
    ],
    ids=lambda text: text[:20].replace("\n", " ").replace("\0", " "),
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ArtefactError, match="is not a size expression"):
        compile_dim(text)


def test_unknown_symbols_are_errors_of_the_call() -> None:
    for text in ("s9", "s9 + 1", "__builtins__"):
        size = compile_dim(text)
        with pytest.raises((KeyError, NameError, TypeError)):
            _ = size({"s0": 1}) + 0
