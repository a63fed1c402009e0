"""Programs that hypothesis makes give the same before and after their conversion, whatever path they take."""

from __future__ import annotations

import itertools
import linecache
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.compiler import control
from tests.compiler.capture.control.both_paths import converted

_FILES = itertools.count()
_TENSORS = ("x", "y", "z")
_NUMBERS = ("m", "n")


def function_of(source: str) -> Any:
    """The function `f` that ``source`` defines, which can be read again."""
    file = f"/programs/{next(_FILES)}.py"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"torch": torch}
    exec(compile(source, file, "exec"), namespace)
    return namespace["f"]


def plain(value: Any) -> Any:
    """``value`` with numbers in place of what stands for them."""
    if isinstance(value, tuple):
        return tuple(plain(each) for each in value)
    if isinstance(value, control.Number):
        return value.tensor.item()
    return value.item() if isinstance(value, Tensor) else value


@st.composite
def value(draw: st.DrawFn, depth: int = 2) -> str:
    """An expression of numbers and tensors."""
    names = st.sampled_from((*_TENSORS, *_NUMBERS))
    if depth == 0:
        return draw(names | st.integers(-3, 3).map(str))
    form = draw(st.sampled_from(["{a} + {b}", "{a} - {b}", "{a} * 2", "({a} if {t} else {b})", "{a}"]))
    a, b = draw(value(depth - 1)), draw(value(depth - 1))
    return f"({form.format(a=a, b=b, t=draw(condition(0)))})"


@st.composite
def condition(draw: st.DrawFn, depth: int = 1) -> str:
    """A condition, of tensors or of numbers alone."""
    names = st.sampled_from((*_TENSORS, *_NUMBERS))
    if depth == 0:
        relation = draw(st.sampled_from(["<", ">", "<=", "==", "!="]))
        return f"{draw(names)} {relation} {draw(st.integers(-4, 4))}"
    one, other = draw(condition(depth - 1)), draw(condition(depth - 1))
    form = draw(st.sampled_from(["{a}", "{a} and {b}", "{a} or {b}", "not ({a})", "-9 < {n} < 3"]))
    return form.format(a=one, b=other, n=draw(names))


@st.composite
def block(draw: st.DrawFn, depth: int, loops: tuple[str, ...]) -> list[str]:
    """Lines, indented as one block; ``loops`` are the counters of those around it."""
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        lines += draw(statement(depth, loops))
    return [f"    {line}" for line in lines]


@st.composite
def statement(draw: st.DrawFn, depth: int, loops: tuple[str, ...]) -> list[str]:
    kinds = ["tensor", "number"]
    if depth > 0:
        kinds += ["if", "if", "if else", "elif", "for", "while", "with"]
    if loops:
        kinds += ["break", "continue"]
    kinds += ["return"] if draw(st.integers(0, 3)) == 0 else []
    kind = draw(st.sampled_from(kinds))
    inner = block(depth - 1, loops)
    if kind == "tensor":
        return [f"{draw(st.sampled_from(_TENSORS))} = one * {draw(value())}"]
    if kind == "number":
        return [f"{draw(st.sampled_from(_NUMBERS))} += {draw(st.integers(-2, 2))}"]
    if kind in ("break", "continue"):
        return [kind]
    if kind == "return":
        return [f"return x, {draw(value())} * one, z, m, n"]
    if kind == "with":
        return ["with torch.no_grad():", *draw(inner)]
    if kind.startswith(("if", "elif")):
        lines = [f"if {draw(condition())}:", *draw(inner)]
        lines += [f"elif {draw(condition())}:", *draw(inner)] if kind == "elif" else []
        return [*lines, "else:", *draw(inner)] if kind != "if" else lines
    counter = f"k{len(loops)}"
    nested = block(depth - 1, (*loops, counter))
    last = ["else:", *draw(inner)] if draw(st.booleans()) else []
    if kind == "for":
        iterable = draw(st.sampled_from(["range(3)", "[2, -1, 1]", "[one, one * 2]", "()"]))
        return [f"for {counter} in {iterable}:", *draw(nested), f"    y = y + {counter}", *last]
    tested = draw(st.sampled_from(["True", draw(condition())]))
    stop = draw(st.sampled_from([f"{counter} >= 3", f"x + {counter} > 4 or {counter} > 3"]))
    return [
        f"{counter} = 0",
        f"while {tested}:",
        f"    {counter} += 1",
        f"    if {stop}:",
        "        break",
        *draw(nested),
        *last,
    ]


@settings(max_examples=25, deadline=None, report_multiple_bugs=False)
@given(block(3, ()), st.lists(st.sampled_from([-2.0, 0.0, 1.0, 5.0]), min_size=3, max_size=3))
def test_converted_programs_compute_the_same(lines: list[str], values: list[float]) -> None:
    source = "\n".join(
        ["def f(x, y, z):", "    m, n, one = 0, 1, x.new_ones(())", *lines, "    return x, y, z, m, n"]
    )
    source = source.replace("one = 0, 1,", "k0, k1, k2, one = 0, 1, 0, 0, 0,")
    function = function_of(source)
    run, _, _ = converted(function)
    arguments = [torch.tensor(v, dtype=torch.float64) for v in values]
    assert plain(run(*arguments)) == plain(function(*arguments)), source
