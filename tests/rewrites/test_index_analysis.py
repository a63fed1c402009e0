"""The index analysis is right about random programs, and strong enough for the masks models build."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.ir import OPS, Builder, DType, Function, Region, Symbol, Value, dims, print_region
from regraft.rewrites import fold
from tests.rewrites.programs import SYMBOLS, index_programs, run_program

B, S = (dims.as_expr(symbol) for symbol in SYMBOLS)


def affine_tensor(form: fold.Affine, shape: torch.Size, sizes: dict[Symbol, int]) -> torch.Tensor:
    total = torch.full(shape, dims.substitute(form.base, sizes), dtype=torch.int64)
    for axis, coefficient in enumerate(form.coefficients):
        along = [1] * len(shape)
        along[axis] = shape[axis]
        total = total + coefficient * torch.arange(shape[axis]).view(along)
    return total


def holds(fact: fold.Fact, actual: torch.Tensor, sizes: dict[Symbol, int]) -> bool:
    """Whether ``fact`` is true of a tensor's values."""
    if isinstance(fact, fold.Affine):
        return torch.equal(affine_tensor(fact, actual.shape, sizes), actual.to(torch.int64))
    if isinstance(fact, fold.Magnitude):
        return torch.equal(affine_tensor(fact.of, actual.shape, sizes).abs(), actual.to(torch.int64))
    expected = torch.full(actual.shape, not fact.never)
    for constraint in fact.constraints:
        expected &= affine_tensor(constraint, actual.shape, sizes) <= 0
    return torch.equal(expected, actual)


@settings(max_examples=300)
@given(index_programs(), st.sampled_from([(1, 0), (1, 1), (2, 5), (3, 2), (4, 7)]))
def test_facts_hold_of_random_programs(program: Function, lengths: tuple[int, int]) -> None:
    by_name = dict(zip((s.name for s in SYMBOLS), lengths, strict=True))
    sizes = {replace(s, lo=low): by_name[s.name] for s in SYMBOLS for low in (0, 1)}
    actual = run_program(program, by_name)
    facts = fold.IndexAnalysis()
    for value, tensor in zip(program.results, actual, strict=True):
        for fact in (facts.fact(value), fold.fact_about(value)):
            assert fact is None or holds(fact, tensor, sizes), (
                f"{value}: {fact} is not {tensor}\n{print_region(program.body)}"
            )


def test_a_wrong_fact_does_not_hold() -> None:
    actual = torch.tensor([[0, 1], [2, 3]])
    assert holds(fold.Affine(0, (2, 1)), actual, {})
    assert not holds(fold.Affine(0, (1, 2)), actual, {})
    assert not holds(fold.Affine(1, (2, 1)), actual, {})
    assert holds(fold.Where(frozenset({fold.Affine(-1, (2, 1))})), actual <= 1, {})
    assert not holds(fold.Where(frozenset({fold.Affine(-1, (2, 1))})), actual <= 2, {})
    assert not holds(fold.ALWAYS, actual <= 2, {})


def fact_of(build) -> fold.Fact | None:
    return fold.fact_about(build(Builder(OPS, Region())))


def counted(op: Builder, size: dims.Dim, *shape: dims.Dim) -> Value:
    numbers = op.aten.arange.start_step(0, size, 1, dtype=DType.I64)
    return op.aten.view(numbers, shape) if shape else numbers


def test_packed_sequences_test_is_always_true() -> None:
    """GPT-2 and Llama: positions that never jump back belong to one sequence."""

    def build(op: Builder) -> Value:
        positions = op.aten.expand(counted(op, S, 1, S), (B, S))
        first = op.aten.add.Scalar(op.aten.slice.Tensor(positions, 1, 0, dims.minimum(1, S)), -1)
        joined = op.aten.cat([first, positions], 1)
        steps = op.aten.sub.Tensor(
            op.aten.slice.Tensor(joined, 1, 1, S + 1), op.aten.slice.Tensor(joined, 1, 0, S)
        )
        sequence = op.aten.cumsum(op.aten.ne.Scalar(steps, 1), 1)
        batch = counted(op, B, B, 1, 1, 1)
        queries = op.aten.index.Tensor(sequence, [batch, counted(op, S, 1, 1, S, 1)])
        keys = op.aten.index.Tensor(sequence, [batch, counted(op, S, 1, 1, 1, S)])
        return op.aten.eq.Tensor(queries, keys)

    assert fact_of(build) == fold.ALWAYS


def test_sliding_window_is_two_inequalities() -> None:
    def build(op: Builder) -> Value:
        distance = op.aten.abs(op.aten.sub.Tensor(counted(op, S, S, 1), counted(op, S, 1, S)))
        return op.aten.bitwise_and.Tensor(op.aten.le.Scalar(distance, 64), op.aten.ge.Scalar(distance, 0))

    # ``distance >= 0`` is not a conjunction of inequalities, and nothing is claimed of the whole.
    assert fact_of(build) is None
    near = {fold.Affine(-64, (1, -1)), fold.Affine(-64, (-1, 1))}
    found = fact_of(
        lambda op: op.aten.le.Scalar(
            op.aten.abs(op.aten.sub.Tensor(counted(op, S, S, 1), counted(op, S, 1, S))), 64
        )
    )
    assert found == fold.Where(frozenset(near))


@pytest.mark.parametrize("size", [S, 5])
def test_lower_triangle_is_causal(size: dims.Dim) -> None:
    found = fact_of(lambda op: op.aten.tril(op.aten.full((size, size), True, dtype=DType.BOOL)))
    assert found == fold.Where(frozenset({fold.Affine(0, (-1, 1))}))


def test_bounds_decide_what_they_can() -> None:
    assert fact_of(lambda op: op.aten.ge.Scalar(counted(op, S), 0)) == fold.ALWAYS
    assert fact_of(lambda op: op.aten.lt.Scalar(counted(op, S), 0)) == fold.NEVER
    assert fact_of(lambda op: op.aten.le.Scalar(counted(op, 5), 4)) == fold.ALWAYS
    assert fact_of(lambda op: op.aten.le.Scalar(counted(op, 6), 4)) == fold.Where(
        frozenset({fold.Affine(-4, (1,))})
    )
    assert fact_of(lambda op: op.aten.eq.Scalar(counted(op, S), -1)) == fold.NEVER


def test_nothing_is_claimed_of_what_may_overflow_or_reach_outside() -> None:
    assert fact_of(lambda op: op.aten._to_copy(counted(op, S), dtype=DType.I32)) is None
    assert fact_of(lambda op: op.aten._to_copy(counted(op, 300), dtype=DType.U8)) is None
    assert fact_of(lambda op: op.aten._to_copy(counted(op, 256), dtype=DType.U8)) is not None
    assert fact_of(lambda op: op.aten.mul.Scalar(counted(op, S), 1 << 40)) is None
    assert fact_of(lambda op: op.aten.mul.Tensor(counted(op, S), counted(op, S))) is None

    unsigned = fact_of(lambda op: op.aten.le.Scalar(op.aten._to_copy(counted(op, 5), dtype=DType.U8), -1))
    assert unsigned is None  # as u8, -1 is 255

    def below_zero(op: Builder) -> Value:  # x[-1] is the last element
        return op.aten.index.Tensor(counted(op, S), [op.aten.add.Scalar(counted(op, S), -1)])

    assert fact_of(below_zero) is None
