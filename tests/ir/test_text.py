"""The text form: what is printed is read back the same, and what is no text of it is refused politely."""

from __future__ import annotations

import contextlib
import cProfile
import random
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings

from regraft.errors import ParseError, VerifyError
from regraft.ir import (
    OPS,
    AttrSpec,
    Builder,
    DType,
    Leaf,
    Module,
    OpDef,
    Region,
    Symbol,
    TensorType,
    dims,
    parse_module,
    print_function,
    print_module,
    print_op,
    print_region,
    same_attr,
    structurally_equal,
    verify,
)
from tests.ir import strategies
from tests.ir.graphs import PURE, TABLE, f32, finish, module, region, rich

RICH = print_module(rich())


def round_trip(before: Module) -> Module:
    text = print_module(before)
    after = parse_module(text, TABLE)
    assert structurally_equal(before, after) is True
    assert print_module(after) == text
    return after


def test_round_trip_of_everything() -> None:
    after = round_trip(rich())
    verify(after, "captured")
    before = rich()
    locations = [op.loc for op in before.main.walk()]
    assert [op.loc for op in after.main.walk()] == locations


def test_text_without_locations() -> None:
    text = print_module(rich(), locations=False)
    assert "loc(" not in text
    assert structurally_equal(rich(), parse_module(text, TABLE)) is True


def test_small_text() -> None:
    def forward(op: Builder, x: Any, calls: Any) -> list[Any]:
        w = op.constant(Leaf("embed.weight", f32(8, 4)))
        return [op.aten.softmax.int(op.aten.linear(x, w), dim=1), op.aten.exp(calls)]

    types = [f32(dims.symbol("B", 2, None, 8), 4), f32(1)]
    made = module(forward, types, aliases={1: 1}, state=(Leaf("norm.calls", f32(1)),))
    assert print_module(made) == (
        "module {\n"
        "  leaf @embed.weight : f32[8, 4]\n"
        "  func @forward(%0: f32[B, 4], %1: f32[1]) where B in [2, inf] % 8 -> (f32[B, 8], f32[1]) "
        'state("norm.calls") aliases {1: 1} {\n'
        "    %2 = rg.const @embed.weight : f32[8, 4]\n"
        "    %3 = aten.linear(%0, %2, _) : f32[B, 8]\n"
        "    %4 = aten.softmax.int(%3) {dim = 1} : f32[B, 8]\n"
        "    %5 = aten.exp(%1) : f32[1]\n"
        "    cf.yield([%4, %5])\n"
        "  }\n"
        "}\n"
    )


def test_parts_are_printed_with_the_names_of_the_whole() -> None:
    main = rich().main
    lines = print_module(rich()).splitlines()
    relu = next(op for op in main.walk() if op.name == "aten.relu")
    assert f"    {print_op(relu)}" in lines
    assert f"  {print_op(relu)}" in print_function(main).splitlines()
    assert print_op(relu) in print_region(main.body).splitlines()
    loop = next(op for op in main.walk() if op.name == "cf.while")
    printed = print_op(loop).splitlines()
    start = lines.index(f"      {printed[0]}")
    assert [f"      {line}" for line in printed] == lines[start : start + len(printed)]


@pytest.mark.parametrize(
    "hint", ["x", "a b", "0", "007", "0a", ".x", "%", "é", "x" * 300, "a.b$c", "none", "_"]
)
def test_hints_become_unique_names(hint: str) -> None:
    def forward(op: Builder, x: Any) -> list[Any]:
        values = [op.aten.relu(x) for _ in range(3)]
        for value in values:
            value.hint = hint
        return values

    made = module(forward, [f32(2)])
    made.main.args[0].hint = f"{hint}_2"
    round_trip(made)


@pytest.mark.parametrize("name", ["w", "layers.0.w", "", "a b", '"', "\\", "\n", "é", "0", "recipe", "@w"])
def test_names_of_leaves(name: str) -> None:
    def forward(op: Builder) -> list[Any]:
        first, twin = Leaf(name, f32(2)), Leaf(name, f32(2))
        return [op.constant(first), op.constant(twin), op.constant(first)]

    after = round_trip(module(forward))
    values = [op.attr("value") for op in after.main.walk() if op.name == "rg.const"]
    assert values[0] is values[2]
    assert values[0] is not values[1]


@settings(max_examples=400)
@given(strategies.attrs())
def test_attributes(value: Any) -> None:
    holder = OpDef("my.holder", (AttrSpec("value", "default"),), lambda site: (), PURE)
    table = TABLE.extended([holder])
    body = Region([TensorType(DType.F32, (dims.as_expr(s),)) for s in strategies.SYMBOLS])
    builder = Builder(table, body)
    op = builder.create("my.holder", (value,))
    finish(builder, [])
    made = module(lambda op: [])
    made.main.body, made.main.symbols = body, strategies.SYMBOLS
    text = print_module(made)
    (again,) = [each for each in parse_module(text, table).main.walk() if each.name == "my.holder"]
    assert same_attr(again.attr("value"), op.attr("value"))
    assert print_module(parse_module(text, table)) == text


def test_defaults_are_left_out_by_kind() -> None:
    defaults = {"flag": False, "number": 1, "ratio": 0.0, "list": ()}
    holder = OpDef("my.holder", tuple(AttrSpec(n, v) for n, v in defaults.items()), lambda site: (), PURE)
    table = TABLE.extended([holder])
    body = Region()
    builder = Builder(table, body)
    builder.create("my.holder", (False, 1, 0.0, ()))
    builder.create("my.holder", (0, True, -0.0, (0,)))
    finish(builder, [])
    first, second, _ = print_region(body).splitlines()
    assert first == "my.holder()"
    assert second == "my.holder() {flag = 0, number = true, ratio = -0.0, list = (0,)}"


def test_storages_reach_the_leaves() -> None:
    def forward(op: Builder) -> list[Any]:
        return [op.constant(Leaf("w", f32(2)))]

    text = print_module(module(forward))
    storage = object()
    (leaf,) = parse_module(text, storages={"w": storage}).constants()
    assert isinstance(leaf, Leaf)
    assert leaf.storage is storage
    with pytest.raises(ParseError, match="no storage was given for the leaf 'w'"):
        parse_module(text, storages={})


def test_comments_and_spaces() -> None:
    text = "// a comment\nmodule{func@f(%x:f32[2])->(f32[2]){cf.yield([%x])// the end\r\n}}"
    after = parse_module(text)
    assert print_region(after.main.body) == "cf.yield([%x])\n"


# -- malformed texts ---------------------------------------------------------------------------

HEAD = "module {\n  leaf @w : f32[2]\n  func @f(%x: f32[n]) where n in [0, 9] -> (f32[n]) {\n"
MALFORMED = {
    "": (1, 1, "expected 'module' at the beginning, found the end of the text"),
    "modul {}": (1, 1, "expected 'module'"),
    "module {": (1, 9, "expected 'leaf', 'recipe', 'opaque', 'func' or '}'"),
    "module {} x": (1, 11, "expected the end of the text"),
    "module {\n  leaf w : f32[2]\n}": (2, 8, "expected a name such as @weight, found 'w'"),
    "module {\n leaf @w f32[2]\n}": (2, 10, "expected ':' and the type"),
    "module {\n leaf @w : g32[2]\n}": (2, 12, "unknown type 'g32'; there are token, bool"),
    "module {\n leaf @w : f32 2\n}": (2, 16, "expected '[' before the sizes"),
    "module {\n leaf @w : f32[n]\n}": (2, 16, "unknown symbol 'n'; none is known here"),
    "module {\n leaf @w : f32[1]\n leaf @w : f32[1]\n}": (3, 7, "two constants @w"),
    "module {\n leaf @w : token\n}": (2, 12, "a constant is a tensor"),
    'module {\n leaf @"w : f32[1]\n}': (2, 7, "the string is not closed"),
    'module {\n leaf @"\\q" : f32[1]\n}': (2, 7, "unknown escape"),
    "module {\n\tleaf @w ! f32[1]\n}": (2, 10, "unexpected character '!'"),
    "module {\n opaque rg.const(value)\n}": (2, 9, "is not opaque"),
    "module {\n opaque a.b(%x, x)\n}": (2, 9, "two parameters"),
    "module {\n opaque a.b() traits (brave)\n}": (2, 23, "unknown trait 'brave'"),
    "module {\n recipe @r : f32[2] {\n }\n}": (3, 2, "expected a terminator"),
    "module { func @f() -> (f32[1]) { cf.yield([]) } }": (1, 23, "the function yields ()"),
    "module { func @f() -> () { cf.yield([]) } func @f() -> () { cf.yield([]) } }": (
        1,
        48,
        "two functions @f",
    ),
    "module { func @f(%x: f32[1], %x: f32[1]) -> () {": (1, 30, "%x is defined already"),
    "module { func @f(%x: f32[1]": (1, 28, "expected ')' after the arguments"),
    "module { func @f(%x: f32[n]) where n in [0, 2], n in [0, 3] -> () {": (1, 49, "defined already"),
    "module { func @f(%x: f32[n]) where n in 2 -> () {": (1, 41, "expected '['"),
    "module { func @f() -> () aliases {0: 1, 0: 2} {": (1, 34, "two aliases"),
    'module { func @f() -> () aliases {0: "b"} {': (1, 38, "expected a whole number"),
    'module { func @f() -> () state("b") {': (1, 31, "1 names of state for 0 arguments"),
    'module { func @f(%t: token) -> () state("b") {': (1, 40, "the state 'b' is a token"),
    HEAD: (4, 1, "expected an op, a value or '}', found the end of the text"),
    HEAD + "}": (4, 1, "expected a terminator such as cf.yield(...)"),
    HEAD + "    %y = aten.rleu(%x) : f32[n]\n": (4, 10, "unknown op 'aten.rleu'; did you mean aten.relu"),
    HEAD + "    %y = aten.relu(%z) : f32[n]\n": (4, 20, "%z is not defined"),
    HEAD + "    %y = aten.relu(_) : f32[n]\n": (4, 20, "expected a value such as %x for 'self', found '_'"),
    HEAD + "    %y = aten.relu(%x, %x) : f32[n]\n": (
        4,
        22,
        "expected ')' after the operands of aten.relu (self)",
    ),
    HEAD + "    %y = aten.cat(%x) : f32[n]\n": (4, 19, "expected '[' since the operand 'tensors'"),
    HEAD + "    %y = aten.cat([%x %x]) : f32[n]\n": (4, 23, "expected ',' or ']'"),
    HEAD + "    %y = aten.linear(%x, %x) : f32[n]\n": (4, 28, "expected ',' before the operand 'bias'"),
    HEAD + "    %y = aten.relu(%x)\n": (5, 1, "expected ':' and the types"),
    HEAD + "    %y = aten.relu(%x) : f32[m]\n": (4, 30, "unknown symbol 'm'; known here: n"),
    HEAD + "    %y = aten.relu(%x) : f32[n], f32[n]\n": (4, 5, "2 types for 1 results"),
    HEAD + "    %x = aten.relu(%x) : f32[n]\n": (4, 5, "%x is defined already"),
    HEAD + "    %y aten.relu(%x) : f32[n]\n": (4, 8, "expected '=' after the results"),
    HEAD + "    %y = aten.softmax.int(%x) : f32[n]\n": (4, 10, "needs the attribute 'dim'"),
    HEAD + "    %y = aten.softmax.int(%x) {dmi = 1} : f32[n]\n": (4, 32, "no attribute 'dmi'; it has"),
    HEAD + "    %y = aten.softmax.int(%x) {dim = 1, dim = 1} : f32[n]\n": (4, 41, "given twice"),
    HEAD + "    %y = aten.softmax.int(%x) {dim = } : f32[n]\n": (4, 38, "expected the value of an attribute"),
    HEAD + "    %y = aten.softmax.int(%x) {dim = (1)} : f32[n]\n": (4, 40, "a tuple of one is written (x,)"),
    HEAD + '    %y = aten.softmax.int(%x) {dim = nan("7")} : f32[n]\n': (4, 42, "16 hexadecimal digits"),
    HEAD + "    %y = aten.softmax.int(%x) {dim = @v} : f32[n]\n": (4, 38, "unknown constant '@v'"),
    HEAD + "    %y = rg.const() {value = 3} : f32[n]\n": (4, 10, "a constant such as @weight"),
    HEAD + "    %y = cf.cond(%x, []) ({ cf.yield([]) }) : f32[n]\n": (4, 26, "has 2 regions, found 1"),
    HEAD + "    %y = cf.while([]) ({ cf.yield([%x]) }, {}) : f32[n]\n": (4, 36, "a value of an outer region"),
    HEAD + "    cf.yield([%x])\n    cf.yield([%x])\n": (5, 5, "expected '}' after cf.yield"),
    HEAD + "    %y = aten.relu(%x) : f32[n] loc(12)\n": (4, 37, "expected ')', found '12'"),
    HEAD + "    %y = aten.relu(%x) defines n in [0, 3] : f32[n]\n": (4, 32, "'n' is defined already"),
}


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_malformed(text: str) -> None:
    line, column, reason = MALFORMED[text]
    with pytest.raises(ParseError, match=re.escape(reason)) as caught:
        parse_module(text)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert caught.value.source_line == text.split("\n")[line - 1]


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "    %y = aten.softmax.int(%x) {dim = " + "(" * 5000,
        HEAD + "    %y = cf.while([]) ({" + "%y = cf.while([]) ({" * 5000,
        "module { leaf @w : f32[" + "min(" * 5000,
        "module { leaf @w : f32[" + "9" * 9999 + "] }",
    ],
    ids=["tuples", "regions", "sizes", "digits"],
)
def test_depth_and_length_are_limited(text: str) -> None:
    with pytest.raises(ParseError, match=r"deeper|too many digits"):
        parse_module(text)


def test_work_is_linear() -> None:
    def calls(count: int) -> int:
        body = "".join(f"    %a{i} = aten.relu(%x) : f32[n]\n" for i in range(count))
        text = f"{HEAD}{body}    cf.yield([%x])\n  }}\n}}"
        profile = cProfile.Profile()
        made = profile.runcall(parse_module, text)
        assert len(made.main.body) == count + 1
        return sum(entry.callcount for entry in profile.getstats())

    calls(1)
    few, some, many = calls(100), calls(200), calls(1100)
    assert many - few <= 11 * (some - few)


PIECES = re.findall(r"\s+|[A-Za-z_][\w.]*|%\w+|@\S+|\d+|.", RICH)


def mutated(rng: random.Random) -> str:
    """``RICH`` with a few tokens removed, doubled, swapped or replaced, or with a stray character."""
    pieces = list(PIECES)
    for _ in range(rng.randint(1, 3)):
        i, j = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        kind = rng.randrange(6)
        if kind == 0:
            del pieces[i : i + rng.randint(1, 4)]
        elif kind == 1:
            pieces[i:i] = pieces[j : j + rng.randint(1, 30)]
        elif kind == 2:
            pieces[i], pieces[j] = pieces[j], pieces[i]
        elif kind == 3:
            pieces[i] = rng.choice(PIECES)
        elif kind == 4:
            pieces[i] += rng.choice('\\"\0{}()[]%@-.é\n\ud800 0x')
        else:
            pieces = pieces[: max(i, 1)]
    return "".join(pieces)


def test_mutated_texts_give_parse_errors_only() -> None:
    rng = random.Random(20240607)
    end = time.monotonic() + 2
    parsed = 0
    while time.monotonic() < end:
        text = mutated(rng)
        try:
            made = parse_module(text, TABLE)
        except ParseError:
            continue
        parsed += 1
        # What parses can be printed and parsed again, and the verifier has an opinion of it.
        assert structurally_equal(made, parse_module(print_module(made), TABLE)) is True
        with contextlib.suppress(VerifyError):
            verify(made, "canonicalize")
    assert parsed


# -- structural equality -----------------------------------------------------------------------


def _difference(a: Module, b: Module) -> str:
    found = structurally_equal(a, b)
    assert not found
    return str(found)


def _one(build: Any, *types: TensorType) -> Module:
    return module(build, types or [f32(2)])


RELU = _one(lambda op, x: [op.aten.relu(x)])
DIFFERENCES = {
    "@forward / op 0 (aten.relu): op: aten.relu and aten.neg": _one(lambda op, x: [op.aten.neg(x)]),
    "@forward / op 1 (cf.yield): op: cf.yield and aten.relu": _one(
        lambda op, x: [op.aten.relu(op.aten.relu(x))]
    ),
    "@forward / op 1 (cf.yield): operand 0 is another value": _one(lambda op, x: [op.aten.relu(x), x][1:]),
    "@forward / op 1 (cf.yield): operand segments: (1,) and (2,)": _one(lambda op, x: [op.aten.relu(x), x]),
    "@forward: argument types: ['f32[2]'] and ['f32[3]']": _one(lambda op, x: [op.aten.relu(x)], f32(3)),
}


@pytest.mark.parametrize("expected", DIFFERENCES)
def test_differences_are_named(expected: str) -> None:
    assert structurally_equal(RELU, RELU.clone()) is True
    assert _difference(RELU, DIFFERENCES[expected]) == expected


def test_attributes_count() -> None:
    def soft(axis: int) -> Module:
        return _one(lambda op, x: [op.aten.softmax.int(x, axis)])

    assert "attribute 'dim' is 0 and -1" in _difference(soft(0), soft(-1))


def test_weights_are_told_apart_by_name_and_tying() -> None:
    def two(first: str, second: str, tied: bool = False) -> Module:
        a = Leaf(first, f32(2))
        b = a if tied else Leaf(second, f32(2))
        return module(lambda op: [op.aten.add.Tensor(op.constant(a), op.constant(b))])

    assert structurally_equal(two("a", "b"), two("a", "b")) is True
    assert not structurally_equal(two("a", "b"), two("b", "a"))
    assert not structurally_equal(two("a", "a"), two("a", "a", tied=True))


def test_nan_equals_itself_and_zeros_differ() -> None:
    assert same_attr((float("nan"), 1), (float("nan"), 1))
    assert not same_attr(0.0, -0.0)
    assert not same_attr(1, True)
    assert not same_attr(1, 1.0)
    assert not same_attr((1,), (1, 1))


def test_symbols_and_aliases_count() -> None:
    def made(high: int | None, alias: int) -> Module:
        size = dims.as_expr(Symbol("n", 0, high))
        return module(lambda op, x: [op.aten.relu(x)], [f32(size)], aliases={0: alias})

    assert "symbols" in _difference(made(1, 0), made(2, 0))
    assert "aliases" in _difference(made(1, 0), made(1, 1))


def test_state_counts() -> None:
    def made(*names: str) -> Module:
        state = tuple(Leaf(name, f32(2)) for name in names)
        return module(lambda op, x: [op.aten.relu(x)], [f32(2)], state=state)

    assert "state" in _difference(made("a"), made("b"))
    assert "state" in _difference(made("a"), made())


def test_region_arguments_count() -> None:
    def made(text: str) -> Module:
        body = region(lambda op, y: [op.aten.relu(y)], [f32(int(text))])
        return module(lambda op, x: [op.create("my.draw", (x,), regions=[body]).results[0]], [f32(2)])

    assert "op 0 (my.draw) / region 0: argument types" in _difference(made("2"), made("3"))


def test_the_table_is_the_default() -> None:
    assert len(OPS) > 100
    with pytest.raises(ParseError, match=r"unknown op 'my\.every'"):
        parse_module(RICH)
