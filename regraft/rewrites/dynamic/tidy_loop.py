"""Loops that carry no more than is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.ir import Builder, Declined, Example, Match, PatternBuilder, Rewrite, Value
from regraft.rewrites.dynamic.loops import live_carried, loop_over, unchanged
from regraft.rewrites.dynamic.regions import is_repeatable
from regraft.rewrites.dynamic.samples import below, loop


class TidyLoop(Rewrite):
    """while(a, b, c){A(a, b), B(b), c} = while(b, c){B(b), c}, where the result of a is not used.

    A carried value that only feeds itself goes; the result of one that no trip changes is its operand; and a
    constant or a number that no trip changes is made inside.
    """

    stage = "fold"

    def pattern(self, op: PatternBuilder) -> Any:
        return op.call("cf.while", (op.any_operands(),), {})

    def check(self, m: Match) -> Declined | None:
        loop, still = m.root, unchanged(m.root)
        if not any(result.uses for result in loop.results):
            return m.decline("no result is used", loop.operands[0] if loop.operands else None)
        forwarded = any(loop.results[i].uses or is_repeatable(loop.operands[i]) for i in still)
        if not forwarded and len(live_carried(loop)) == len(loop.operands):
            return m.decline("every carried value is needed and changes", loop.operands[0])
        return None

    def rewrite(self, op: Builder, m: Match) -> Sequence[Value | None]:
        loop, still = m.root, unchanged(m.root)
        results = loop_over(op, loop, loop.operands, live_carried(loop))
        return [
            operand if i in still else result
            for i, (operand, result) in enumerate(zip(loop.operands, results, strict=True))
        ]


def _three(op: Builder, n: Value, x: Value, y: Value) -> tuple[Value, Value, Value]:
    """Counts n up to 3; beside it ``x`` is halved and ``y`` added to itself and to ``x``."""
    return loop(
        op,
        (n, x, y),
        below(3),
        lambda op, n, x, y: (
            op.aten.add.Scalar(n, 1),
            op.aten.mul.Scalar(x, 0.5),
            op.aten.add.Tensor(op.aten.mul.Scalar(y, 0.5), x),
        ),
    )


def _scaled(op: Builder, n: Value, x: Value, y: Value) -> tuple[Value, Value, Value]:
    """``x`` times ``y`` until n is 3; ``y`` stays."""
    return loop(
        op,
        (n, x, y),
        below(3),
        lambda op, n, x, y: (op.aten.add.Scalar(n, 1), op.aten.mul.Tensor(x, y), y),
    )


def _taken(op: Builder, loop: Sequence[Value], *indices: int) -> list[Value]:
    return [loop[index] for index in indices]


TidyLoop.examples = (
    Example(lambda op, n, x, y: _taken(op, _three(op, n, x, y), 1), ("i64[]", "f32[B]", "f32[B]")),
    Example(lambda op, n, x, y: _scaled(op, n, x, y), ("i64[]", "f32[3]", "f32[3]")),
    Example(
        lambda op, n, x, w: _taken(op, _scaled(op, n, x, w), 1), ("i64[]", "f32[3]", "f32[3]"), constants=(2,)
    ),
    Example(lambda op, n, x: _taken(op, _scaled(op, n, x, op.aten.full((), 0.5)), 1, 0), ("i64[]", "f32[3]")),
)
TidyLoop.counterexamples = (
    Example(
        lambda op, n, x, y: _taken(op, _three(op, n, x, y), 2),
        ("i64[]", "f32[3]", "f32[3]"),
        reason="every carried value is needed",
    ),
    Example(
        lambda op, n, x, y: (_three(op, n, x, y), op.aten.neg(x))[1],
        ("i64[]", "f32[3]", "f32[3]"),
        reason="no result is used",
    ),
)
