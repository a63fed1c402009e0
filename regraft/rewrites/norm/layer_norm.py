"""Layer normalisation: y = (x - mean(x)) / sqrt(var(x) + eps) * w + b (Ba et al. 2016, arXiv:1607.06450)."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Exactness, Example, Match, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.support import is_last_dims, same_dims


class LayerNorm(Rewrite):
    """(x - mean(x)) * rsqrt(var(x) + eps) = layer_norm(x), over the last dimensions.

    The variance is ``mean((x - mean(x))²)``, which ``RMSNorm`` has raised already when this runs, perhaps
    with the weight, or ``var(x, correction=0)``. Sources: hand-written layers, and decompositions of
    ``native_layer_norm``.
    """

    exactness = Exactness.REASSOCIATES
    after = ("RMSNorm",)

    def pattern(self, op: PatternBuilder, x: Var, weight: Var) -> Any:
        axes = op.attr("dim")
        centred = op.aten.sub.Tensor(x, op.aten.mean.dim(x, axes, True))
        variance = op.aten.var.correction(x, axes, correction=op.attr("correction"), keepdim=True)
        shifted = op.aten.add.Scalar(variance, op.attr("eps"))
        return op.one_of(
            op.aten.rms_norm(centred, op.attr("shape"), op.optional(weight), op.attr("eps")),
            op.aten.mul.Tensor(centred, op.aten.rsqrt(shifted)),
            op.aten.div.Tensor(centred, op.aten.sqrt(shifted)),
        )

    def check(self, m: Match) -> Declined | None:
        if not is_last_dims(m.attr("dim"), m.x.tensor.rank):
            return m.decline("the mean is not over the last dimensions", m.holder("dim"), "mean over dim=-1")
        if m.attrs.get("correction", 0) != 0:
            reason = "the variance is not the biased one"
            return m.decline(reason, m.holder("correction"), "var(..., unbiased=False)")
        shape = _normalised(m)
        if any(not isinstance(size, int) for size in shape) or not same_dims(
            m.attrs.get("shape", shape), shape
        ):
            return m.decline("the normalised sizes differ or are not static", m.x)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.layer_norm(m.x, _normalised(m), m.optional("weight"), None, float(m.attr("eps")))

    examples = (
        Example(lambda op, x: _from_rms(op, x), ("f32[B, S, 16]",)),
        Example(lambda op, x, w: _from_rms(op, x, w), ("f32[2, 16]", "f32[16]"), (1,)),
        Example(lambda op, x: _from_variance(op, x, 0), ("f32[2, 16]",)),
        Example(lambda op, x: _with_division(op, x), ("f32[2, 16]",)),
    )
    counterexamples = (
        Example(lambda op, x: _from_variance(op, x, 1), ("f32[2, 16]",), reason="not the biased one"),
        Example(
            lambda op, x: _from_variance(op, x, 0, 0), ("f32[2, 16]",), reason="not over the last dimensions"
        ),
    )


def _normalised(m: Match) -> tuple[Any, ...]:
    shape = m.x.tensor.shape
    return shape[len(shape) - len(m.attr("dim")) :]


class LayerNormWeight(Rewrite):
    """layer_norm(x) * w = layer_norm(x, w)"""

    exactness = Exactness.REASSOCIATES
    after = ("LayerNorm",)

    def pattern(self, op: PatternBuilder, x: Var, weight: Var) -> Any:
        norm = op.aten.layer_norm(x, op.attr("shape"), None, None, op.attr("eps"), op.attr("cudnn_enable"))
        return op.aten.mul.Tensor(norm, weight)

    def check(self, m: Match) -> Declined | None:
        if not same_dims(m.weight.tensor.shape, m.attr("shape")):
            return m.decline("the factor does not have the normalised shape", m.weight)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.layer_norm(m.x, m.attr("shape"), m.weight, None, m.attr("eps"))

    examples = (
        Example(lambda op, x, w: op.aten.mul.Tensor(_norm(op, x), w), ("f32[B, S, 16]", "f32[16]"), (1,)),
        Example(lambda op, x, w: op.aten.mul.Tensor(w, _norm(op, x)), ("f32[2, 16]", "f32[16]")),
    )
    counterexamples = (
        Example(
            lambda op, x, w: op.aten.mul.Tensor(_norm(op, x), w),
            ("f32[2, 16]", "f32[2, 16]"),
            reason="does not have the normalised shape",
        ),
    )


class LayerNormBias(Rewrite):
    """layer_norm(x, w) + b = layer_norm(x, w, b)"""

    exactness = Exactness.REASSOCIATES
    after = ("LayerNormWeight",)

    def pattern(self, op: PatternBuilder, x: Var, weight: Var, bias: Var) -> Any:
        norm = op.aten.layer_norm(
            x, op.attr("shape"), op.optional(weight), None, op.attr("eps"), op.attr("cudnn_enable")
        )
        return op.aten.add.Tensor(norm, bias)

    def check(self, m: Match) -> Declined | None:
        if not same_dims(m.bias.tensor.shape, m.attr("shape")):
            return m.decline("the summand does not have the normalised shape", m.bias)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.aten.layer_norm(m.x, m.attr("shape"), m.optional("weight"), m.bias, m.attr("eps"))

    examples = (
        Example(
            lambda op, x, w, b: op.aten.add.Tensor(_norm(op, x, w), b),
            ("f32[B, S, 16]", "f32[16]", "f32[16]"),
            constants=(1, 2),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, w, y: op.aten.add.Tensor(_norm(op, x, w), y),
            ("f32[2, 16]", "f32[16]", "f32[2, 16]"),
            reason="does not have the normalised shape",
        ),
    )


def _norm(op: Builder, x: Value, weight: Value | None = None) -> Value:
    return op.aten.layer_norm(x, x.tensor.shape[-1:], weight, None, 1e-5)


def _centred(op: Builder, x: Value) -> Value:
    return op.aten.sub.Tensor(x, op.aten.mean.dim(x, (x.tensor.rank - 1,), True))


def _from_rms(op: Builder, x: Value, weight: Value | None = None) -> Value:
    return op.aten.rms_norm(_centred(op, x), x.tensor.shape[-1:], weight, 1e-5)


def _from_variance(op: Builder, x: Value, correction: int, axis: int = 1) -> Value:
    mean = op.aten.mean.dim(x, (axis,), True)
    variance = op.aten.var.correction(x, (axis,), correction=correction, keepdim=True)
    return op.aten.mul.Tensor(op.aten.sub.Tensor(x, mean), op.aten.rsqrt(op.aten.add.Scalar(variance, 1e-5)))


def _with_division(op: Builder, x: Value) -> Value:
    variance = op.aten.var.correction(x, (1,), correction=0, keepdim=True)
    return op.aten.div.Tensor(_centred(op, x), op.aten.sqrt(op.aten.add.Scalar(variance, 1e-5)))
