"""The helpers that judge everything else are judged on wrong models here."""

import copy
import math

import pytest
import torch
from torch import nn

from regraft import Exactness, Rewrite
from regraft.errors import NumericsMismatch
from regraft.testing import assert_close, check_rewrite, randomise, rewrite_cases

# -- assert_close ------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 32)
        self.norm = nn.LayerNorm(32)
        self.down = nn.Linear(32, 8)
        self.scale = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.norm(torch.nn.functional.gelu(self.up(x)))) * self.scale


def results(dtype: torch.dtype, change=lambda model: None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a changed model gives, the fp64 reference, and eager's own result."""
    model = randomise(Small(), seed=1).eval().to(dtype)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    changed = copy.deepcopy(model)
    change(changed)
    with torch.no_grad():
        return changed(x), copy.deepcopy(model).double()(x.double()), model(x)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_models_pass(dtype: torch.dtype) -> None:
    actual, expected, eager = results(dtype)
    assert assert_close(actual, expected, eager) < 2e-2


def rescaled(model: Small) -> None:
    model.scale = 1.9


def without_bias(model: Small) -> None:
    model.down.bias.data.zero_()


def swapped(model: Small) -> None:
    weight = model.up.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def other_eps(model: Small) -> None:
    model.norm.eps = 0.2


def slightly_scaled(model: Small) -> None:
    model.scale = 1.05


WRONG = [rescaled, without_bias, swapped, other_eps, slightly_scaled]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_wrong_models_fail(dtype: torch.dtype, change) -> None:
    actual, expected, eager = results(dtype, change)
    with pytest.raises(NumericsMismatch) as caught:
        assert_close(actual, expected, eager, reassociates=True, suspect="Culprit")
    assert caught.value.suspect == "Culprit"
    assert caught.value.error > caught.value.tolerance


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
)
def test_tolerances_are_those_of_the_rule(dtype: torch.dtype, tolerance: float) -> None:
    expected = torch.tensor([2.0, -8.0, 0.5], dtype=torch.float64)
    # The error is relative to the largest magnitude, so it may sit on the smallest element.
    ulp = 8 * torch.finfo(dtype).eps
    assert_close((expected + torch.tensor([0, 0, 8 * tolerance * 0.7 - ulp])).to(dtype), expected)
    with pytest.raises(NumericsMismatch):
        assert_close((expected + torch.tensor([0, 0, 8 * tolerance * 1.4 + ulp])).to(dtype), expected)


def test_eagers_own_error_is_allowed_once_or_twice() -> None:
    expected = torch.tensor([1.0, 2.0], dtype=torch.float64)
    eager = torch.tensor([1.0, 2.0 + 4e-3])
    as_eager, twice, more = (torch.tensor([1.0, 2.0 + 4e-3 * k]) for k in (0.99, 1.95, 2.1))
    with pytest.raises(NumericsMismatch):
        assert_close(as_eager, expected)
    assert_close(as_eager, expected, eager)
    with pytest.raises(NumericsMismatch):
        assert_close(twice, expected, eager)
    assert_close(twice, expected, eager, reassociates=True)
    with pytest.raises(NumericsMismatch):
        assert_close(more, expected, eager, reassociates=True)


def test_integers_and_bools_must_be_equal() -> None:
    assert_close(torch.tensor([1, 2]), torch.tensor([1, 2]))
    for wrong in (torch.tensor([1, 3]), torch.tensor([1, 2], dtype=torch.int32), torch.tensor([1.0, 2.0])):
        with pytest.raises(NumericsMismatch):
            assert_close(wrong, torch.tensor([1, 2]))
    with pytest.raises(NumericsMismatch):
        assert_close(torch.tensor([True]), torch.tensor([False]))


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("actual", "expected", "eager", "passes"),
    [
        ([NAN, 1.0], [NAN, 1.0], None, True),
        ([1.0, NAN], [NAN, 1.0], None, False),
        ([NAN, 1.0], [0.0, 1.0], None, False),
        ([0.0, 1.0], [NAN, 1.0], None, False),
        ([INF, 1.0], [INF, 1.0], None, True),
        ([-INF, 1.0], [INF, 1.0], None, False),
        ([INF, 1.0], [1e300, 1.0], None, False),
        ([INF, 1.0], [1e300, 1.0], [INF, 1.0], True),  # eager overflows just there
        ([INF, 1.5], [1e300, 1.0], [INF, 1.0], False),
        ([NAN, 1.0], [1e300, 1.0], [INF, 1.0], False),
        ([NAN, 1.0], [0.0, 1.0], [0.0, NAN], False),
        ([0.0, 0.0], [0.0, 0.0], None, True),
        ([0.0, 1e-30], [0.0, 0.0], None, False),
    ],
)
def test_what_is_not_finite_must_stand_in_its_place(actual, expected, eager, passes: bool) -> None:
    arguments = [torch.tensor(actual, dtype=torch.float32), torch.tensor(expected, dtype=torch.float64)]
    if eager is not None:
        arguments.append(torch.tensor(eager, dtype=torch.float32))
    if passes:
        assert_close(*arguments)
    else:
        with pytest.raises(NumericsMismatch):
            assert_close(*arguments)


def test_structures_shapes_and_references_must_fit() -> None:
    x, y = torch.ones(2), torch.ones(2, dtype=torch.float64)
    assert assert_close({"a": x, "b": (x,)}, {"a": y, "b": (y,)}) == 0.0
    assert assert_close(torch.ones(0), torch.ones(0, dtype=torch.float64)) == 0.0
    for actual, expected in (
        ((x, x), (y,)),
        (torch.ones(2, 1), y),
        (x, x),
        (x, torch.ones(2, dtype=torch.int64)),
    ):
        with pytest.raises(NumericsMismatch):
            assert_close(actual, expected)
    with pytest.raises(NumericsMismatch, match="eager"):
        assert_close(x, y, torch.ones(2, dtype=torch.bfloat16))


# -- randomise ---------------------------------------------------------------------------------


class Neutral(nn.Module):
    """Everything that a fresh model leaves neutral."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        nn.init.zeros_(self.linear.bias)
        self.lora_b = nn.Parameter(torch.zeros(8, 2))
        self.norm = nn.BatchNorm1d(8)
        self.layer_scale = nn.Parameter(torch.full((8,), 1e-6))
        self.embedding = nn.Embedding(10, 8)
        self.register_buffer("positions", torch.arange(10))
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1, 0.01]))
        self.tied = self.embedding.weight


def test_randomise_leaves_nothing_neutral() -> None:
    model, fresh = randomise(Neutral(), seed=3), Neutral()
    assert model.linear.bias.abs().min() > 0
    assert model.lora_b.abs().min() > 0
    assert (model.norm.weight - 1).abs().min() > 0
    assert (model.norm.weight > 0).all()
    assert model.norm.running_mean.abs().min() > 0
    assert (model.norm.running_var > 0.4).all()
    assert len(model.norm.running_var.unique()) == 8
    assert (model.layer_scale > 0.5).all()
    assert torch.equal(model.positions, fresh.positions)
    assert torch.equal(model.mask, fresh.mask)
    assert ((model.frequencies / fresh.frequencies - 1).abs() <= 0.1).all()
    assert model.tied is model.embedding.weight
    assert all(p.isfinite().all() for p in model.parameters())


def test_randomise_repeats_itself_and_not_with_another_seed() -> None:
    first, second, third = (randomise(Neutral(), seed) for seed in (0, 0, 1))
    for a, b, c in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


# -- tests derived from a rewrite --------------------------------------------------------------


def example(**changes):
    from regraft import Example

    return Example(
        **{"build": lambda op, x: op.aten.neg(op.aten.neg(x)), "inputs": ("f32[S, 4]",), **changes}
    )


class DoubleNegation(Rewrite):
    """-(-x) = x"""

    def pattern(self, op, x):
        return op.aten.neg(op.aten.neg(x))

    def rewrite(self, op, m):
        return m.x

    examples = (example(),)
    counterexamples = (example(build=lambda op, x: op.aten.neg(x), reason="expected aten.neg"),)


def test_a_right_rewrite_passes() -> None:
    check_rewrite(DoubleNegation())
    check_rewrite(DoubleNegation)
    assert len(rewrite_cases(DoubleNegation())) == 6


class Wrong(DoubleNegation):
    def rewrite(self, op, m):
        return op.aten.abs(m.x)


class Rounds(DoubleNegation):
    def rewrite(self, op, m):
        return op.aten.div.Scalar(op.aten.mul.Scalar(m.x, 3.0), 3.0)


class LosesTheSign(DoubleNegation):
    def rewrite(self, op, m):
        return op.aten.add.Scalar(m.x, 0.0)


class NeverFires(DoubleNegation):
    def check(self, m):
        return m.decline("never")


class Loops(DoubleNegation):
    def rewrite(self, op, m):
        return op.aten.neg(op.aten.neg(op.aten.neg(op.aten.neg(m.x))))


class FiresOnTheCounterexample(DoubleNegation):
    counterexamples = (example(reason="not this"),)


class DeclinesForAnotherReason(DoubleNegation):
    counterexamples = (example(build=lambda op, x: op.aten.neg(x), reason="another reason"),)


class ChangesWhileMatching(DoubleNegation):
    def check(self, m):
        m.root.attrs["seen"] = True


class CannotFail(DoubleNegation):
    """x * 0 = 0, where a replacement that is off by a factor is still 0"""

    def pattern(self, op, x):
        return op.aten.mul.Scalar(x, 0.0)

    def rewrite(self, op, m):
        return op.aten.sub.Tensor(m.x, m.x)

    examples = (example(build=lambda op, x: op.aten.mul.Scalar(op.aten.abs(x), 0.0)),)
    counterexamples = ()


WRONG_REWRITES = [
    (Wrong, NumericsMismatch),
    (Rounds, NumericsMismatch),
    (NeverFires, AssertionError),
    (Loops, Exception),
    (FiresOnTheCounterexample, AssertionError),
    (DeclinesForAnotherReason, AssertionError),
    (ChangesWhileMatching, Exception),
    (CannotFail, AssertionError),
]


@pytest.mark.parametrize(
    ("rewrite", "error"), WRONG_REWRITES, ids=lambda value: getattr(value, "__name__", "")
)
def test_wrong_rewrites_fail(rewrite: type[Rewrite], error: type[Exception]) -> None:
    with pytest.raises(error):
        check_rewrite(rewrite())


def test_an_exact_rewrite_must_keep_signs_of_zero() -> None:
    class KeepsNegativeZero(LosesTheSign):
        examples = (
            example(build=lambda op, x: op.aten.neg(op.aten.neg(op.aten.mul.Scalar(op.aten.abs(x), -0.0)))),
        )
        counterexamples = ()

    with pytest.raises(NumericsMismatch):
        check_rewrite(KeepsNegativeZero())


def test_reassociation_may_round() -> None:
    class Honest(Rounds):
        exactness = Exactness.REASSOCIATES

    check_rewrite(Honest())


def test_a_rewrite_without_examples_proves_nothing() -> None:
    class NoExamples(DoubleNegation):
        examples = ()

    with pytest.raises(AssertionError, match="no examples"):
        rewrite_cases(NoExamples())
