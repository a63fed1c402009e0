"""Patterns: what they match, what they decline and why, and that they only read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from regraft.errors import OptionError, RewriteError
from regraft.ir import (
    Builder,
    Declined,
    DType,
    Match,
    Module,
    Op,
    Pattern,
    PatternBuilder,
    Rewrite,
    TensorType,
    Value,
    Var,
    decide,
    match_pattern,
    print_module,
)
from tests.ir.graphs import TABLE, f32, module

X = f32(2, 3)


class Custom(Rewrite):
    """A rewrite around one pattern function."""

    def __init__(self, pattern: Callable[..., Any], check: Callable[[Match], Any] = lambda m: None) -> None:
        self.pattern = pattern
        self._check = check

    def check(self, m: Match) -> Declined | None:
        return self._check(m)


def attempt(
    pattern: Callable[..., Any],
    build: Callable[..., Any],
    inputs: int = 2,
    *,
    check: Callable[[Match], Any] = lambda m: None,
    outputs: Sequence[int] = (-1,),
) -> tuple[Match | Declined, Module]:
    """Try ``pattern`` at the op before the terminator; the graph must read the same afterwards."""

    def forward(op: Builder, *values: Value) -> list[Value]:
        build(op, *values)
        return [list(op.region.ops)[i].results[0] for i in outputs]

    made = module(forward, [X] * inputs)
    before = print_module(made)
    rewrite = Custom(pattern, check)
    root = list(made.main.body.ops)[-2]
    outcome: Match | Declined = Declined("no pattern")
    for each in rewrite.patterns(TABLE):
        outcome = decide(rewrite, each, root)
        if isinstance(outcome, Match):
            break
    assert print_module(made) == before
    return outcome, made


def matched(*args: Any, **kwargs: Any) -> Match:
    outcome, _ = attempt(*args, **kwargs)
    assert isinstance(outcome, Match), outcome
    return outcome


def declined(*args: Any, **kwargs: Any) -> str:
    outcome, _ = attempt(*args, **kwargs)
    assert isinstance(outcome, Declined)
    return outcome.reason


def test_binds_values_in_order() -> None:
    m, made = attempt(
        lambda op, a, b: op.aten.add.Tensor(op.aten.relu(a), b),
        lambda op, x, y: op.aten.add.Tensor(op.aten.relu(x), y),
    )
    assert isinstance(m, Match)
    x, y = made.main.args
    assert (m.a, m.b) == (x, y)
    assert [op.name for op in m.ops] == ["aten.add.Tensor", "aten.relu"]
    assert m.optional("a") is x
    with pytest.raises(AttributeError, match="the match has no value 'c'"):
        _ = m.c


def test_commutative_operands_match_both_ways() -> None:
    def pattern(op: PatternBuilder, a: Var, b: Var) -> Any:
        return op.aten.add.Tensor(op.aten.relu(a), b)

    outcome, made = attempt(pattern, lambda op, x, y: op.aten.add.Tensor(y, op.aten.relu(x)))
    assert isinstance(outcome, Match)
    assert (outcome.a, outcome.b) == tuple(made.main.args)
    assert "expected aten.relu" in declined(
        lambda op, a, b: op.aten.sub.Tensor(op.aten.relu(a), b),
        lambda op, x, y: op.aten.sub.Tensor(y, op.aten.relu(x)),
    )


def test_commutative_backtracks_through_depth() -> None:
    """The first way of the inner op binds a and b so that only its second way lets the outer match."""
    outcome, made = attempt(
        lambda op, a, b: op.aten.add.Tensor(op.aten.mul.Tensor(a, b), a),
        lambda op, x, y: op.aten.add.Tensor(op.aten.mul.Tensor(x, y), y),
    )
    assert isinstance(outcome, Match)
    assert (outcome.a, outcome.b) == tuple(reversed(made.main.args))


def test_scaled_addition_does_not_commute() -> None:
    reason = declined(
        lambda op, a, b: op.aten.add.Tensor(op.aten.relu(a), b, alpha=2),
        lambda op, x, y: op.aten.add.Tensor(y, op.aten.relu(x), alpha=2),
    )
    assert reason == "expected aten.relu, found an input"


def test_one_of() -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        return op.aten.neg(op.one_of(op.aten.relu(a), op.aten.tanh(a)))

    matched(pattern, lambda op, x: op.aten.neg(op.aten.relu(x)), 1)
    matched(pattern, lambda op, x: op.aten.neg(op.aten.tanh(x)), 1)
    assert declined(pattern, lambda op, x: op.aten.neg(op.aten.exp(x)), 1).startswith("expected aten.")


def test_one_of_at_the_root() -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        return op.one_of(op.aten.relu(a), op.aten.tanh(a))

    assert len(Pattern.trace(pattern, TABLE)) == 2
    matched(pattern, lambda op, x: op.aten.tanh(x), 1)
    assert declined(pattern, lambda op, x: op.aten.exp(x), 1) == "aten.exp is not aten.tanh"


def test_same_variable_twice() -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        return op.aten.mul.Tensor(a, op.aten.sigmoid(a))

    matched(pattern, lambda op, x, y: op.aten.mul.Tensor(op.aten.sigmoid(x), x))
    assert declined(pattern, lambda op, x, y: op.aten.mul.Tensor(y, op.aten.sigmoid(x))) == (
        "'a' stands for two different values"
    )


def test_same_node_twice_is_one_op() -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        inner = op.aten.relu(a)
        return op.aten.add.Tensor(inner, inner)

    def shared(op: Builder, x: Value) -> None:
        inner = op.aten.relu(x)
        op.aten.add.Tensor(inner, inner)

    matched(pattern, shared, 1)
    declined(pattern, lambda op, x: op.aten.add.Tensor(op.aten.relu(x), op.aten.relu(x)), 1)


def test_attributes() -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        return op.aten.softmax.int(a, op.attr("axis"))

    assert matched(pattern, lambda op, x: op.aten.softmax.int(x, 1), 1).attr("axis") == 1
    reason = declined(pattern, lambda op, x: op.aten.softmax.int(x, 1, dtype=DType.F64), 1)
    assert reason == "attribute 'dtype' is f64, expected None"


def test_same_attribute_variable_twice() -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        k = op.attr("k")
        return op.aten.mul.Scalar(op.aten.add.Scalar(a, k), k)

    assert (
        matched(pattern, lambda op, x: op.aten.mul.Scalar(op.aten.add.Scalar(x, 3.0), 3.0), 1).attr("k") == 3
    )
    reason = declined(pattern, lambda op, x: op.aten.mul.Scalar(op.aten.add.Scalar(x, 4.0), 3.0), 1)
    assert reason == "attribute 'other' differs between ops: 4.0 and 3.0"


def test_true_is_not_one() -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        return op.aten.add.Scalar(a, 1)

    matched(pattern, lambda op, x: op.aten.add.Scalar(x, 1.0), 1)
    assert "is True, expected 1" in declined(pattern, lambda op, x: op.aten.add.Scalar(x, True), 1)


def test_optional_operand() -> None:
    def pattern(op: PatternBuilder, a: Var, w: Var, bias: Var) -> Any:
        return op.aten.linear(a, w, op.optional(bias))

    types = [f32(2, 3), f32(4, 3), f32(4)]

    def root(build: Callable[..., Any]) -> Op:
        made = module(lambda op, *v: [build(op, *v)], types)
        return next(made.main.body.ops)

    (traced,) = Custom(pattern).patterns(TABLE)
    absent = match_pattern(traced, root(lambda op, x, w, b: op.aten.linear(x, w)))
    assert isinstance(absent, Match)
    assert absent.optional("bias") is None
    present = match_pattern(traced, root(lambda op, x, w, b: op.aten.linear(x, w, b)))
    assert isinstance(present, Match)
    assert present.bias.type == f32(4)
    (strict,) = Custom(lambda op, a, w, bias: op.aten.linear(a, w, bias)).patterns(TABLE)
    refused = match_pattern(strict, root(lambda op, x, w, b: op.aten.linear(x, w)))
    assert refused == Declined("'bias' is absent", None)


class Negated(Rewrite):
    """Has nothing that could change."""

    def pattern(self, op: PatternBuilder, a: Var) -> Any:
        return op.aten.neg(a)


@dataclass(frozen=True)
class Named(Rewrite):
    """A pattern of one op, which a field names; the hash of a list is none."""

    op: Any

    def pattern(self, op: PatternBuilder, a: Var) -> Any:
        return op.call(self.op[0] if isinstance(self.op, list) else self.op, (a,), {})


def name_of(rewrite: Rewrite) -> str:
    (traced,) = rewrite.patterns(TABLE)
    return traced.root.definition.name


def test_a_pattern_that_cannot_change_is_traced_once_over_a_table() -> None:
    rewrite = Negated()
    (first,), (second,) = rewrite.patterns(TABLE), rewrite.patterns(TABLE)
    assert first is second
    (other,) = rewrite.patterns(TABLE.extended([]))
    assert other is not first
    assert [name_of(Named(name)) for name in ("aten.neg", "aten.relu", "aten.neg")] == [
        "aten.neg",
        "aten.relu",
        "aten.neg",
    ]


def test_a_pattern_that_may_change_is_traced_anew() -> None:
    rewrite = Custom(lambda op, a: op.aten.neg(a))
    assert name_of(rewrite) == "aten.neg"
    rewrite.pattern = lambda op, a: op.aten.relu(a)
    assert name_of(rewrite) == "aten.relu"
    listed = Named(["aten.neg"])
    assert name_of(listed) == "aten.neg"
    listed.op[0] = "aten.relu"
    assert name_of(listed) == "aten.relu"


def test_an_opaque_use_is_not_the_op() -> None:
    """A use that the op table does not cover has an op's name, and not its types."""
    use = replace(TABLE["aten.relu"], opaque=True)

    def opaque(op: Builder, x: Value) -> Value:
        return op.insert(Op.create(use, (), {"self": x}, result_types=[x.type])).result

    root = declined(lambda op, a: op.aten.relu(a), opaque, 1)
    assert root == "an opaque aten.relu is not aten.relu"
    inner = declined(lambda op, a: op.aten.neg(op.aten.relu(a)), lambda op, x: op.aten.neg(opaque(op, x)), 1)
    assert inner == "expected aten.relu, found an opaque aten.relu"


def test_absent_in_the_pattern_is_absent_in_the_graph() -> None:
    (traced,) = Custom(lambda op, a, w: op.aten.linear(a, w)).patterns(TABLE)
    made = module(lambda op, x, w, b: [op.aten.linear(x, w, b)], [f32(2, 3), f32(4, 3), f32(4)])
    assert isinstance(match_pattern(traced, next(made.main.body.ops)), Declined)


def test_lists_of_operands() -> None:
    def pattern(op: PatternBuilder, a: Var, b: Var) -> Any:
        return op.aten.cat([op.aten.neg(a), b], 0)

    matched(pattern, lambda op, x, y: op.aten.cat([op.aten.neg(x), y], 0))
    assert declined(pattern, lambda op, x, y: op.aten.cat([op.aten.neg(x), y, y], 0)) == (
        "the operands differ: 'tensors' holds 3, expected 2"
    )


def test_a_list_of_any_length() -> None:
    def pattern(op: PatternBuilder) -> Any:
        return op.aten.cat(op.any_operands(), 0)

    for count in (1, 3):
        m = matched(pattern, lambda op, x, y, count=count: op.aten.cat([x] * count, 0))
        assert len(m.root.operands) == count
    assert "attribute 'dim'" in declined(pattern, lambda op, x, y: op.aten.cat([x, y], 1))


def test_result_of_several() -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        return op.aten.neg(op.result(op.aten.topk(a, op.attr("k")), 0))

    def build(index: int) -> Callable[..., Any]:
        def write(op: Builder, x: Value) -> None:
            op.aten.neg(op.aten.topk(x, 2)[index])

        return write

    assert matched(pattern, build(0), 1).attr("k") == 2
    declined(pattern, build(1), 1)


def relu_of(op: Any, a: Any) -> Any:
    return op.aten.neg(op.aten.relu(a))


def test_inner_value_with_another_user_is_declined() -> None:
    outcome, made = attempt(relu_of, relu_of, 1, outputs=(0, 1))
    assert isinstance(outcome, Declined)
    assert outcome.reason == "an inner value has users outside the match"
    assert outcome.culprit is next(made.main.body.ops).result


def test_shared_inner_value_may_have_other_users() -> None:
    m = matched(lambda op, a: op.aten.neg(op.shared(op.aten.relu(a))), relu_of, 1, outputs=(0, 1))
    assert [op.name for op in m.shared] == ["aten.relu"]


def test_check_has_the_last_word() -> None:
    outcome, _ = attempt(relu_of, relu_of, 1, check=lambda m: m.decline("not today", m.a))
    assert isinstance(outcome, Declined)
    assert outcome.reason == "not today"
    assert outcome.culprit is not None


def test_failing_check_names_the_rewrite() -> None:
    with pytest.raises(RewriteError, match=r"'Custom'\.check failed: ZeroDivisionError: .*by zero"):
        attempt(relu_of, relu_of, 1, check=lambda m: 1 // 0)


def test_search_is_bounded() -> None:
    def pattern(op: PatternBuilder, a: Var, b: Var) -> Any:
        node: Any = op.aten.tanh(a)
        for _ in range(14):
            node = op.one_of(op.aten.add.Tensor(node, b), op.aten.add.Tensor(b, node))
        return op.aten.neg(node)

    def build(op: Builder, x: Value, y: Value) -> None:
        value = op.aten.exp(x)
        for _ in range(14):
            value = op.aten.add.Tensor(value, value)
        op.aten.neg(value)

    with pytest.raises(RewriteError, match="too many steps"):
        attempt(pattern, build)


def test_pattern_must_return_an_op() -> None:
    with pytest.raises(RewriteError, match="must return an op, not Var"):
        Pattern.trace(lambda op, a: a, TABLE)


@pytest.mark.parametrize("name", ["values", "root", "decline"])
def test_names_that_a_match_takes(name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"def pattern(op, {name}): return op.aten.relu({name})", namespace)
    with pytest.raises(RewriteError, match=f"cannot be called '{name}'"):
        Pattern.trace(namespace["pattern"], TABLE)


def test_unknown_op_in_a_pattern() -> None:
    with pytest.raises(OptionError, match=r"no op 'aten\.rleu'"):
        Pattern.trace(lambda op, a: op.aten.rleu(a), TABLE)


def test_unpacking_a_node_is_refused() -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        values, _ = op.aten.topk(a, 2)
        return op.aten.neg(values)

    with pytest.raises(TypeError, match="several results"):
        Pattern.trace(pattern, TABLE)


def test_failure_is_the_furthest_one() -> None:
    reason = declined(
        lambda op, a: op.aten.neg(op.one_of(op.aten.tanh(a), op.aten.relu(op.aten.exp(a)))),
        lambda op, x: op.aten.neg(op.aten.relu(op.aten.sin(x))),
        1,
    )
    assert reason == "expected aten.exp, found aten.sin"


def test_types_of_matched_values() -> None:
    m = matched(relu_of, relu_of, 1)
    assert m.a.tensor == TensorType(DType.F32, (2, 3))


@pytest.mark.parametrize("same", [True, False])
def test_a_shared_node_means_the_op_of_the_node(same: bool) -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        inner = op.aten.relu(a)
        return op.aten.mul.Tensor(inner, op.shared(inner))

    def build(op: Builder, x: Value) -> Any:
        first = op.aten.relu(x)
        return op.aten.mul.Tensor(first, first if same else op.aten.relu(x))

    if same:
        assert [op.name for op in matched(pattern, build, 1).shared] == ["aten.relu"]
    else:
        assert "are two ops" in declined(pattern, build, 1)


@pytest.mark.parametrize("same", [True, False])
def test_results_of_one_node_are_of_one_op(same: bool) -> None:
    def pattern(op: PatternBuilder, a: Var) -> Any:
        both = op.aten.topk(a, op.attr("k"))
        return op.aten.gather(op.result(both, 0), 1, op.result(both, 1))

    def build(op: Builder, x: Value) -> Any:
        values, indices = op.aten.topk(x, 2)
        return op.aten.gather(values, 1, indices if same else op.aten.topk(x, 2)[1])

    if same:
        matched(pattern, build, 1)
    else:
        assert "are two ops" in declined(pattern, build, 1)
