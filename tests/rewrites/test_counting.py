"""What is known of the integers in a loop that counts is what torch computes."""

from __future__ import annotations

from typing import Any

import pytest

from regraft.ir import OPS, Builder, DType, Region
from regraft.rewrites import sequence


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
    ],
    ids=["last", "beyond", "product", "negated", "bools", "to bool", "to integer"],
)
def test_numbers_are_those_of_torch_or_unknown(value: Any, expected: int | None) -> None:
    assert sequence.number_of(value(Builder(OPS, Region())), {}) == expected
