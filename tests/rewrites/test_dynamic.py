"""Conditions and loops through all stages: what is left of them, and what they compute on each path."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.errors import NumericsMismatch, RewriteError, VerifyError
from regraft.ir import (
    OPS,
    STAGES,
    Builder,
    DType,
    Leaf,
    Module,
    Op,
    OpDef,
    Operand,
    OpTable,
    PassContext,
    RewritePass,
    TensorType,
    Trait,
    Value,
    dims,
    print_module,
    run_stage,
    symbol,
    verify,
)
from regraft.rewrites import DYNAMIC, default_passes, dynamic
from regraft.testing import assert_close, evaluate, rewrite_cases
from tests.rewrites.graphs import graph
from tests.rewrites.mutants import Mutant

cond, loop = dynamic.samples.cond, dynamic.samples.loop


def rewritten(module: Module, table: OpTable = OPS) -> tuple[Module, PassContext]:
    """A copy of ``module`` after all stages, verified after each; another run changes nothing."""
    after, context = module.clone(), PassContext(table)
    for stage in STAGES:
        run_stage(default_passes(), stage, after, context)
        verify(after, stage, table=table)
    settled = print_module(after)
    for stage in STAGES[1:]:
        run_stage(default_passes(), stage, after, PassContext(table))
    assert print_module(after) == settled
    return after, context


def settled(
    build: Callable[..., Any], *inputs: str, constants: Sequence[int] = (), runs: Sequence[Sequence[Tensor]]
) -> Module:
    """``build`` after all stages; it computes the same as before in all ``runs``."""
    before = graph(build, *inputs, constants=constants)
    after, _ = rewritten(before)
    for run in runs:
        results = [evaluate(module.main, run) for module in (before, after)]
        assert_close(results[1], [x.double() if x.is_floating_point() else x for x in results[0]])
    return after


def counts(module: Module) -> Counter[str]:
    return Counter(op.name for op in module.main.walk())


def top(module: Module) -> list[str]:
    return [op.name for op in module.main.body.ops if op.name not in ("rg.const", "cf.yield")]


def only(module: Module, name: str) -> Op:
    (found,) = [op for op in module.main.walk() if op.name == name]
    return found


def flag(op: Builder, holds: bool) -> Value:
    return op.aten.full((), holds, dtype=DType.BOOL)


def flags(count: int) -> list[list[Tensor]]:
    return [
        [torch.tensor(holds) for holds in each] for each in itertools.product((True, False), repeat=count)
    ]


X = torch.linspace(-1, 2, 12).reshape(3, 4)

# -- exits -------------------------------------------------------------------------------------


def exits(op: Builder, x: Value, *weights: Value) -> Value:
    """Blocks one after another, each skipped once a flag is set: an unrolled loop with a break."""

    def block(op: Builder, done: Value, out: Value, x: Value, w: Value) -> tuple[Value, ...]:
        hidden = op.aten.relu(op.aten.matmul(x, w))
        leaves = op.aten.gt.Scalar(op.aten.sum.dim_IntList(hidden, (0, 1)), 30.0)
        done, out = cond(
            op,
            leaves,
            (out, hidden),
            lambda op, out, hidden: (flag(op, True), op.aten.sin(hidden)),
            lambda op, out, hidden: (flag(op, False), out),
        )
        return done, out, hidden

    done, out = flag(op, False), op.aten.full(x.tensor.shape, 0.0, dtype=DType.F32)
    for w in weights:
        done, out, x = cond(
            op,
            op.aten.bitwise_not(done),
            (done, out, x, w),
            block,
            lambda op, done, out, x, w: (done, out, x),
        )
    return cond(op, done, (out, x), lambda op, out, x: out, lambda op, out, x: op.aten.cos(x))


def test_a_chain_of_exits_becomes_a_nest() -> None:
    blocks = 6
    runs = [[X * scale] for scale in (3.0, 1.5, 0.7, 0.3, 0.1, -1.0)]
    types = ["f32[3, 4]", *["f32[4, 4]"] * blocks]
    before = graph(exits, *types, constants=range(1, blocks + 1))
    for number, leaf in enumerate(before.constants()):
        assert isinstance(leaf, Leaf)
        leaf.storage = torch.eye(4) * 2 + 0.01 * number
    after, _ = rewritten(before)
    for run in runs:
        expected, actual = (evaluate(module.main, run) for module in (before, after))
        assert_close(actual, [x.double() for x in expected])
    assert [counts(after)[name] for name in ("cf.cond", "aten.sin", "aten.cos")] == [blocks, blocks, 1]
    depth, region = 0, after.main.body
    while inner := [op for op in region.ops if op.name == "cf.cond"]:
        (op,) = inner
        assert [each.name for each in op.regions[0].ops] == ["aten.sin", "cf.yield"]
        depth, region = depth + 1, op.regions[1]
    assert depth == blocks


def test_a_flag_of_logic_nests_too() -> None:
    """``if p: ...; elif q: ...`` by flags: the second block runs where neither was taken."""

    def build(op: Builder, p: Value, q: Value, x: Value) -> Value:
        done, y = cond(
            op, p, (x,), lambda op, x: (flag(op, True), op.aten.sin(x)), lambda op, x: (flag(op, False), x)
        )
        goes = op.aten.bitwise_and.Tensor(op.aten.bitwise_not(done), q)
        return cond(op, goes, (y,), lambda op, y: op.aten.cos(y), lambda op, y: y)

    runs = [[*pair, X] for pair in flags(2)]
    after = settled(build, "bool[]", "bool[]", "f32[3, 4]", runs=runs)
    assert top(after) == ["cf.cond"]
    outer = next(op for op in after.main.body.ops if op.name == "cf.cond")
    assert [op.name for op in outer.regions[0].ops] == ["aten.sin", "cf.yield"]
    assert [op.name for op in outer.regions[1].ops] == ["cf.cond", "cf.yield"]


def test_a_loop_with_a_break_at_its_end_runs_once() -> None:
    def build(op: Builder, x: Value) -> Value:
        _, y = loop(
            op,
            (flag(op, False), x),
            lambda op, done, x: op.aten.bitwise_not(done),
            lambda op, done, x: (flag(op, True), op.aten.sin(x)),
        )
        return y

    assert top(settled(build, "f32[3, 4]", runs=[[X]])) == ["aten.sin"]


# -- skipped work ------------------------------------------------------------------------------


def test_what_one_arm_needs_runs_there_alone() -> None:
    def build(op: Builder, skips: Value, x: Value) -> Value:
        hidden = op.aten.sin(op.aten.cos(x))
        return cond(op, skips, (x, hidden), lambda op, x, y: x, lambda op, x, y: op.aten.add.Tensor(x, y))

    after = settled(build, "bool[]", "f32[3, 4]", runs=[[each[0], X] for each in flags(1)])
    assert top(after) == ["cf.cond"]
    op = only(after, "cf.cond")
    assert [each.name for each in op.regions[0].ops] == ["cf.yield"]
    assert [each.name for each in op.regions[1].ops] == [
        "aten.cos",
        "aten.sin",
        "aten.add.Tensor",
        "cf.yield",
    ]
    assert len(op.variadic("operands")) == 1


def test_hoisting_and_sinking_do_not_undo_each_other() -> None:
    """One arm in a loop needs what no trip changes: it is computed once, not in each trip that asks."""

    def trip(op: Builder, n: Value, y: Value, x: Value) -> tuple[Value, Value, Value]:
        odd = op.aten.eq.Scalar(op.aten.remainder.Scalar(n, 2), 1)
        product = op.aten.matmul(x, op.aten.permute(x, (1, 0)))
        y = cond(op, odd, (y, product), lambda op, y, p: op.aten.sub.Tensor(y, p), lambda op, y, p: y)
        return op.aten.add.Scalar(n, 1), y, x

    def build(op: Builder, n: Value, y: Value, x: Value) -> Value:
        return loop(op, (n, y, x), dynamic.samples.below(4), trip)[1]

    x = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    runs = [[torch.tensor(n), torch.ones(64, 64), x] for n in (0, 3, 7)]
    after = settled(build, "i64[]", "f32[64, 64]", "f32[64, 64]", runs=runs)
    product, inner = only(after, "aten.matmul"), only(after, "cf.while")
    assert product.parent is inner.parent, "beside the loop, in an arm that is taken if the loop runs"
    assert product.parent is not None
    assert product.parent is not after.main.body
    assert product.parent.parent is not None
    assert product.parent.parent.name == "cf.cond"


def test_numbers_that_no_trip_changes_stay_beside_what_is_hoisted() -> None:
    """A loop that carries a constant beside what is hoisted keeps its results in their places."""

    def trip(op: Builder, n: Value, k: Value, y: Value, x: Value) -> tuple[Value, ...]:
        more = op.aten.mul.Tensor(op.aten.matmul(x, x), k)
        return op.aten.add.Scalar(n, 1), k, op.aten.add.Tensor(op.aten.mul.Scalar(y, 0.5), more), x

    def build(op: Builder, n: Value, x: Value) -> Sequence[Value]:
        return loop(op, (n, op.aten.full((), 0.5, dtype=DType.F32), x, x), dynamic.samples.below(4), trip)

    x = torch.linspace(-1, 1, 64 * 64).reshape(64, 64) / 64
    settled(build, "i64[]", "f32[64, 64]", runs=[[torch.tensor(n), x] for n in (0, 2, 9)])
    hoisted = graph(build, "i64[]", "f32[64, 64]")
    context = PassContext(OPS)
    only_hoisting = [r for r in DYNAMIC if r.name == "LoopInvariant"]
    RewritePass("hoist", "fold", only_hoisting).run(hoisted, context)
    verify(hoisted, table=OPS)
    assert context.stats["LoopInvariant"].hits == 1


def test_what_does_not_cost_needs_no_test() -> None:
    def trip(op: Builder, n: Value, y: Value, k: Value) -> tuple[Value, Value, Value]:
        return op.aten.add.Scalar(n, 1), op.aten.mul.Tensor(y, op.aten.exp(k)), k

    def build(op: Builder, n: Value, y: Value, k: Value) -> Value:
        return loop(op, (n, y, k), dynamic.samples.below(4), trip)[1]

    runs = [[torch.tensor(n), X, torch.tensor(0.5)] for n in (0, 5)]
    assert top(settled(build, "i64[]", "f32[3, 4]", "f32[]", runs=runs)) == ["aten.exp", "cf.while"]


# -- what must stay ----------------------------------------------------------------------------


def checked(op: Builder, p: Value, message: str) -> None:
    op.rg.check(p, message)


def test_checks_stay_in_their_arms_and_in_order() -> None:
    def build(op: Builder, p: Value, q: Value, x: Value) -> Value:
        def then(op: Builder, q: Value, x: Value) -> Value:
            checked(op, q, "first")
            return x

        def again(op: Builder, q: Value, x: Value) -> Value:
            checked(op, op.aten.bitwise_not(q), "second")
            return op.aten.sin(x)

        y = cond(op, p, (q, x), then, lambda op, q, x: op.aten.cos(x))
        return cond(op, p, (q, y), again, lambda op, q, y: y)

    before = graph(build, "bool[]", "bool[]", "f32[3, 4]")
    after, _ = rewritten(before)
    op = only(after, "cf.cond")
    messages = [each.attr("message") for each in op.regions[0].ops if each.name == "rg.check"]
    assert messages == ["first", "second"]
    for module in (before, after):
        with pytest.raises(Exception, match="first"):
            evaluate(module.main, [torch.tensor(True), torch.tensor(False), X])
        with pytest.raises(Exception, match="second"):
            evaluate(module.main, [torch.tensor(True), torch.tensor(True), X])


def test_a_condition_that_only_checks_stays_and_one_that_does_nothing_goes() -> None:
    def build(op: Builder, p: Value, q: Value, x: Value) -> Value:
        def then(op: Builder, q: Value, x: Value) -> Value:
            checked(op, q, "q holds")
            return op.aten.sin(x)

        cond(op, p, (q, x), then, lambda op, q, x: x)
        cond(op, p, (x,), lambda op, x: op.aten.cos(x), lambda op, x: x)
        return op.aten.neg(x)

    after, _ = rewritten(graph(build, "bool[]", "bool[]", "f32[3, 4]"))
    assert top(after) == ["cf.cond", "aten.neg"]
    assert counts(after)["rg.check"] == 1
    assert not {"aten.sin", "aten.cos"} & counts(after).keys()


def test_draws_stay_where_they_are() -> None:
    """Both arms draw, and one result is not used: eager draws all the same, so the next draw follows it."""

    def build(op: Builder, p: Value, x: Value) -> tuple[Value, Value]:
        def draws(op: Builder, x: Value) -> Value:
            return op.aten.add.Tensor(x, op.aten.rand_like(x))

        cond(op, p, (x,), draws, lambda op, x: x)
        y = cond(op, p, (x,), draws, lambda op, x: op.aten.neg(draws(op, x)))
        return y, op.aten.rand_like(x)

    rand = OpDef("aten.rand_like", (Operand("self"),), lambda site: site.type("self"), Trait.RANDOM)
    table = OPS.extended([rand])
    before = graph(build, "bool[]", "f32[3, 4]", table=table)
    after, _ = rewritten(before, table)
    assert counts(after)["aten.rand_like"] == counts(before)["aten.rand_like"] == 4
    for run in ([each[0], X] for each in flags(1)):
        found: list[list[Tensor]] = []
        for module in (before, after):
            torch.manual_seed(0)
            found.append(evaluate(module.main, run))
        assert all(map(torch.equal, *found))


def test_checks_keep_their_order_around_conditions_that_join() -> None:
    """The op that reads the first condition comes after the second, and may not pass a check on its way."""

    def build(op: Builder, p: Value, q: Value, x: Value) -> Value:
        flagged, y = cond(
            op, p, (x, q), lambda op, x, q: (q, op.aten.sin(x)), lambda op, x, q: (flag(op, True), x)
        )
        checked(op, flagged, "first")
        checked(op, q, "second")
        return cond(op, p, (y,), lambda op, y: op.aten.cos(y), lambda op, y: y)

    before = graph(build, "bool[]", "bool[]", "f32[3, 4]")
    after, _ = rewritten(before)
    for module in (before, after):
        with pytest.raises(Exception, match="first"):
            evaluate(module.main, [torch.tensor(True), torch.tensor(False), X])
        with pytest.raises(Exception, match="second"):
            evaluate(module.main, [torch.tensor(False), torch.tensor(False), X])


def test_what_torch_alone_runs_pulls_nothing_along() -> None:
    """A condition runs where all its ops can: one that torch alone knows is not moved into another's."""
    opaque = OpDef("aten.digamma", (Operand("self"),), lambda site: site.type("self"), opaque=True)
    table = OPS.extended([opaque])

    def sinks(op: Builder, p: Value, x: Value) -> Value:
        return cond(
            op, p, (x, op.aten.digamma(x)), lambda op, x, y: op.aten.add.Tensor(x, y), lambda op, x, y: x
        )

    def joins(op: Builder, p: Value, x: Value) -> Value:
        y = cond(op, p, (x,), lambda op, x: op.aten.digamma(x), lambda op, x: x)
        return cond(op, p, (y,), lambda op, y: op.aten.sin(y), lambda op, y: y)

    after, _ = rewritten(graph(sinks, "bool[]", "f32[3, 4]", table=table), table)
    assert top(after) == ["aten.digamma", "cf.cond"]
    after, _ = rewritten(graph(joins, "bool[]", "f32[3, 4]", table=table), table)
    assert top(after) == ["cf.cond", "cf.cond"]


U = symbol("u")


def test_symbols_stay_in_the_arms_that_define_them() -> None:
    """Both arms yield a number of places found in them, under one name: the numbers differ."""

    def found(op: Builder, x: Value) -> Value:
        (size,) = dims.symbols_of(U)
        op.create("aten.nonzero", (x,), symbols=[size])
        return op.rg.dim_value(U)

    def build(op: Builder, p: Value, x: Value) -> Value:
        return cond(op, p, (x,), found, lambda op, x: found(op, op.aten.relu(x)))

    runs = [[each[0], X] for each in flags(1)]
    after = settled(build, "bool[]", "f32[3, 4]", runs=runs)
    assert counts(after)["aten.nonzero"] == 2


def test_a_literal_decides_and_a_buffer_does_not() -> None:
    def build(op: Builder, p: Value, x: Value) -> Value:
        return cond(op, p, (x,), lambda op, x: op.aten.sin(x), lambda op, x: op.aten.cos(x))

    for name, ops in (("_tensor_constant0", ["aten.sin"]), ("training_flag", ["cf.cond"])):
        module = graph(build, "bool[]", "f32[3, 4]", constants=(0,))
        (op,) = [op for op in module.main.body.ops if op.name == "rg.const"]
        op.attrs["value"] = Leaf(name, TensorType(DType.BOOL, ()), torch.tensor(True))
        assert top(rewritten(module)[0]) == ops


def test_a_size_decides() -> None:
    def build(op: Builder, x: Value) -> Value:
        positions = op.aten.arange.start_step(0, x.tensor.shape[0], 1, dtype=DType.I64)
        all_there = op.aten.all(op.aten.ge.Scalar(positions, 0))
        return cond(op, all_there, (x,), lambda op, x: op.aten.sin(x), lambda op, x: op.aten.cos(x))

    assert top(rewritten(graph(build, "f32[S, 4]"))[0]) == ["aten.sin"]


def test_graphs_without_conditions_cost_nothing() -> None:
    _, context = rewritten(graph(lambda op, x: op.aten.relu(op.aten.neg(x)), "f32[3]"))
    assert not {rewrite.name for rewrite in DYNAMIC} & context.stats.keys()


# -- mistakes ----------------------------------------------------------------------------------

MISTAKES = (
    ("ConstantBranch", "0 if truth(m.p) else 1", "1 if truth(m.p) else 0"),
    ("BranchOnNot", "source=1 - arm", "source=arm"),
    ("PlainPredicate", "if truth(operand) is None]", "if truth(operand) is not None]"),
    ("KnownInArm", "in _known(m.root, arm).items()", "in _known(m.root, 0).items()"),
    ("FlagAsLogic", "then is True or other is False", "then is True"),
    ("FlagAsLogic", "then is True or other is True", "then is True"),
    ("ForwardedResult", "keys[0] == keys[1] and", "keys[0] == keys[0] and"),
    ("CommonOps", "op_key(op, [values[v] for v in op.operands])", "op_key(op, ())"),
    ("CommonOps", "raises_freely and is_pure(op)", "is_pure(op)"),
    ("SunkOps", "if len(readers) == 1 else None", "if readers else None"),
    ("SunkOps", "(0 if i in then else 1) if (i in then) != (i in other)", "0 if i in then"),
    ("LoopInvariant", "movable_ops(region, args, is_speculatable)", "movable_ops(region, args, is_pure)"),
    (
        "ShortLoop",
        "for value in loop.regions[1].results]) is False",
        "for value in loop.regions[1].results]) is None",
    ),
    ("JoinedConditions", "source=0 if holds else 1", "source=1 if holds else 0"),
    ("JoinedConditions", "in (None, arm == 0) for holds", "in (None,) for holds"),
    ("JoinedConditions", "if not all(map(_is_cheap, needed))", "if not all(map(is_speculatable, needed))"),
)


@pytest.mark.conformance
@pytest.mark.parametrize(("rewrite", "old", "new"), MISTAKES)
def test_derived_tests_catch_a_mistake(rewrite: str, old: str, new: str) -> None:
    mutant = Mutant(rewrite, "a mistake", old, new, torch.neg, ()).make()
    failed: list[str] = []
    for case in rewrite_cases(mutant):
        try:
            case.run()
        except (AssertionError, NumericsMismatch, RewriteError, VerifyError):
            failed.append(case.id)
    assert failed, f"nothing shows that {rewrite} is wrong with: {new}"
