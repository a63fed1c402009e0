"""Small graphs that the tests of the IR share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from regraft.ir import (
    OPS,
    Arity,
    AttrSpec,
    Builder,
    CallSite,
    DType,
    Function,
    Leaf,
    Location,
    Module,
    OpDef,
    Operand,
    OpTable,
    Recipe,
    Region,
    Symbol,
    TensorType,
    TokenType,
    Trait,
    Type,
    Value,
    dims,
    input_symbols,
)

S0 = Symbol("s0", 2, 512, 8)
U0 = Symbol("u0", 0, 64)
PURE = Trait.PURE | Trait.SPECULATABLE


def f32(*shape: dims.Dim) -> TensorType:
    return TensorType(DType.F32, shape)


def i64(*shape: dims.Dim) -> TensorType:
    return TensorType(DType.I64, shape)


def size(symbol: Symbol) -> dims.Expr:
    return dims.as_expr(symbol)


def finish(b: Builder, values: Sequence[Value]) -> None:
    b.create("cf.yield", (tuple(values),))


def region(
    build: Callable[..., Sequence[Value]], types: Sequence[Type] = (), symbols: Sequence[Symbol] = ()
) -> Region:
    """A region over arguments of ``types`` that yields what ``build(op, *arguments)`` gives."""
    made = Region(types, symbols)
    builder = Builder(TABLE, made)
    finish(builder, build(builder, *made.args))
    return made


def module(build: Callable[..., Sequence[Value]], types: Sequence[TensorType] = (), **more: Any) -> Module:
    """A module whose one function ``forward`` is ``build(op, *arguments)``."""
    body = region(build, types)
    return Module({"forward": Function("forward", body, input_symbols(body.args), **more)})


def _opaque(site: CallSite) -> Sequence[Type]:
    raise TypeError("opaque")


#: An op of every arity, one with a token, and one that no table has.
EVERY_ARITY = OpDef(
    "my.every",
    (
        Operand("one"),
        Operand("maybe", Arity.OPTIONAL),
        AttrSpec("value", None),
        Operand("many", Arity.VARIADIC),
        Operand("holes", Arity.OPTIONAL_LIST),
        AttrSpec("other", 0),
    ),
    lambda site: site.type("one"),
    PURE,
)
DRAW = OpDef(
    "my.draw", (Operand("x"),), lambda site: (site.type("x"), TokenType()), Trait.RANDOM, regions=None
)
OPAQUE = OpDef(
    "aten._mystery",
    (Operand("self"), Operand("rest", Arity.OPTIONAL_LIST), AttrSpec("k"), AttrSpec("eps", 1e-5)),
    _opaque,
    Trait.PURE,
    opaque=True,
)
FIND = OpDef("my.find", (Operand("x"),), lambda site: i64(site.symbols[0], 1), Trait.PURE)
TABLE: OpTable = OPS.extended([EVERY_ARITY, DRAW, FIND])
"""The built-in ops and those above, but for the opaque one: its text must say all there is."""


def rich() -> Module:
    """A module with every part of the text form."""
    weight = Leaf("layers.0.weight", f32(64, 64))
    odd = Leaf('a "quoted"\n\tname é', f32(64))
    turned = Recipe(
        region(lambda op: [op.aten.permute(op.constant(weight), (1, 0))]), name="layers.0.weight_t"
    )
    nested = Recipe(region(lambda op: [op.aten.neg(op.constant(turned))]))
    flag = Leaf("flag", TensorType(DType.BOOL, ()))

    def forward(op: Builder, ids: Value, mask: Value) -> Sequence[Value]:
        op.loc = Location("model.py", 12, "encoder.0", ("RaiseGelu", "a b"))
        x = op.aten.linear(ids, op.constant(turned), op.constant(odd))
        op.loc = Location(module="only a module")
        x = op.aten.linear(x, op.constant(nested))
        x.hint = "hidden state"
        twin = op.aten.relu(x)
        twin.hint = "hidden state"
        op.loc = Location(made_by=("x",))
        every = op.create("my.every", (x, None, (1, "a"), (x, twin), (None, twin, None), True)).result
        found = op.create("my.find", (every,), symbols=(U0,)).result
        made = op.aten.full((size(U0) + 1, 64), 1.5, dtype=DType.F32)
        draws = op.create(
            "my.draw", (made,), regions=[region(lambda op, y: [op.aten.neg(y)], [f32(size(U0), 3)])]
        )
        draws.results[0].hint = "0"
        table = TABLE.extended([OPAQUE])
        mystery = Builder(table, op.region)
        strange = mystery.create(
            "aten._mystery", (x, (None, x), 3), result_types=[f32(size(S0)), i64()]
        ).results
        chosen = op.create(
            "cf.cond",
            (op.constant(flag), (x,)),
            regions=[
                region(lambda op, y: [op.aten.relu(y)], [x.type]),
                region(lambda op, y: [_loop(op, y)], [x.type]),
            ],
        ).result
        op.loc = Location()
        return [chosen, found, strange[1], mask]

    made = module(
        forward, [f32(1, size(S0), 64), TensorType(DType.BOOL, (size(S0), dims.symbol("n")), "cuda:1")]
    )
    made.main.args[0].hint = "ids"
    made.main.aliases = {0: 0, 3: 1}
    made.main.state = (Leaf("the buffer", made.main.args[1].tensor),)
    return made


def _loop(op: Builder, value: Value) -> Value:
    """A loop whose regions define a symbol of their own."""
    inner = Symbol("u1", -1, 3)
    condition = region(lambda op, y: [op.aten.full((), True, dtype=DType.BOOL)], [value.type], [inner])
    body = region(lambda op, y: [op.aten.relu(y)], [value.type], [inner])
    return op.create("cf.while", ((value,),), regions=[condition, body]).result
