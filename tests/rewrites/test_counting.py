"""What is known of the integers in a loop that counts is what torch computes."""

from __future__ import annotations

from typing import Any

import pytest

from regraft.ir import OPS, Builder, Dim, DType, Region, Value, dims
from regraft.rewrites import dynamic, sequence

#: A size of 0 or more.
N = dims.symbol("n")


def full(op: Any, value: Any, dtype: DType = DType.I64) -> Any:
    return op.aten.full((), value, dtype=dtype)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda op: op.aten.add.Scalar(full(op, 2**63 - 2), 1), 2**63 - 1),
        (lambda op: op.aten.add.Scalar(full(op, 2**63 - 1), 1), None),
        (lambda op: op.aten.mul.Scalar(full(op, 2**40), -(2**24)), None),
        (lambda op: op.aten.neg(full(op, -(2**63))), None),
        (lambda op: op.aten.add.Tensor(full(op, True, DType.BOOL), full(op, True, DType.BOOL)), 1),
        (lambda op: op.aten._to_copy(full(op, -3), dtype=DType.BOOL), 1),
        (lambda op: op.aten._to_copy(full(op, True, DType.BOOL), dtype=DType.I64), 1),
        (lambda op: op.aten.sub.Tensor(op.rg.dim_value(N), op.rg.dim_value(N - 3)), 3),
        (lambda op: op.aten.ge.Tensor(op.rg.dim_value(N), op.rg.dim_value(N - 3)), 1),
        (lambda op: op.aten.lt.Scalar(op.rg.dim_value(N), 1), None),
        (lambda op: op.aten.mul.Tensor(op.rg.dim_value(N), op.rg.dim_value(N)), None),
        (lambda op: op.aten.mul.Scalar(op.rg.dim_value(N), 1 << 40), None),
    ],
    ids=[
        *("last", "beyond", "product", "negated", "bools", "to bool", "to integer"),
        *("sizes", "larger size", "any size", "product of sizes", "large multiple"),
    ],
)
def test_numbers_are_those_of_torch_or_unknown(value: Any, expected: int | None) -> None:
    assert sequence.number_of(value(Builder(OPS, Region())), {}) == expected


def counted(test: Any, trip: Any, *, starts: tuple[int, ...] = (0,)) -> Any:
    """What is known of the trips of a loop over i64 numbers, and of a vector that stays."""
    op: Any = Builder(OPS, Region())
    made = dynamic.samples.loop(op, [full(op, start) for start in starts], test, trip)
    first: Value = made if isinstance(made, Value) else made[0]
    assert first.op is not None
    return sequence.trips_of(first.op)


def below(limit: Dim) -> Any:
    return lambda op, i, *_: op.aten.lt.Tensor(i, op.rg.dim_value(limit))


@pytest.mark.parametrize(
    ("test", "trip", "count", "end"),
    [
        (below(N), lambda op, i: op.aten.add.Scalar(i, 1), N, N),
        (below(N), lambda op, i: op.aten.add.Scalar(i, 2), dims.ceildiv(N, 2), 2 * dims.ceildiv(N, 2)),
        (
            below(N - 3),
            lambda op, i: op.aten.add.Scalar(i, 1),
            dims.maximum(N - 3, 0),
            dims.maximum(N - 3, 0),
        ),
        (
            lambda op, i: op.aten.gt.Tensor(i, op.aten.neg(op.rg.dim_value(N))),
            lambda op, i: op.aten.sub.Tensor(i, full(op, 1)),
            N,
            -N,
        ),
        (
            lambda op, i: op.aten.bitwise_and.Tensor(below(N)(op, i), op.aten.le.Scalar(i, 9)),
            lambda op, i: op.aten.add.Scalar(i, 1),
            dims.minimum(N, 10),
            dims.minimum(N, 10),
        ),
        (
            lambda op, i: op.aten.ne.Tensor(op.rg.dim_value(N), i),
            lambda op, i: op.aten.add.Scalar(i, 1),
            N,
            N,
        ),
        (lambda op, i: op.aten.ne.Scalar(i, -6), lambda op, i: op.aten.add.Scalar(i, -2), 3, -6),
    ],
    ids=["up", "by two", "less", "down", "both", "until", "until a number"],
)
def test_trips_by_a_size(test: Any, trip: Any, count: Dim, end: Dim) -> None:
    found = counted(test, trip)
    assert found.count == count
    assert found.ends == {0: end}


@pytest.mark.parametrize(
    ("test", "trip"),
    [
        (below(N), lambda op, i: op.aten.mul.Scalar(i, 2)),
        (below(N), lambda op, i: i),
        (below(N), lambda op, i: op.aten.sub.Tensor(i, full(op, 1))),
        (below(N), lambda op, i: op.aten.where.self(op.aten.lt.Scalar(i, 5), op.aten.add.Scalar(i, 1), i)),
        (lambda op, i: op.aten.ne.Scalar(i, 4), lambda op, i: op.aten.add.Scalar(i, 3)),
        (lambda op, i: op.aten.ne.Scalar(i, -4), lambda op, i: op.aten.add.Scalar(i, 1)),
        (
            lambda op, i: op.aten.ne.Tensor(i, op.rg.dim_value(N - 1)),
            lambda op, i: op.aten.add.Scalar(i, 1),
        ),
    ],
    ids=["doubled", "never", "away", "stops", "past the end", "from the end", "perhaps from the end"],
)
def test_loops_that_do_not_count(test: Any, trip: Any) -> None:
    assert counted(test, trip) is None


def test_a_number_whose_steps_are_those_of_another_is_not_counted() -> None:
    """The second grows by the first, which grows too."""
    found = counted(
        below(N),
        lambda op, i, j: (op.aten.add.Scalar(i, 1), op.aten.add.Tensor(j, i)),
        starts=(0, 0),
    )
    assert found.count == N
    assert found.ends == {0: N}
