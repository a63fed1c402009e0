"""Passes: their order, their driver, its limits."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from regraft.errors import OptionError, RewriteError, VerifyError
from regraft.ir import (
    Builder,
    Declined,
    Exactness,
    Fuel,
    Match,
    Module,
    PassContext,
    PatternBuilder,
    Rewrite,
    RewritePass,
    Value,
    Var,
    in_order,
    print_region,
    run_stage,
    verify,
)
from tests.ir.graphs import TABLE, f32, module, region


class Named:
    """A pass that writes its name down."""

    def __init__(
        self,
        name: str,
        after: Sequence[str] = (),
        before: Sequence[str] = (),
        *,
        stage: str = "fold",
        run: Callable[[Module], Any] = lambda module: False,
    ) -> None:
        self.name, self.stage = name, stage
        self.after, self.before = tuple(after), tuple(before)
        self._run = run

    def run(self, module: Module, context: PassContext) -> bool:
        return bool(self._run(module))


def names(items: Sequence[Named]) -> list[str]:
    return [item.name for item in in_order(items)]


def test_order_does_not_depend_on_the_list() -> None:
    items = [
        Named("e", before=["a"]),
        Named("d"),
        Named("a", after=["c"]),
        Named("b", after=["e", "not here"]),
        Named("c", before=["nor here"]),
    ]
    expected = names(items)
    assert expected.index("e") < expected.index("a")
    assert expected.index("c") < expected.index("a")
    assert expected.index("e") < expected.index("b")
    for seed in range(30):
        random.Random(seed).shuffle(items)
        assert names(items) == expected


def test_cycle() -> None:
    with pytest.raises(RewriteError, match=r"cyclic order: .*(a -> b|b -> a)"):
        names([Named("a", after=["b"]), Named("b", after=["a"])])
    with pytest.raises(RewriteError, match="cyclic order"):
        names([Named("a", before=["b"]), Named("b", before=["c"]), Named("c", before=["a"])])


def test_names_are_unique() -> None:
    with pytest.raises(RewriteError, match="two passes or rewrites are called 'a'"):
        names([Named("a"), Named("a")])


def relu_chain(length: int = 3) -> Module:
    def forward(op: Builder, x: Value) -> list[Value]:
        for _ in range(length):
            x = op.aten.relu(x)
        return [x]

    return module(forward, [f32(2)])


def test_stage_runs_its_passes_and_reports_them() -> None:
    seen: list[str] = []
    context = PassContext(TABLE, observer=lambda name, module, seconds: seen.append(name))
    passes = [Named("b"), Named("other", stage="recover"), Named("a", after=["b"])]
    run_stage(passes, "fold", relu_chain(), context)
    assert seen == ["b", "a"]


def test_failing_pass_is_named() -> None:
    with pytest.raises(RewriteError, match=r"the pass 'bad' failed: ZeroDivisionError: .*by zero"):
        run_stage([Named("bad", run=lambda m: 1 // 0)], "fold", relu_chain(), PassContext(TABLE))


def test_own_errors_pass_through_once() -> None:
    def break_and_verify(made: Module) -> None:
        next(made.main.body.ops).results[0].type = f32(3)
        verify(made, after_pass="bad")

    with pytest.raises(VerifyError) as caught:
        run_stage([Named("bad", run=break_and_verify)], "fold", relu_chain(), PassContext(TABLE))
    assert str(caught.value).count("expected f32[2]") == 1


class ReluOfRelu(Rewrite):
    """relu(relu(x)) = relu(x)"""

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.relu(op.aten.relu(x))

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.relu(m.x)


class TanhToSigmoid(Rewrite):
    after = ("ReluOfRelu",)

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.tanh(x)

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.sigmoid(m.x)


class SigmoidToTanh(Rewrite):
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.sigmoid(x)

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.tanh(m.x)


def run(made: Module, *rewrites: Rewrite, **more: Any) -> PassContext:
    context = PassContext(TABLE, **more)
    RewritePass("test", "recover", rewrites).run(made, context)
    verify(made)
    return context


def test_rewrites_reach_a_fixpoint() -> None:
    made = relu_chain(6)
    context = run(made, ReluOfRelu())
    assert [op.name for op in made.main.body.ops] == ["aten.relu", "cf.yield"]
    assert context.stats["ReluOfRelu"].hits == 5
    assert context.stats["ReluOfRelu"].seconds > 0
    assert context.stats["ReluOfRelu"].declined
    assert next(made.main.body.ops).loc.made_by[-1] == "ReluOfRelu"
    assert not RewritePass("test", "recover", [ReluOfRelu()]).run(made, context)


def test_rewrites_work_in_regions() -> None:
    def forward(op: Builder, x: Value) -> list[Value]:
        inner = region(lambda op, y: [op.aten.relu(op.aten.relu(y))], [f32(2)])
        return [op.create("my.draw", (x,), regions=[inner]).results[0]]

    made = module(forward, [f32(2)])
    assert run(made, ReluOfRelu()).stats["ReluOfRelu"].hits == 1


def test_fuel_stops_in_the_middle() -> None:
    made = relu_chain(6)
    context = run(made, ReluOfRelu(), fuel=Fuel(2))
    assert context.stats["ReluOfRelu"].hits == 2
    assert len(made.main.body) == 5
    full = run(relu_chain(6), ReluOfRelu())
    assert full.fuel.spent == 5


def test_rewrites_that_undo_each_other_are_named() -> None:
    made = module(lambda op, x: [op.aten.relu(op.aten.tanh(x))], [f32(2)])
    with pytest.raises(RewriteError, match="do not terminate after 200 applications") as caught:
        run(made, TanhToSigmoid(), SigmoidToTanh(), ReluOfRelu())
    assert caught.value.rewrites == ("SigmoidToTanh", "TanhToSigmoid")
    assert "SigmoidToTanh, TanhToSigmoid" in str(caught.value)


def test_exactness_leaves_rewrites_out() -> None:
    made = module(lambda op, x: [op.aten.tanh(x)], [f32(2)])
    context = run(made, TanhToSigmoid(), SigmoidToTanh(), exactness=Exactness.EXACT)
    assert next(made.main.body.ops).name == "aten.sigmoid"
    assert "SigmoidToTanh" not in context.stats


def test_exactness_levels() -> None:
    levels = [Exactness.EXACT, Exactness.REASSOCIATES, Exactness.APPROX(1e-3), Exactness.APPROX(1e-2)]
    for i, level in enumerate(levels):
        assert [level.allows(other) for other in levels] == [j <= i for j in range(4)]
    assert [str(level) for level in levels] == ["exact", "reassociates", "approx(0.001)", "approx(0.01)"]


@pytest.mark.parametrize("tolerance", [-1, -1e-9, float("nan"), True, "0.1", None])
def test_tolerances_that_are_none(tolerance: Any) -> None:
    with pytest.raises(OptionError, match="tolerance: expected a number from 0 on"):
        Exactness.APPROX(tolerance)


def test_order_of_rewrites_is_theirs() -> None:
    listed = RewritePass("test", "recover", [TanhToSigmoid(), SigmoidToTanh(), ReluOfRelu()])
    turned = RewritePass("test", "recover", [ReluOfRelu(), SigmoidToTanh(), TanhToSigmoid()])
    assert [r.name for r in listed.rewrites] == [r.name for r in turned.rewrites]
    assert [r.name for r in listed.rewrites] == ["ReluOfRelu", "SigmoidToTanh", "TanhToSigmoid"]


class Raises(ReluOfRelu):
    def rewrite(self, op: Builder, m: Match) -> Value:
        raise KeyError("oh")


class WrongType(ReluOfRelu):
    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.view(m.x, (2, 1))


class Declines(ReluOfRelu):
    def check(self, m: Match) -> Declined | None:
        return m.decline("never")


def test_rewrites_that_fail() -> None:
    with pytest.raises(RewriteError, match=r"'Raises'\.rewrite failed: KeyError: 'oh'"):
        run(relu_chain(), Raises())
    with pytest.raises(RewriteError, match=r"'WrongType' replaces aten\.relu"):
        run(relu_chain(), WrongType())


def test_reasons_are_counted() -> None:
    made = relu_chain(3)
    before = print_region(made.main.body)
    context = run(made, Declines())
    assert context.stats["Declines"].declined["never"] == 2
    assert print_region(made.main.body) == before


def test_fingerprints_follow_the_source() -> None:
    assert ReluOfRelu().fingerprint() == ReluOfRelu().fingerprint()
    assert ReluOfRelu().fingerprint() != TanhToSigmoid().fingerprint()
