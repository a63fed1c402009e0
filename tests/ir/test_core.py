"""The graph itself: use lists, order, copies."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest

from regraft.errors import OptionError, RewriteError
from regraft.ir import (
    OPS,
    Arity,
    Builder,
    CallSite,
    DType,
    Leaf,
    Location,
    Op,
    OpDef,
    Operand,
    Recipe,
    Region,
    Rewriter,
    Symbol,
    TensorType,
    Use,
    Value,
    backward_slice,
    clone_op,
    clone_region,
    leaves,
    promote,
    size_names,
    unique_name,
)
from tests.ir.graphs import EVERY_ARITY, PURE, TABLE, U0, f32, finish, i64, module, region, rich, size


def chain(length: int) -> tuple[Region, list[Op]]:
    body = Region([f32(2)])
    builder = Builder(OPS, body)
    value: Value = body.args[0]
    for _ in range(length):
        value = builder.aten.relu(value)
    finish(builder, [value])
    return body, list(body.ops)


def test_uses_are_kept() -> None:
    body = Region([f32(2), f32(2)])
    x, y = body.args
    op = Builder(OPS, body).create("aten.add.Tensor", (x, x))
    assert list(x.uses) == [Use(op, 0), Use(op, 1)]
    assert x.users == [op]
    op.set_operand(1, y)
    assert list(x.uses) == [Use(op, 0)]
    assert list(y.uses) == [Use(op, 1)]
    op.drop_operands()
    assert not x.uses
    assert not y.uses


def test_operands_by_parameter() -> None:
    body = Region([f32(2)] * 4)
    a, b, c, d = body.args
    op = Builder(TABLE, body).create("my.every", (a, None, 7, (b, c), (None, d)))
    assert op.operands == (a, b, c, d)
    assert op.segments == (1, 0, 2, (False, True))
    assert (op.operand("one"), op.optional("maybe")) == (a, None)
    assert op.variadic("many") == (b, c)
    assert op.optional_list("holes") == (None, d)
    assert op.arguments() == {
        "one": a,
        "maybe": None,
        "many": (b, c),
        "holes": (None, d),
        "value": 7,
        "other": 0,
    }
    again = Op.create(EVERY_ARITY, (), op.arguments())
    assert (again.operands, again.segments, again.attrs) == (op.operands, op.segments, op.attrs)
    assert op.site.optional_list("holes") == (None, f32(2))
    with pytest.raises(KeyError, match="no operand 'two'"):
        op.operand("two")


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ((), {}, "missing operand 'self'"),
        ((1, 2), {}, "missing attribute|at most|missing"),
        ((1,) * 9, {}, "at most"),
        ((1,), {"what": 2}, "unexpected argument 'what'"),
        ((1,), {"self": 2}, "unexpected argument 'self'"),
    ],
)
def test_arguments_must_fit(args: Any, kwargs: Any, reason: str) -> None:
    definition = OPS["aten.add.Scalar"] if len(args) < 2 else OPS["aten.relu"]
    with pytest.raises(OptionError, match=reason):
        definition.bind(args, kwargs)


def test_unknown_op_has_a_suggestion() -> None:
    with pytest.raises(OptionError, match=r"no op 'aten\.rleu'; did you mean aten\.relu"):
        Builder(OPS, Region()).aten.rleu()


def test_order_survives_many_insertions() -> None:
    body = Region([f32(2)])
    rng = random.Random(0)
    expected: list[Op] = []
    for _ in range(600):
        place = rng.choice([0, len(expected) // 2, rng.randint(0, len(expected))])
        op = Op.create(OPS["aten.relu"], (body.args[0],))
        body.insert_before(expected[place] if place < len(expected) else None, op)
        expected.insert(place, op)
        if rng.random() < 0.2:
            victim = expected.pop(rng.randrange(len(expected)))
            body.remove(victim)
    assert list(body.ops) == expected
    assert list(body.reversed_ops) == expected[::-1]
    assert len(body) == len(expected)
    assert all(a.comes_before(b) for a, b in pairwise(expected))
    assert not expected[5].comes_before(expected[4])


def test_insertion_at_one_place_renumbers() -> None:
    body, ops = chain(2)
    for _ in range(100):
        body.insert_before(ops[1], Op.create(OPS["aten.relu"], (body.args[0],)))
    order = list(body.ops)
    assert all(a.comes_before(b) for a, b in pairwise(order))


def test_current_op_may_go_while_iterating() -> None:
    body = Region([f32(2)])
    for _ in range(4):
        Builder(OPS, body).aten.relu(body.args[0])
    for op in body.ops:
        op.drop_operands()
        body.remove(op)
    assert list(body.ops) == []
    assert len(body) == 0


def test_clone_shares_nothing_but_constants() -> None:
    original = rich()
    copy = original.clone()
    mine, theirs = list(original.main.walk()), list(copy.main.walk())
    assert [op.name for op in mine] == [op.name for op in theirs]
    assert not set(mine) & set(theirs)
    values = {v for op in mine for v in (*op.operands, *op.results)}
    assert not values & {v for op in theirs for v in (*op.operands, *op.results)}
    assert original.constants().keys() == copy.constants().keys()
    assert [r.hint for op in mine for r in op.results] == [r.hint for op in theirs for r in op.results]


def test_clone_maps_values() -> None:
    body, ops = chain(2)
    outside = Region([f32(2)]).args[0]
    mapping = {body.args[0]: outside}
    copy = clone_op(ops[0], mapping)
    assert copy.operands == (outside,)
    assert mapping[ops[0].result] is copy.result
    again = clone_region(body)
    assert again.args[0] is not body.args[0]
    assert [op.name for op in again.ops] == [op.name for op in ops]


def test_a_copy_over_other_values_has_their_sizes() -> None:
    """And names of its own for the sizes that its ops define, at any depth."""
    inner = region(
        lambda op, y: [op.create("my.find", (y,), symbols=(Symbol("u1"),)).result], [f32(size(U0), 3)]
    )

    def build(op: Builder, x: Value) -> list[Value]:
        found = op.create("my.find", (x,), symbols=(Symbol("u2"),)).result
        wide = op.aten.expand(x, (2, size(U0), 3))
        op.create("my.draw", (x,), regions=[clone_region(inner)])
        return [found, wide]

    source = region(build, [f32(size(U0), 3)], [U0])
    body = Region([f32(5, 3)])
    builder = Builder(TABLE, body)
    first, second = (builder.copy(source, body.args) for _ in range(2))
    finish(builder, [*first, *second])
    assert [value.type for value in (first[1], second[1])] == [f32(2, 5, 3)] * 2
    assert [value.type for value in (first[0], second[0])] == [
        i64(size(Symbol(n)), 1) for n in ("u2", "u2_2")
    ]
    defined = [symbol.name for op in body.walk() for symbol in op.symbols]
    assert len(set(defined)) == len(defined) == 4
    assert size_names(body) == set(defined)
    assert [op.attr("size") for op in body.ops if op.name == "aten.expand"] == [(2, 5, 3)] * 2
    assert source.result_types == (i64(size(Symbol("u2")), 1), f32(2, size(U0), 3)), "it stays as it is"


def test_a_copy_needs_a_value_with_each_size() -> None:
    source = region(lambda op, x: [x], [f32(2 * size(U0))], [U0])
    body = Region([f32(4)])
    with pytest.raises(RewriteError, match="no argument of the region has the size u0"):
        Builder(TABLE, body).copy(source, body.args)


def test_backward_slice_is_in_order() -> None:
    body = Region([f32(2)])
    builder = Builder(OPS, body)
    a = builder.aten.relu(body.args[0])
    b = builder.aten.neg(body.args[0])
    c = builder.aten.add.Tensor(b, a)
    builder.aten.relu(c)
    assert backward_slice([c]) == [a.op, b.op, c.op]


def test_erasing_what_is_used_is_refused() -> None:
    body, ops = chain(2)
    rewriter = Rewriter(OPS, "Test")
    with pytest.raises(RewriteError, match=r"'Test' erases aten\.relu, but aten\.relu still uses it"):
        rewriter.erase(ops[0])
    assert list(body.ops) == ops


def test_an_op_stands_in_one_region() -> None:
    body, ops = chain(1)
    with pytest.raises(AssertionError, match="in a region already"):
        body.append(ops[0])
    other, _ = chain(1)
    with pytest.raises(AssertionError, match="not in this region"):
        other.remove(ops[0])
    with pytest.raises(AssertionError, match="in different regions"):
        ops[0].comes_before(next(other.ops))


def test_region_without_terminator() -> None:
    with pytest.raises(AssertionError, match="no terminator"):
        _ = Region().results


def test_constants_come_before_their_users() -> None:
    names = list(rich().constants().values())
    assert names.index("layers.0.weight") < names.index("layers.0.weight_t")
    leaf = Leaf("w", f32(2))
    inner = Recipe(region(lambda op: [op.aten.neg(op.constant(leaf))]))
    outer = Recipe(region(lambda op: [op.aten.add.Tensor(op.constant(inner), op.constant(leaf))]))
    assert list(leaves(outer)) == [leaf, leaf]
    made = module(lambda op: [op.constant(outer), op.constant(leaf)])
    assert made.constants() == {leaf: "w", inner: "recipe", outer: "recipe_2"}


def test_unique_names() -> None:
    taken: set[str] = set()
    assert [unique_name("x", taken) for _ in range(3)] == ["x", "x_2", "x_3"]


def test_location() -> None:
    place = Location("a.py", 3, "layer.0").tagged("First").tagged("Second")
    assert place.made_by == ("First", "Second")
    assert str(place) == "a.py:3 in layer.0"
    assert str(Location()) == "unknown source"


def test_symbols_reach_the_type_rule() -> None:
    def infer(site: CallSite) -> TensorType:
        return i64(*site.symbols)

    find = OpDef("my.find2", (Operand("x", Arity.OPTIONAL),), infer, PURE)
    op = Op.create(find, (), symbols=(U0,))
    assert op.result.type == i64(size(U0))
    assert op.site.symbols == (size(U0),)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (DType.F16, DType.BF16, DType.F32),
        (DType.U8, DType.I8, DType.I16),
        (DType.BOOL, DType.U8, DType.U8),
        (DType.I64, DType.F16, DType.F16),
        (DType.F64, DType.C64, DType.C128),
        (DType.I32, DType.I64, DType.I64),
    ],
)
def test_promotion(a: DType, b: DType, expected: DType) -> None:
    assert promote(a, b) == promote(b, a) == expected


def test_import_loads_no_heavy_library() -> None:
    code = "import sys, regraft.ir; print([m for m in ('torch', 'sympy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
