"""The one way to change a graph: what it does, tells, counts and refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from regraft.errors import RewriteError
from regraft.ir import (
    OPS,
    DType,
    Fuel,
    Listener,
    Location,
    Module,
    Op,
    Rewriter,
    TensorType,
    TokenType,
    Value,
    dims,
    is_dead,
    print_module,
    refines,
    verify,
)
from tests.ir.graphs import TABLE, U0, f32, module, region, size


class Log(Listener):
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def visiting(self, op: Op) -> None:
        self.events.append(f"visiting {op.name}")

    def inserted(self, op: Op) -> None:
        self.events.append(f"inserted {op.name}")

    def redirecting(self, old: Value, new: Value) -> None:
        self.events.append(f"redirecting {old.op.name} to {new.op.name}")

    def replaced(self, op: Op, values: Sequence[Value]) -> None:
        self.events.append(f"replaced {op.name}")

    def modified(self, op: Op) -> None:
        self.events.append(f"modified {op.name}")

    def erased(self, op: Op) -> None:
        self.events.append(f"erased {op.name}")


def setting() -> tuple[Module, Op, Op, Rewriter, Log]:
    """``neg(relu(x))``, and a rewriter that is listened to."""
    made = module(lambda op, x: [op.aten.neg(op.aten.relu(x))], [f32(2)])
    relu, neg, _ = made.main.body.ops
    log = Log()
    return made, relu, neg, Rewriter(TABLE, "Tester", [log]), log


def test_replacement_is_told_in_order() -> None:
    made, relu, neg, rewriter, log = setting()
    relu.loc = Location("m.py", 3)
    neg.result.hint = "out"
    new = rewriter.before(relu).aten.tanh(made.main.args[0])
    rewriter.replace(neg, [new])
    assert rewriter.erase_if_unused(relu)
    assert log.events == [
        "visiting aten.relu",
        "inserted aten.tanh",
        "redirecting aten.neg to aten.tanh",
        "modified cf.yield",
        "replaced aten.neg",
        "erased aten.neg",
        "erased aten.relu",
    ]
    assert [op.name for op in rewriter.touched] == ["aten.tanh", "cf.yield"]
    assert new.op.loc == Location("m.py", 3, "", ("Tester",))
    assert new.hint == "out"
    verify(made)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (lambda op, x: [op.aten.view(x, (2, 1))], r"f32\[2\] by a f32\[2, 1\]; insert a cast or a view"),
        (lambda op, x: [op.aten._to_copy(x, dtype=DType.F64)], r"f32\[2\] by a f64\[2\]"),
        (lambda op, x: [x, x], r"aten\.neg \(1 results\) by 2 values"),
        (lambda op, x: [], "by 0 values"),
    ],
)
def test_replacement_must_fit(new: object, reason: str) -> None:
    made, _, neg, rewriter, _ = setting()
    values = new(rewriter.before(neg), made.main.args[0])  # type: ignore[operator]
    before = print_module(made)
    with pytest.raises(RewriteError, match=reason):
        rewriter.replace(neg, values)
    assert print_module(made) == before


def test_a_result_without_users_needs_no_replacement() -> None:
    made = module(lambda op, x: [op.aten.topk(x, 1)[0]], [f32(2)])
    topk = next(made.main.body.ops)
    log = Log()
    rewriter = Rewriter(TABLE, "Tester", [log])
    new = rewriter.before(topk).aten.slice.Tensor(made.main.args[0], 0, 0, 1)
    with pytest.raises(RewriteError, match=r"erases aten\.topk, but cf\.yield still uses it"):
        rewriter.replace(topk, [None, None])
    rewriter.replace(topk, [new, None])
    assert [op.name for op in made.main.body.ops] == ["aten.slice.Tensor", "cf.yield"]
    verify(made)


def test_own_result_is_no_replacement() -> None:
    _, _, neg, rewriter, _ = setting()
    with pytest.raises(RewriteError, match="by its own result"):
        rewriter.replace(neg, [neg.result])


def test_erase_takes_regions_along() -> None:
    def build(op: object, x: Value) -> list[Value]:
        inner = region(lambda op, y: [op.aten.relu(y)], [f32(2)])
        op.create("my.draw", (x,), regions=[inner])  # type: ignore[attr-defined]
        return [x]

    made = module(build, [f32(2)])
    log = Log()
    Rewriter(TABLE, "Tester", [log]).erase(next(made.main.body.ops))
    assert log.events == ["erased cf.yield", "erased aten.relu", "erased my.draw"]
    verify(made)


def test_unused_producers_go_once() -> None:
    made = module(
        lambda op, x: [(y := op.aten.relu(x)), op.aten.add.Tensor(op.aten.neg(y), op.aten.tanh(y))][:1],
        [f32(2)],
    )
    relu, _, _, add, _ = made.main.body.ops
    relu.parent.terminator.set_operand(0, made.main.args[0])
    log = Log()
    assert Rewriter(TABLE, "Tester", [log]).erase_if_unused(add)
    assert sorted(log.events) == [
        "erased aten.add.Tensor",
        "erased aten.neg",
        "erased aten.relu",
        "erased aten.tanh",
    ]
    verify(made)


def test_used_or_effectful_ops_stay() -> None:
    made, relu, neg, rewriter, _ = setting()
    assert not rewriter.erase_if_unused(relu)
    random = rewriter.before(relu).create("my.draw", (made.main.args[0],))
    assert not rewriter.erase_if_unused(random)
    assert is_dead(rewriter.before(neg).aten.relu(relu.result).op)
    assert not is_dead(made.main.body.terminator)


def test_what_defines_a_size_stays_where_the_size_is_named() -> None:
    _, relu, neg, rewriter, _ = setting()
    found = rewriter.before(neg).create("my.find", (relu.result,), symbols=(U0,))
    assert is_dead(found)
    named = rewriter.before(neg).aten.full((size(U0),), 1.0, dtype=DType.F32)
    assert not is_dead(found)
    assert named.op is not None
    rewriter.erase(named.op)
    assert rewriter.erase_if_unused(found)


def test_uses_may_be_chosen() -> None:
    made = module(lambda op, x: [op.aten.relu(x), op.aten.neg(x)], [f32(2), f32(2)][:1])
    x = made.main.args[0]
    y = made.main.body.add_arg(f32(2))
    rewriter = Rewriter(TABLE, "Tester")
    rewriter.replace_uses(x, y, lambda use: use.op.name == "aten.neg")
    assert [op.name for op in x.users] == ["aten.relu"]
    assert [op.name for op in y.users] == ["aten.neg"]


def test_builder_at_the_end() -> None:
    made, _, _, rewriter, log = setting()
    terminator = made.main.body.terminator
    terminator.drop_operands()
    made.main.body.remove(terminator)
    rewriter.at_end(made.main.body).create("cf.yield", ((made.main.args[0],),))
    assert log.events == ["inserted cf.yield"]
    assert made.main.body.terminator.loc.made_by == ("Tester",)


N, M = dims.symbol("n", 1, 8), dims.symbol("m")


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        (f32(2), f32(2), True),
        (f32(2), f32(M), True),
        (f32(9), f32(N), False),
        (f32(M), f32(2), False),
        (f32(N), f32(M), False),
        (f32(N), f32(N), True),
        (f32(2), f32(2, 1), False),
        (TensorType(DType.F64, (2,)), f32(2), False),
        (TensorType(DType.F32, (2,), "cuda"), f32(2), False),
        (TokenType(), TokenType(), True),
        (TokenType(), f32(2), False),
    ],
)
def test_refines(new: TensorType, old: TensorType, expected: bool) -> None:
    assert refines(new, old) is expected


def test_fuel() -> None:
    assert [Fuel().take() for _ in range(3)] == [True] * 3
    fuel = Fuel(2)
    assert [fuel.take() for _ in range(4)] == [True, True, False, False]
    assert fuel.spent == 2


def test_table_is_that_of_the_compile() -> None:
    made, relu, _, _, _ = setting()
    with pytest.raises(Exception, match=r"no op 'my\.find'"):
        Rewriter(OPS, "Tester").before(relu).my.find(made.main.args[0])
