"""RMSNorm: y = x / sqrt(mean(x²) + eps) * w (Zhang & Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    DType,
    Exactness,
    Example,
    Match,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
)
from regraft.rewrites.support import is_last_dims, same_dims


class RMSNorm(Rewrite):
    """x * rsqrt(mean(x²) + eps) = rms_norm(x), over the last dimensions.

    Source: ``LlamaRMSNorm``, ``T5LayerNorm`` and their many copies in transformers. The mean may be
    taken in another order.
    """

    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        square = op.aten.pow.Tensor_Scalar(x, 2)
        mean = op.aten.mean.dim(square, op.attr("dim"), True)
        shifted = op.aten.add.Scalar(mean, op.attr("eps"))
        return op.one_of(
            op.aten.mul.Tensor(x, op.aten.rsqrt(shifted)), op.aten.div.Tensor(x, op.aten.sqrt(shifted))
        )

    def check(self, m: Match) -> Declined | None:
        type = m.x.tensor
        if not is_last_dims(m.attr("dim"), type.rank):
            return m.decline("the mean is not over the last dimensions", m.holder("dim"), "mean over dim=-1")
        if any(not isinstance(size, int) for size in _normalised(m)):
            return m.decline("the normalised size is not static", m.x)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.rms_norm(m.x, _normalised(m), None, float(m.attr("eps")))

    examples = (
        Example(lambda op, x: _spelled_out(op, x, (2,)), ("f32[B, S, 16]",)),
        Example(lambda op, x: _spelled_out(op, x, (1, 2)), ("f32[2, 3, 4]",)),
        Example(lambda op, x: _with_division(op, x), ("f32[2, 16]",)),
    )
    counterexamples = (
        Example(
            lambda op, x: _spelled_out(op, x, (1,)), ("f32[2, 3, 4]",), reason="not over the last dimensions"
        ),
        Example(
            lambda op, x: _spelled_out(op, x, (1,), power=3), ("f32[2, 4]",), reason="attribute 'exponent'"
        ),
        Example(
            lambda op, x, y: op.aten.mul.Tensor(y, _scale(op, x, (1,))),
            ("f32[2, 4]", "f32[2, 4]"),
            reason="two different values",
        ),
    )


def _normalised(m: Match) -> tuple[Any, ...]:
    shape = m.x.tensor.shape
    return shape[len(shape) - len(m.attr("dim")) :]


class RMSNormCasts(Rewrite):
    """cast(rms_norm(cast(x, f32)), half) = rms_norm(x), for x in that half precision.

    The op computes in f32 and rounds once in any case, as its decomposition does.
    """

    exactness = Exactness.REASSOCIATES
    after = ("RMSNorm",)

    def pattern(self, op: PatternBuilder, x: Var) -> Any:
        wide = op.shared(op.aten._to_copy(x, dtype=DType.F32))
        norm = op.aten.rms_norm(wide, op.attr("shape"), None, op.attr("eps"))
        return op.aten._to_copy(norm, dtype=op.attr("dtype"))

    def check(self, m: Match) -> Declined | None:
        if m.x.tensor.dtype not in (DType.F16, DType.BF16):
            return m.decline("the input is not in half precision", m.x)
        if m.root.result.type != m.x.type:
            return m.decline("the result is not cast back", m.holder("dtype"), "cast to the input's dtype")
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.rms_norm(m.x, m.attr("shape"), None, m.attr("eps"))

    examples = (
        Example(lambda op, x: _cast_norm(op, x, DType.F32, DType.BF16), ("bf16[2, 16]",)),
        Example(lambda op, x: _cast_norm(op, x, DType.F32, DType.F16), ("f16[2, 16]",)),
    )
    counterexamples = (
        Example(
            lambda op, x: _cast_norm(op, x, DType.F32, DType.F16), ("bf16[2, 16]",), reason="not cast back"
        ),
        Example(
            lambda op, x: _cast_norm(op, x, DType.F32, DType.F64), ("f64[2, 16]",), reason="half precision"
        ),
        Example(
            lambda op, x: _cast_norm(op, x, DType.F64, DType.BF16),
            ("bf16[2, 16]",),
            reason="attribute 'dtype'",
        ),
    )


class RMSNormWeight(Rewrite):
    """rms_norm(x) * w = rms_norm(x, w)

    In half precision the product is then rounded once and not twice.
    """

    exactness = Exactness.REASSOCIATES
    after = ("RMSNormCasts",)

    def pattern(self, op: PatternBuilder, x: Var, weight: Var) -> Any:
        norm = op.aten.rms_norm(x, op.attr("shape"), None, op.attr("eps"))
        return op.aten.mul.Tensor(norm, weight)

    def check(self, m: Match) -> Declined | None:
        if not same_dims(m.weight.tensor.shape, m.attr("shape")):
            return m.decline("the factor does not have the normalised shape", m.weight)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.rms_norm(m.x, m.attr("shape"), m.weight, m.attr("eps"))

    examples = (
        Example(lambda op, x, w: op.aten.mul.Tensor(_norm(op, x), w), ("f32[B, S, 16]", "f32[16]"), (1,)),
        Example(lambda op, x, w: op.aten.mul.Tensor(w, _norm(op, x)), ("f32[2, 16]", "f32[16]")),
    )
    counterexamples = (
        Example(
            lambda op, x, w: op.aten.mul.Tensor(_norm(op, x), w),
            ("f32[2, 16]", "f32[2, 1]"),
            reason="does not have the normalised shape",
        ),
    )


def _scale(op: Builder, x: Value, axes: tuple[int, ...], power: int = 2) -> Value:
    mean = op.aten.mean.dim(op.aten.pow.Tensor_Scalar(x, power), axes, True)
    return op.aten.rsqrt(op.aten.add.Scalar(mean, 1e-6))


def _spelled_out(op: Builder, x: Value, axes: tuple[int, ...], power: int = 2) -> Value:
    return op.aten.mul.Tensor(x, _scale(op, x, axes, power))


def _with_division(op: Builder, x: Value) -> Value:
    mean = op.aten.mean.dim(op.aten.pow.Tensor_Scalar(x, 2), (1,), True)
    return op.aten.div.Tensor(x, op.aten.sqrt(op.aten.add.Scalar(mean, 1e-5)))


def _norm(op: Builder, x: Value) -> Value:
    return op.aten.rms_norm(x, x.tensor.shape[-1:], None, 1e-6)


def _cast_norm(op: Builder, x: Value, wide: DType, narrow: DType) -> Value:
    return op.aten._to_copy(_norm(op, op.aten._to_copy(x, dtype=wide)), dtype=narrow)
