"""Each rule of the verifier, broken once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from regraft.errors import OptionError, VerifyError
from regraft.ir import (
    OPS,
    STAGES,
    Builder,
    DType,
    Function,
    Leaf,
    Location,
    Module,
    Op,
    Recipe,
    Region,
    Symbol,
    TensorType,
    Trait,
    Use,
    Value,
    dims,
    verify,
    verify_ops,
)
from tests.ir.graphs import EVERY_ARITY, S0, TABLE, U0, f32, finish, i64, module, region, rich, size


def refusal(broken: Module, stage: str | None = None, **more: Any) -> VerifyError:
    with pytest.raises(VerifyError) as caught:
        verify(broken, stage, **more)
    return caught.value


def two_relus() -> tuple[Module, Op, Op]:
    made = module(lambda op, x: [op.aten.relu(op.aten.relu(x))], [f32(1, size(S0), 64)])
    first, second, _ = made.main.body.ops
    return made, first, second


@pytest.mark.parametrize("stage", [None, "captured"])
def test_a_sound_module_passes(stage: str | None) -> None:
    verify(rich(), stage)
    made, first, second = two_relus()
    for each in (None, "captured", *STAGES):
        verify(made, each, table=OPS)
        verify_ops([first, second], each, table=OPS)


def test_message() -> None:
    def forward(op: Builder, x: Value) -> Sequence[Value]:
        for number in range(30):
            op.loc = Location("model.py", number, "encoder")
            x = op.aten.relu(x)
        return [x]

    made = module(forward, [f32(2)])
    culprit = list(made.main.body.ops)[15]
    culprit.results[0].type = f32(3)
    error = refusal(made, after_pass="FuseEverything")
    assert error.after_pass == "FuseEverything"
    assert error.path == "forward.body.op[15]"
    assert error.location == "model.py:15 in encoder"
    assert error.message == "result 0 is f32[3], expected f32[2]"
    lines = str(error).splitlines()
    assert str(error).count("expected f32[2]") == 1
    assert str(error).count("FuseEverything") == 1
    (caret,) = [i for i, line in enumerate(lines) if line.strip() == "^" * len(line.strip()) and line.strip()]
    assert lines[caret - 1].strip() == "%16 = aten.relu(%15) : f32[3]"
    assert len(lines) == 4 + 21 + 1


def test_path_goes_through_regions_and_recipes() -> None:
    made = rich()
    inner = next(op for op in made.main.walk() if op.name == "cf.while").regions[1]
    next(inner.ops).results[0].type = i64()
    path = refusal(made).path
    assert path is not None
    assert path.endswith(".region[1].op[0].region[1].op[0]")
    recipe = Recipe(region(lambda op: [op.aten.neg(op.constant(Leaf("w", f32(2))))]), "r")
    list(recipe.body.ops)[1].attrs["what"] = 1
    error = refusal(module(lambda op: [op.constant(recipe)]))
    assert error.path == "forward.body.op[0].recipe[r].op[1]"


# -- structure ---------------------------------------------------------------------------------


def _forget_use(m: Module, first: Op, second: Op) -> None:
    del first.result.uses[Use(second, 0)]


def _stray_use(m: Module, first: Op, second: Op) -> None:
    first.result.uses[Use(first, 3)] = None


def _detached_user(m: Module, first: Op, second: Op) -> None:
    Op.create(OPS["aten.relu"], (first.result,))


def _argument_with_detached_user(m: Module, first: Op, second: Op) -> None:
    Op.create(OPS["aten.relu"], (m.main.args[0],))


def _foreign_result(m: Module, first: Op, second: Op) -> None:
    first.results[0].owner = second


def _wrong_index(m: Module, first: Op, second: Op) -> None:
    first.results[0].index = 1


def _wrong_argument(m: Module, first: Op, second: Op) -> None:
    m.main.args[0].index = 1


def _wrong_parent(m: Module, first: Op, second: Op) -> None:
    second.parent = Region()


def _disorder(m: Module, first: Op, second: Op) -> None:
    setattr(first, "_order", 1 << 60)  # noqa: B010 - there is no public way to break it


def _no_terminator(m: Module, first: Op, second: Op) -> None:
    terminator = m.main.body.terminator
    terminator.drop_operands()
    m.main.body.remove(terminator)


def _two_terminators(m: Module, first: Op, second: Op) -> None:
    finish(Builder(OPS, m.main.body), [second.result])


def _empty(m: Module, first: Op, second: Op) -> None:
    for op in list(m.main.body.reversed_ops):
        op.drop_operands()
        m.main.body.remove(op)


def _segments(m: Module, first: Op, second: Op) -> None:
    first.segments = (0,)


def _segment_total(m: Module, first: Op, second: Op) -> None:
    m.main.body.terminator.segments = (2,)


def _segment_count(m: Module, first: Op, second: Op) -> None:
    first.segments = (1, 0)


def _extra_region(m: Module, first: Op, second: Op) -> None:
    inner = region(lambda op: [])
    first.regions = (inner,)
    inner.parent = first


def _orphan_region(m: Module, first: Op, second: Op) -> None:
    first.regions = (region(lambda op: []),)


def _extra_attr(m: Module, first: Op, second: Op) -> None:
    first.attrs["what"] = 1


def _later_operand(m: Module, first: Op, second: Op) -> None:
    first.set_operand(0, second.result)


def _detached_operand(m: Module, first: Op, second: Op) -> None:
    first.set_operand(0, Op.create(OPS["aten.relu"], (Region([first.result.type]).args[0],)).result)


def _strange_operand(m: Module, first: Op, second: Op) -> None:
    first.set_operand(0, Region([first.result.type]).args[0])


def _wrong_dtype(m: Module, first: Op, second: Op) -> None:
    second.results[0].type = first.result.tensor.with_dtype(DType.F64)


def _wrong_rank(m: Module, first: Op, second: Op) -> None:
    second.results[0].type = f32(1, size(S0))


def _wrong_static_size(m: Module, first: Op, second: Op) -> None:
    second.results[0].type = f32(1, size(S0), 65)


def _refuted_size(m: Module, first: Op, second: Op) -> None:
    second.results[0].type = f32(1, size(S0) + 1, 64)


def _unknown_symbol(m: Module, first: Op, second: Op) -> None:
    second.results[0].type = f32(1, dims.symbol("n"), 64)


def _other_range(m: Module, first: Op, second: Op) -> None:
    second.results[0].type = f32(1, dims.symbol("s0", 2, 512), 64)


def _symbol_again(m: Module, first: Op, second: Op) -> None:
    first.symbols = (S0,)


def _symbol_twice(m: Module, first: Op, second: Op) -> None:
    first.symbols = (U0, U0)


def _reserved_symbol(m: Module, first: Op, second: Op) -> None:
    first.symbols = (Symbol("f32"),)


def _empty_symbol(m: Module, first: Op, second: Op) -> None:
    first.symbols = (Symbol("u9", 3, 2),)


def _name(m: Module, first: Op, second: Op) -> None:
    m.main.name = "backward"


def _missing_symbol(m: Module, first: Op, second: Op) -> None:
    m.main.symbols = ()


def _idle_symbol(m: Module, first: Op, second: Op) -> None:
    m.main.symbols = (S0, Symbol("n"))


def _double_symbol(m: Module, first: Op, second: Op) -> None:
    m.main.symbols = (S0, S0)


def _body_symbols(m: Module, first: Op, second: Op) -> None:
    m.main.body.symbols = (U0,)


def _alias_result(m: Module, first: Op, second: Op) -> None:
    m.main.aliases = {1: 0}


def _alias_argument(m: Module, first: Op, second: Op) -> None:
    m.main.aliases = {0: 1}


def _alias_type(m: Module, first: Op, second: Op) -> None:
    m.main.body.add_arg(f32(3))
    m.main.aliases = {0: 1}


def _alias_twice(m: Module, first: Op, second: Op) -> None:
    m.main.body.terminator.segments = (2,)
    m.main.body.remove(m.main.body.terminator)
    next(iter(second.result.uses)).op.drop_operands()
    finish(Builder(OPS, m.main.body), [second.result, second.result])
    m.main.aliases = {0: 0, 1: 0}


def _state_without_argument(m: Module, first: Op, second: Op) -> None:
    m.main.state = (Leaf("a", f32(1)), Leaf("b", f32(1)))


def _state_type(m: Module, first: Op, second: Op) -> None:
    m.main.state = (Leaf("a", f32(1)),)


def _state_twice(m: Module, first: Op, second: Op) -> None:
    m.main.body.add_arg(f32(1))
    m.main.body.add_arg(f32(1))
    m.main.state = (Leaf("a", f32(1)), Leaf("a", f32(1)))


BREAKS: dict[Callable[[Module, Op, Op], None], tuple[str, str]] = {
    _forget_use: ("operand 0 does not list this use", "op[1]"),
    _stray_use: (r"lists a use by aten\.relu that is not there", "op[0]"),
    _detached_user: ("is used by a detached", "op[0]"),
    _argument_with_detached_user: ("argument 0 is used by a detached", "op[0]"),
    _foreign_result: ("result 0 does not belong to this op", "op[0]"),
    _wrong_index: ("result 0 does not belong to this op", "op[0]"),
    _wrong_argument: ("argument 0 does not belong to its region", "op[0]"),
    _wrong_parent: ("does not know its region", "forward"),
    _disorder: ("its order index does not", "forward"),
    _no_terminator: (r"ends in aten\.relu, which is no terminator", "op[1]"),
    _two_terminators: ("not the last op", "op[2]"),
    _empty: ("the region is empty", "forward"),
    _segments: ("'self' is single, its segment is 0", "op[0]"),
    _segment_total: ("1 operands, the segments hold 2", "op[2]"),
    _segment_count: ("2 operand segments for 1 parameters", "op[0]"),
    _extra_region: ("1 regions, expected 0", "op[0]"),
    _orphan_region: ("does not know this op as its parent", "op[0]"),
    _extra_attr: ("has no attribute 'what'", "op[0]"),
    _later_operand: (r"operand 0 is defined by aten\.relu later", "op[0]"),
    _detached_operand: ("made by an op that is in no region", "op[0]"),
    _strange_operand: ("from a region that is not around", "op[0]"),
    _wrong_dtype: (r"result 0 is f64\[1, s0, 64\], expected f32\[1, s0, 64\]", "op[1]"),
    _wrong_rank: ("result 0 is", "op[1]"),
    _wrong_static_size: ("result 0 is", "op[1]"),
    _refuted_size: (r"result 0 is f32\[1, s0 \+ 1, 64\]", "op[1]"),
    _unknown_symbol: ("the symbol 'n' is not defined here", "op[1]"),
    _other_range: ("but was defined as", "op[1]"),
    _symbol_again: ("the symbol 's0' is defined again", "op[0]"),
    _symbol_twice: ("the symbol 'u0' is defined again", "op[0]"),
    _reserved_symbol: ("'f32' cannot name a symbol", "op[0]"),
    _empty_symbol: ("has no values", "op[0]"),
    _name: ("its key is 'forward'", "forward"),
    _missing_symbol: ("which the function does not define", "forward"),
    _idle_symbol: ("the symbol 'n' is in no argument's type", "forward"),
    _double_symbol: ("the symbol 's0' is defined twice", "forward"),
    _body_symbols: ("the body defines symbols", "forward"),
    _alias_result: ("aliases name result 1 of 1", "op[2]"),
    _alias_argument: ("written back to argument 1 of 1", "op[2]"),
    _alias_type: ("the argument 1 it is written back to", "op[2]"),
    _alias_twice: ("two results are written back to argument 0", "op[2]"),
    _state_without_argument: ("2 leaves of state and 1 arguments", "op[2]"),
    _state_type: (r"argument 0 is f32\[1, s0, 64\], the state 'a'", "op[2]"),
    _state_twice: ("two leaves of the state have one name", "op[2]"),
}


@pytest.mark.parametrize("broken", BREAKS, ids=lambda f: f.__name__.strip("_"))
def test_rule(broken: Callable[[Module, Op, Op], None]) -> None:
    made, first, second = two_relus()
    broken(made, first, second)
    message, place = BREAKS[broken]
    error = refusal(made)
    with pytest.raises(VerifyError, match=message):
        raise error
    assert error.path is not None
    assert place in error.path


def test_static_inside_dynamic_is_fine() -> None:
    made, _, second = two_relus()
    second.results[0].type = f32(1, 16, 64)
    verify(made)


def test_captured_value_must_be_an_argument() -> None:
    def forward(op: Builder, x: Value) -> Sequence[Value]:
        inner = Region()
        finish(Builder(OPS, inner), [x])
        return [op.create("my.draw", (x,), regions=[inner]).results[0]]

    assert "outer region; hand it over" in refusal(module(forward, [f32(2)])).message


# -- attributes and constants ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("dim", [0], "attribute 'dim' holds a list"),
        ("dim", {"a": 1}, "holds a dict"),
        ("dim", Leaf("w", f32(2)), "constants stand in rg.const and nowhere else"),
        ("dim", (Leaf("w", f32(2)),), "holds a tuple"),
        ("dim", 7, "the op has no result type: .*out of range"),
        ("dtype", "f32", "no result type"),
    ],
)
def test_attribute(name: str, value: Any, reason: str) -> None:
    made = module(lambda op, x: [op.aten.softmax.int(x, 0)], [f32(2)])
    next(made.main.body.ops).attrs[name] = value
    with pytest.raises(VerifyError, match=reason):
        verify(made)


def test_missing_attribute() -> None:
    made = module(lambda op, x: [op.aten.softmax.int(x, 0)], [f32(2)])
    del next(made.main.body.ops).attrs["dim"]
    assert refusal(made).message == "attribute 'dim' is missing"


def test_kind_of_attribute() -> None:
    made = module(lambda op, x: [op.aten.sum.dim_IntList(x, (0,))], [f32(2)])
    next(made.main.body.ops).attrs["keepdim"] = 1
    assert "attribute 'keepdim' is 1, expected a value like False" in refusal(made).message


def test_constants() -> None:
    symbolic = module(lambda op: [op.constant(Leaf("w", f32(size(S0))))])
    assert "the leaf w has the symbolic type" in refusal(symbolic).message
    made = module(lambda op: [op.constant(Leaf("w", f32(2)))])
    next(made.main.body.ops).attrs["value"] = 3
    assert "constants stand in rg.const" in refusal(made).message
    made = module(lambda op: [op.constant(Leaf("w", f32(2)))])
    next(made.main.body.ops).attrs["value"] = Leaf("w", f32(3))
    assert "result 0 is f32[2], expected f32[3]" in refusal(made).message


def _recipe(build: Callable[..., Sequence[Value]], *types: TensorType) -> Recipe:
    return Recipe(region(build, types), "r")


def test_recipes() -> None:
    pure = _recipe(lambda op: [op.aten.neg(op.constant(Leaf("w", f32(2))))])
    verify(module(lambda op: [op.constant(pure)]))
    with_argument = _recipe(lambda op, x: [op.aten.neg(x)], f32(2))
    assert (
        "a recipe has neither arguments" in refusal(module(lambda op: [op.constant(with_argument)])).message
    )
    random = _recipe(lambda op: [op.create("my.draw", (op.constant(Leaf("w", f32(2))),)).results[0]])
    assert "my.draw is not pure" in refusal(module(lambda op: [op.constant(random)])).message
    other = _recipe(lambda op: [op.constant(Leaf("w", f32(2)))])
    other.type = f32(3)
    assert (
        "the recipe yields f32[2], expected f32[3]"
        in refusal(module(lambda op: [op.constant(other)])).message
    )
    open_size = _recipe(lambda op: [op.aten.full((size(S0),), 1.0, dtype=DType.F32)])
    made = module(lambda op, x: [op.constant(open_size)], [f32(size(S0))])
    assert "the symbol 's0' is not defined here" in refusal(made).message


# -- symbols and control flow ------------------------------------------------------------------


def test_symbol_of_an_op_is_known_after_it() -> None:
    def forward(op: Builder, x: Value) -> Sequence[Value]:
        early = op.aten.full((size(U0),), 1.0, dtype=DType.F32)
        op.create("my.find", (x,), symbols=(U0,))
        return [early]

    assert "the symbol 'u0' is not defined here" in refusal(module(forward, [f32(2)])).message


def test_symbol_of_a_region_stays_inside() -> None:
    def forward(op: Builder, x: Value) -> Sequence[Value]:
        inner = region(lambda op, y: [y], [f32(size(U0))], [U0])
        op.create("my.draw", (x,), regions=[inner])
        return [op.aten.full((size(U0),), 1.0, dtype=DType.F32)]

    assert "the symbol 'u0' is not defined here" in refusal(module(forward, [f32(2)])).message


def test_symbol_of_a_region_is_new() -> None:
    def forward(op: Builder, x: Value) -> Sequence[Value]:
        inner = region(lambda op, y: [y], [x.type], [S0])
        return [op.create("my.draw", (x,), regions=[inner]).results[0]]

    assert "region 0 defines the symbol 's0' again" in refusal(module(forward, [f32(size(S0))])).message


def test_symbol_in_an_argument_of_a_region() -> None:
    def forward(op: Builder, x: Value) -> Sequence[Value]:
        return [op.create("my.draw", (x,), regions=[region(lambda op, y: [y], [f32(size(U0))])]).results[0]]

    assert "region 0, argument 0: the symbol 'u0'" in refusal(module(forward, [f32(2)])).message


def test_symbols_of_single_ops() -> None:
    made, _, second = two_relus()
    verify_ops([second])
    second.results[0].type = f32(1, size(U0), 64)
    with pytest.raises(VerifyError, match="the symbol 'u0' is not defined here") as caught:
        verify_ops([second])
    assert caught.value.path == "op[1]"
    second.result.uses.clear()
    second.drop_operands()
    made.main.body.remove(second)
    verify_ops([second])


def _branches(then: Callable[..., Any], other: Callable[..., Any]) -> Module:
    """A cond that was right once: its branches are exchanged afterwards."""

    def forward(op: Builder, p: Value, x: Value) -> Sequence[Value]:
        same = [region(lambda op, y: [y], [x.type]) for _ in range(2)]
        made = op.create("cf.cond", (p, (x,)), regions=same)
        made.regions = (region(then, [x.type]), region(other, [x.type]))
        for each in made.regions:
            each.parent = made
        return [made.result]

    return module(forward, [TensorType(DType.BOOL, ()), f32(4)])


def test_branches_yield_the_same_types() -> None:
    verify(_branches(lambda op, y: [op.aten.relu(y)], lambda op, y: [y]))
    for other in (
        lambda op, y: [op.aten.view(y, (2, 2))],
        lambda op, y: [],
        lambda op, y: [op.aten.gt.Scalar(y, 0)],
    ):
        error = refusal(_branches(lambda op, y: [y], other))
        assert "the op has no result type" in error.message
        assert error.path == "forward.body.op[0]"


# -- stages ------------------------------------------------------------------------------------

X = f32(2, 3)
NOT_NORMAL: dict[str, tuple[Callable[[Builder, Value], Any], str]] = {
    "spelling": (lambda op, x: op.aten.t(x), r"aten\.t is not a canonical op"),
    "view": (lambda op, x: op.aten.view(x, (-1,)), "a size is -1"),
    "no-op view": (lambda op, x: op.aten.view(x, (2, 3)), "does nothing"),
    "no-op expand": (lambda op, x: op.aten.expand(x, (2, 3)), "does nothing"),
    "expand": (lambda op, x: op.aten.expand(x, (5, -1, 3)), "a size is -1"),
    "implicit": (lambda op, x: op.aten.expand(x, (5, 2, 3), implicit=True), "'implicit' is set"),
    "no-op permute": (lambda op, x: op.aten.permute(x, (0, 1)), "moves no axis"),
    "permute": (lambda op, x: op.aten.permute(x, (-1, 0)), "counted from the front"),
    "cast": (lambda op, x: op.aten._to_copy(x, dtype=DType.F32), "the cast does nothing"),
    "open slice": (lambda op, x: op.aten.slice.Tensor(x, 0), "not explicit"),
    "slice": (lambda op, x: op.aten.slice.Tensor(x, 1, -1, 3), "not resolved"),
    "long slice": (lambda op, x: op.aten.slice.Tensor(x, 1, 0, 9), "not resolved"),
    "full slice": (lambda op, x: op.aten.slice.Tensor(x, 1, 0, 3), "takes every element"),
    "axis": (lambda op, x: op.aten.softmax.int(x, -1), "counted from the front"),
    "dtype": (lambda op, x: op.aten.softmax.int(x, 0, dtype=DType.F32), "repeats the operand's own dtype"),
    "axes": (lambda op, x: op.aten.sum.dim_IntList(x, None), "does not list the axes"),
    "cat": (lambda op, x: op.aten.cat((x,), 0), "one operand"),
    "layer norm": (
        lambda op, x: op.aten.layer_norm(x, (3,), cudnn_enable=False),
        "'cudnn_enable' is not True",
    ),
}


@pytest.mark.parametrize("name", NOT_NORMAL)
def test_normal_form(name: str) -> None:
    build, reason = NOT_NORMAL[name]
    made = module(lambda op, x: [build(op, x)], [X])
    verify(made, "captured")
    verify(made, "legalize")
    for stage in ("canonicalize", "fold", "recover", "algebra", "fuse"):
        with pytest.raises(VerifyError, match=reason):
            verify(made, stage)


def test_unknown_sizes_are_no_fault() -> None:
    n, m = dims.symbol("n"), dims.symbol("m")

    def forward(op: Builder, x: Value, y: Value) -> Sequence[Value]:
        return [op.aten.slice.Tensor(x, 0, n, m), y]

    made = module(forward, [f32(dims.symbol("k"), 3), f32(n, m)])
    verify(made, "fuse")


def test_weights_are_turned_in_recipes() -> None:
    def forward(op: Builder, x: Value) -> Sequence[Value]:
        return [op.aten.linear(x, op.aten.permute(op.constant(Leaf("w", X)), (1, 0)))]

    made = module(forward, [f32(2)])
    verify(made, "canonicalize")
    for stage in ("fold", "recover", "algebra", "fuse"):
        assert refusal(made, stage).message == "the permute of a constant belongs in a recipe"


def test_table() -> None:
    made = module(lambda op, x: [op.create("my.draw", (x,)).results[0]], [f32(2)])
    verify(made, table=TABLE)
    assert refusal(made, table=OPS).message == "my.draw is not in the op table"


def test_unknown_stage() -> None:
    made, _, _ = two_relus()
    with pytest.raises(OptionError, match="one of captured, canonicalize, fold"):
        verify(made, "cooked")


def test_function_inside_an_op() -> None:
    body = region(lambda op, x: [x], [f32(2)])
    Op(EVERY_ARITY, [], (), {}, [], regions=[body])
    assert "the body is a region of an op" in refusal(Module({"f": Function("f", body)})).message


def test_terminators_are_marked() -> None:
    assert [name for name in OPS if Trait.TERMINATOR in OPS[name].traits] == ["cf.yield"]
