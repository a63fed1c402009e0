"""Along which axis of a result the memory lies that it is computed from."""

from __future__ import annotations

from typing import Any

import pytest

from regraft.backends.tvm import cluster, neighbours
from regraft.conformance import Case
from regraft.ir import Value

Build = Any


def axis(build: Build, *types: str) -> int | None:
    """The turned axis of the last kernel of a function."""
    *_, step = cluster.form(Case("", build, types).function().body).steps  # a check may come before
    assert isinstance(step, cluster.Cluster)
    return neighbours.turned_axis(step)


def turned(op: Any, x: Value) -> Value:
    return op.aten.permute(x, (1, 0))


def part(op: Any, x: Value) -> Value:
    return turned(op, op.aten.slice.Tensor(x, 1, 3, 1 << 62, 1))


def every_second(op: Any, x: Value) -> Value:
    return turned(op, op.aten.slice.Tensor(x, 1, 0, 1 << 62, 2))


def back_and_forth(op: Any, x: Value) -> Value:
    return turned(op, op.aten.neg(turned(op, x)))


def joined_heads(op: Any, x: Value) -> Value:
    """Heads move, and what lies in them stays together."""
    return op.aten.permute(op.aten.view(x, (40, 4, 32)), (1, 0, 2))


def split(op: Any, x: Value) -> Value:
    return op.aten.permute(op.aten.view(x, (40, 33, 21)), (2, 0, 1))


def spread(op: Any, x: Value) -> Value:
    return turned(op, op.aten.expand(x, (64, 64)))


def with_turned(op: Any, x: Value, y: Value) -> Value:
    return op.aten.add.Tensor(turned(op, x), y)


def looked_up(op: Any, x: Value, rows: Value) -> Value:
    return turned(op, op.aten.embedding(x, rows, -1, False, False))


@pytest.mark.parametrize(
    ("build", "types", "expected"),
    [
        (turned, ("f32[A, B]",), 0),
        (lambda op, x: op.aten.neg(turned(op, x)), ("f32[A, B]",), 0),
        (part, ("f32[64, 67]",), 0),
        (part, ("f32[A, B]",), 0),
        (lambda op, x: turned(op, op.aten.flip(x, (1,))), ("f32[A, B]",), 0),
        (lambda op, x: op.aten.permute(x, (0, 3, 1, 2)), ("f32[2, 8, 8, 32]",), 1),
        (split, ("f32[40, 693]",), 0),
        (with_turned, ("f32[A, B]", "f32[A]"), 0),
        (with_turned, ("f32[A, B]", "f32[B, 1]"), 0),
        (lambda op, x: op.aten.neg(x), ("f32[A, B]",), None),
        (back_and_forth, ("f32[A, B]",), None),
        (joined_heads, ("f32[40, 128]",), None),
        (lambda op, x: op.aten.permute(x, (1, 0, 2)), ("f32[A, B, 8]",), None),
        # What lies along the last axis is read as before in tiles.
        (with_turned, ("f32[A, B]", "f32[B, A]"), 0),
        # Neighbours are two elements apart.
        (every_second, ("f32[A, B]",), None),
        (turned, ("f32[A, 3]",), 0),
        (spread, ("f32[64, 1]",), None),
        (looked_up, ("f32[9, 32]", "i64[40]"), None),
    ],
)
def test_the_axis_that_memory_is_read_along(
    build: Build, types: tuple[str, ...], expected: int | None
) -> None:
    assert axis(build, *types) == expected


def test_what_is_used_again_and_again_is_followed_once() -> None:
    def doubled(op: Any, x: Value) -> Value:
        y = turned(op, x)
        for _ in range(60):
            y = op.aten.mul.Tensor(y, y)
        return y

    assert axis(doubled, "f32[A, B]") == 0
