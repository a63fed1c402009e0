"""Two ops of one kind in a row: the second alone, with the attributes of both."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, DType, Example, Match, PatternBuilder, Rewrite, Value, Var, dims
from regraft.rewrites.support import keeps_every_value


class ViewOfView(Rewrite):
    """view(view(x, a), b) = view(x, b)"""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.view(op.shared(op.aten.view(x, op.attr("inner"))), op.attr("size"))

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.view(m.x, m.attr("size"))

    examples = (
        Example(lambda op, x: op.aten.view(op.aten.view(x, (6,)), (3, 2)), ("f32[2, 3]",)),
        Example(lambda op, x: _used_twice(op, op.aten.view(x, (6,))), ("f32[2, 3]",)),
    )


class PermuteOfPermute(Rewrite):
    """permute(permute(x, a), b) = permute(x, a[b])"""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        return op.aten.permute(op.shared(op.aten.permute(x, op.attr("inner"))), op.attr("outer"))

    def rewrite(self, op: Builder, m: Match) -> Value:
        inner = m.attr("inner")
        return op.aten.permute(m.x, tuple(inner[axis] for axis in m.attr("outer")))

    examples = (
        Example(lambda op, x: op.aten.permute(op.aten.permute(x, (2, 0, 1)), (1, 0, 2)), ("f32[2, 3, 4]",)),
    )


class ExpandOfExpand(Rewrite):
    """expand(expand(x, a), b) = expand(x, b)"""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        inner = op.aten.expand(x, op.attr("inner"), implicit=op.attr("inner_implicit"))
        return op.aten.expand(op.shared(inner), op.attr("size"), implicit=op.attr("implicit"))

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.expand(m.x, m.attr("size"))

    examples = (
        Example(lambda op, x: op.aten.expand(op.aten.expand(x, (1, 3)), (2, 1, 3)), ("f32[1, 1]",)),
        Example(lambda op, x: op.aten.expand(op.aten.expand(x, (4, 3)), (2, 4, 3)), ("f32[3]",)),
    )


class SliceOfSlice(Rewrite):
    """x[a : b][c : d] = x[a + c : a + d], along one dimension."""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        inner = op.aten.slice.Tensor(x, op.attr("dim"), op.attr("a"), op.attr("b"), 1)
        return op.aten.slice.Tensor(
            op.shared(inner), op.attr("dim"), op.attr("c"), op.attr("d"), op.attr("step")
        )

    def check(self, m: Match) -> Declined | None:
        axis: int = m.attr("dim")
        start, stop, end = m.attr("a"), m.attr("d"), m.attr("b")
        # Bounds that might be cut off make sizes like min(4, S), which take more than adding up.
        known = (dims.le(0, start), dims.le(end, m.x.tensor.shape[axis]), dims.le(start + stop, end))
        if all(answer is True for answer in known) and dims.le(m.attr("c"), stop) is True:
            return None
        return m.decline("it is not known that the bounds lie inside", m.holder("c"))

    def rewrite(self, op: Builder, m: Match) -> Value:
        start = m.attr("a")
        return op.aten.slice.Tensor(
            m.x, m.attr("dim"), start + m.attr("c"), start + m.attr("d"), m.attr("step")
        )

    examples = (
        Example(lambda op, x: _slice(op, _slice(op, x, 0, 2, 9), 0, 1, 5), ("f32[10, 3]",)),
        Example(lambda op, x: _slice(op, _slice(op, x, 0, 2, 9), 0, 1, 6, 2), ("f32[10]",)),
    )
    counterexamples = (
        Example(
            lambda op, x: _slice(op, _slice(op, x, 0, 0, 9), 0, 1, 4),
            ("f32[S]",),
            reason="not known that the bounds lie inside",
        ),
        Example(
            lambda op, x: _slice(op, _slice(op, x, 0, 1, 9), 1, 0, 2),
            ("f32[10, 3]",),
            reason="attribute 'dim'",
        ),
        Example(
            lambda op, x: _slice(op, _slice(op, x, 0, 0, 9, 2), 0, 1, 3),
            ("f32[10]",),
            reason="attribute 'step'",
        ),
    )


class CastOfCast(Rewrite):
    """cast(cast(x, a), b) = cast(x, b), when ``a`` holds every value of x exactly."""

    stage = "canonicalize"

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        inner = op.aten._to_copy(x, dtype=op.attr("inner"))
        return op.aten._to_copy(op.shared(inner), dtype=op.attr("dtype"))

    def check(self, m: Match) -> Declined | None:
        source, target = m.x.tensor.dtype, m.attr("dtype")
        if not keeps_every_value(source, m.attr("inner")):
            return m.decline("the inner cast rounds", m.holder("inner"))
        # Out of range, float to int is undefined, and need not be the same from another float type.
        if source.is_float and target.is_integer:
            return m.decline("float to int depends on the float type out of range", m.holder("dtype"))
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten._to_copy(m.x, dtype=m.attr("dtype"))

    examples = (
        Example(lambda op, x: _casts(op, x, DType.F32, DType.BF16), ("bf16[4]",)),
        Example(lambda op, x: _casts(op, x, DType.I64, DType.F32), ("bool[4]",)),
    )
    counterexamples = (
        Example(
            lambda op, x: _casts(op, x, DType.BF16, DType.F32), ("f32[4]",), reason="the inner cast rounds"
        ),
        Example(
            lambda op, x: _casts(op, x, DType.F32, DType.I64), ("i64[4]",), reason="the inner cast rounds"
        ),
        Example(lambda op, x: _casts(op, x, DType.F64, DType.I32), ("f32[4]",), reason="out of range"),
    )


def _used_twice(op: Builder, value: Value) -> tuple[Value, Value]:
    return op.aten.view(value, (3, 2)), op.aten.relu(value)


def _slice(op: Builder, x: Value, dim: int, start: int, end: int, step: int = 1) -> Value:
    return op.aten.slice.Tensor(x, dim, start, end, step)


def _casts(op: Builder, x: Value, first: DType, second: DType) -> Value:
    return op.aten._to_copy(op.aten._to_copy(x, dtype=first), dtype=second)
