"""Dead code, common subexpressions, constant recipes and constant indices."""

import math

import pytest
import torch

from regraft.ir import OPS, Builder, DType, Module, Recipe, Region, Value, verify
from regraft.rewrites import default_passes, fold
from regraft.testing import evaluate
from tests.rewrites.graphs import graph, names, run


def constants(module: Module) -> list[object]:
    return [op.attr("value") for op in module.main.body.ops if op.name == "rg.const"]


# -- dead code ---------------------------------------------------------------------------------


def test_dead_chains_go_and_the_rest_stays() -> None:
    def build(op, x):
        op.aten.exp(op.aten.neg(x))
        return op.aten.relu(x)

    module = graph(build, "f32[3]")
    run(fold.DeadCode(), module)
    assert names(module) == ["aten.relu"]


def test_what_has_an_effect_is_not_dead() -> None:
    def build(op, x, flag):
        op.rg.check(flag, "must hold")
        return op.aten.relu(x)

    module = graph(build, "f32[3]", "bool[]")
    assert not fold.DeadCode().run(module, run((), module))
    assert names(module) == ["rg.check", "aten.relu"]


# -- common subexpressions ---------------------------------------------------------------------


def merged(build, *inputs: str) -> list[str]:
    module = graph(build, *inputs)
    run(fold.CommonSubexpressions(), module)
    verify(module, table=OPS)
    return names(module)


def test_equal_ops_are_shared_in_chains() -> None:
    def build(op, x):
        return tuple(op.aten.exp(op.aten.neg(x)) for _ in range(3))

    assert merged(build, "f32[3]") == ["aten.neg", "aten.exp"]


def test_commutative_ops_are_shared_with_their_operands_swapped() -> None:
    assert merged(
        lambda op, x, y: (op.aten.add.Tensor(x, y), op.aten.add.Tensor(y, x)), "f32[3]", "f32[3]"
    ) == ["aten.add.Tensor"]
    scaled = merged(
        lambda op, x, y: (op.aten.add.Tensor(x, y, alpha=2), op.aten.add.Tensor(y, x, alpha=2)),
        "f32[3]",
        "f32[3]",
    )
    assert len(scaled) == 2
    assert (
        len(merged(lambda op, x, y: (op.aten.sub.Tensor(x, y), op.aten.sub.Tensor(y, x)), "f32[3]", "f32[3]"))
        == 2
    )


@pytest.mark.parametrize(
    ("a", "b", "shared"), [(0.0, -0.0, False), (1, 1.0, False), (0.5, 0.5, True), (math.nan, math.nan, True)]
)
def test_numbers_are_told_apart_by_their_bits(a: float, b: float, shared: bool) -> None:
    found = merged(lambda op, x: (op.aten.add.Scalar(x, a), op.aten.add.Scalar(x, b)), "f32[3]")
    assert (len(found) == 1) == shared


def test_effects_and_regions_are_not_shared() -> None:
    def build(op, x, flag):
        op.rg.check(flag, "twice")
        op.rg.check(flag, "twice")
        return op.aten.relu(x)

    assert merged(build, "f32[3]", "bool[]") == ["rg.check", "rg.check", "aten.relu"]


def test_an_op_in_a_branch_is_not_replaced_by_one_outside() -> None:
    def build(op, x, flag):
        branches = [Region([x.type]) for _ in range(2)]
        for branch in branches:
            inner = Builder(OPS, branch)
            twice = [inner.aten.exp(branch.args[0]) for _ in range(2)]
            inner.create("cf.yield", ([inner.aten.add.Tensor(*twice)],))
        chosen = op.create("cf.cond", (flag, [x]), regions=branches).result
        return op.aten.exp(x), chosen

    module = graph(build, "f32[3]", "bool[]")
    run(fold.CommonSubexpressions(), module)
    verify(module, table=OPS)
    assert names(module) == ["cf.cond", "aten.exp"]
    (cond,) = [op for op in module.main.body.ops if op.name == "cf.cond"]
    assert [[op.name for op in region.ops] for region in cond.regions] == [
        ["aten.exp", "aten.add.Tensor", "cf.yield"]
    ] * 2


# -- recipes -----------------------------------------------------------------------------------


def test_what_depends_on_constants_alone_becomes_one_recipe() -> None:
    def build(op, x, w, v):
        weight = op.aten.permute(op.aten.add.Tensor(w, v), (1, 0))
        return op.aten.linear(x, weight)

    module = graph(build, "f32[2, 3]", "f32[3, 5]", "f32[3, 5]", constants=(1, 2))
    x = torch.randn(2, 3)
    expected = evaluate(module.main, [x])
    run((fold.ConstantRecipes(), fold.DeadCode(after=("constant-recipes",))), module)
    verify(module, "fold", table=OPS)
    assert names(module) == ["aten.linear"]
    (recipe,) = constants(module)
    assert isinstance(recipe, Recipe)
    assert [op.name for op in recipe.body.ops] == [
        "rg.const",
        "rg.const",
        "aten.add.Tensor",
        "aten.permute",
        "cf.yield",
    ]
    torch.testing.assert_close(evaluate(module.main, [x]), expected, rtol=0, atol=0)


def test_equal_recipes_are_one_object() -> None:
    def build(op, x, w):
        return tuple(op.aten.linear(x, op.aten.permute(w, (1, 0))) for _ in range(2))

    module = graph(build, "f32[2, 3]", "f32[3, 5]", constants=(1,))
    run(fold.ConstantRecipes(), module)
    (recipe,) = set(constants(module))
    assert isinstance(recipe, Recipe)


def folds(build, *inputs: str, constants: tuple[int, ...] = (1,), generated: bool = True) -> list[str]:
    """The ops that stay when recipes are made."""
    module = graph(build, *inputs, constants=constants)
    run((fold.ConstantRecipes(generated=generated), fold.DeadCode(after=("constant-recipes",))), module)
    verify(module, table=OPS)
    return names(module)


def test_what_only_repeats_elements_stays() -> None:
    def expanded(op, x, w):
        return op.aten.add.Tensor(x, op.aten.expand(op.aten.exp(w), (1000, 8)))

    assert folds(expanded, "f32[1000, 8]", "f32[8]") == ["aten.expand", "aten.add.Tensor"]

    def viewed(op, x, w):
        return op.aten.add.Tensor(x, op.aten.view(op.aten.expand(w, (10, 8)), (80,)))

    assert folds(viewed, "f32[80]", "f32[8]") == ["aten.expand", "aten.view", "aten.add.Tensor"]
    filled = folds(
        lambda op, x, w: op.aten.add.Tensor(x, op.aten.full((3,), 1.0, dtype=DType.F32)), "f32[3]", "f32[3]"
    )
    assert filled == ["aten.full", "aten.add.Tensor"]


def test_what_grows_too_much_stays_and_its_operands_fold() -> None:
    side = 4096  # 64 MiB from 32 KiB

    def outer(op, x, w):
        column = op.aten.view(op.aten.exp(w), (side, 1))
        return op.aten.add.Tensor(x, op.aten.mul.Tensor(column, w))

    assert folds(outer, f"f32[{side}, {side}]", f"f32[{side}]") == ["aten.mul.Tensor", "aten.add.Tensor"]

    def summed(op, x, w):  # the large product is only on the way to a small sum
        column = op.aten.view(w, (side, 1))
        return op.aten.add.Tensor(x, op.aten.sum.dim_IntList(op.aten.mul.Tensor(column, w), (0,)))

    assert folds(summed, f"f32[{side}]", f"f32[{side}]") == ["aten.add.Tensor"]


def test_symbolic_sizes_stay() -> None:
    def build(op, x, w):
        return op.aten.add.Tensor(x, op.aten.slice.Tensor(w, 0, 0, x.type.shape[0]))

    assert folds(build, "f32[S]", "f32[512]") == ["aten.slice.Tensor", "aten.add.Tensor"]


def test_generated_tables_wait_when_asked() -> None:
    def build(op, x, w):
        counted = op.aten.arange.start_step(0, 4, 1, dtype=DType.I64)
        seen = op.aten.le.Tensor(counted, op.aten.view(counted, (4, 1)))
        return op.aten.where.self(seen, x, op.aten.exp(w))

    assert folds(build, "f32[4, 4]", "f32[4]") == ["aten.where.self"]
    kept = folds(build, "f32[4, 4]", "f32[4]", generated=False)
    assert kept == ["aten.arange.start_step", "aten.view", "aten.le.Tensor", "aten.where.self"]


def test_an_op_that_may_raise_is_not_run_early_in_a_branch() -> None:
    def build(op, x, table, index, flag):
        branches = [Region([x.type]) for _ in range(2)]
        for branch in branches:
            inner = Builder(OPS, branch)
            picked = inner.aten.gather(
                *(inner.constant(v.op.attr("value")) for v in (table,)),
                0,
                inner.constant(index.op.attr("value")),
            )
            inner.create("cf.yield", ([inner.aten.add.Tensor(branch.args[0], inner.aten.exp(picked))],))
        picked = op.aten.gather(table, 0, index)
        return op.create("cf.cond", (flag, [x]), regions=branches).result, op.aten.add.Tensor(x, picked)

    module = graph(build, "f32[3]", "f32[9]", "i64[3]", "bool[]", constants=(1, 2))
    run((fold.ConstantRecipes(), fold.DeadCode(after=("constant-recipes",))), module)
    verify(module, table=OPS)
    assert names(module) == ["cf.cond", "aten.add.Tensor"]
    (cond,) = [op for op in module.main.body.ops if op.name == "cf.cond"]
    assert "aten.gather" in [op.name for op in cond.regions[0].ops]


# -- constant indices --------------------------------------------------------------------------


def test_proved_constants_become_full() -> None:
    def build(op, x):
        counted = op.aten.arange.start_step(0, x.type.shape[0], 1, dtype=DType.I64)
        always = op.aten.ge.Scalar(counted, 0)
        zero = op.aten.cumsum(op.aten.lt.Scalar(counted, 0), 0)
        return op.aten.where.self(always, x, op.aten._to_copy(zero, dtype=DType.F32))

    module = graph(build, "f32[S]")
    run((fold.ConstantIndices(), fold.DeadCode(after=("constant-indices",))), module)
    verify(module, table=OPS)
    assert names(module) == ["aten.full", "aten.full", "aten._to_copy", "aten.where.self"]
    x = torch.randn(4)
    torch.testing.assert_close(evaluate(module.main, [x], {"S": 4}), [x])


def test_every_stage_ends_without_waste() -> None:
    def build(op, x, w):
        op.aten.exp(x)
        both = [op.aten.linear(x, op.aten.t(w)) for _ in range(2)]
        return op.aten.add.Tensor(*both)

    module = graph(build, "f32[2, 3]", "f32[3, 5]", constants=(1,))
    run([p for p in default_passes() if p.stage == "canonicalize"], module)
    verify(module, "canonicalize", table=OPS)
    run([p for p in default_passes() if p.stage == "fold"], module)
    verify(module, "fold", table=OPS)
    assert names(module) == ["aten.linear", "aten.add.Tensor"]


def test_a_value_that_is_a_result_itself_can_be_folded() -> None:
    module = graph(lambda op, x, w: (op.aten.relu(x), op.aten.exp(w)), "f32[3]", "f32[3]", constants=(1,))
    run((fold.ConstantRecipes(), fold.DeadCode(after=("constant-recipes",))), module)
    assert names(module) == ["aten.relu"]
    value: Value = module.main.results[1]
    assert isinstance(value.op.attr("value"), Recipe)
