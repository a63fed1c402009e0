"""Batch normalisation with fixed statistics is linear (Ioffe and Szegedy 2015, arXiv:1502.03167)."""

from __future__ import annotations

from collections.abc import Sequence
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
from regraft.rewrites.support import is_computed_at_compile_time

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d")
_PARAMETERS = ("bias", "scale", "shift", "mean", "variance")


class ConvBatchNorm(Rewrite):
    """batch_norm(conv(x, w, b)) = conv(x, w * s, (b - mean) * s + shift), s = scale / sqrt(var + eps)"""

    stage = "algebra"
    exactness = Exactness.REASSOCIATES

    def pattern(
        self,
        op: PatternBuilder,
        x: Var,
        weight: Var,
        bias: Var,
        scale: Var,
        shift: Var,
        mean: Var,
        variance: Var,
    ) -> Any:
        attrs = [op.attr(name) for name in ("stride", "padding", "dilation", "groups")]
        convolved = op.one_of(
            *(op.call(name, (x, weight, op.optional(bias), *attrs), {}) for name in _CONVOLUTIONS)
        )
        parameters = [op.optional(p) for p in (scale, shift, mean, variance)]
        rest = (op.attr("training"), op.attr("momentum"), op.attr("eps"), op.attr("cudnn_enabled"))
        return op.aten.batch_norm(convolved, *parameters, *rest)

    def check(self, m: Match) -> Declined | None:
        given = [m.weight, *(v for v in map(m.optional, _PARAMETERS) if v is not None)]
        for value in given:
            if not is_computed_at_compile_time(value):
                return m.decline("a parameter is not constant", value)
        if m.weight.tensor.dtype not in (DType.F32, DType.F64):
            return m.decline("the new weights would be rounded to 16 bits once more", m.weight)
        if m.optional("mean") is None or m.optional("variance") is None:
            return m.decline("the statistics are not given", m.x)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value | Sequence[Value]:
        scale, shift, bias = (m.optional(name) for name in ("scale", "shift", "bias"))
        factor = op.aten.rsqrt(op.aten.add.Scalar(m.variance, m.attr("eps")))
        factor = factor if scale is None else op.aten.mul.Tensor(factor, scale)
        offset = op.aten.neg(m.mean) if bias is None else op.aten.sub.Tensor(bias, m.mean)
        offset = op.aten.mul.Tensor(offset, factor)
        offset = offset if shift is None else op.aten.add.Tensor(offset, shift)
        channels, rank = m.weight.tensor.shape[0], m.weight.tensor.rank
        weight = op.aten.mul.Tensor(m.weight, op.aten.view(factor, (channels, *(1,) * (rank - 1))))
        rest = tuple(m.attr(name) for name in ("stride", "padding", "dilation", "groups"))
        return op.call(f"aten.conv{rank - 2}d", (m.x, weight, offset, *rest), {})

    examples = (
        Example(
            lambda op, x, w, b, mean, var: _normed(op, x, w, b, (None, None, mean, op.aten.abs(var))),
            ("f32[N, 4, 9]", "f32[6, 2, 3]", "f32[6]", "f32[6]", "f32[6]"),
            (1, 2, 3, 4),
        ),
        Example(
            lambda op, x, w, s, t, mean, var: _normed(op, x, w, None, (s, t, mean, op.aten.abs(var))),
            ("f32[2, 4, 7, 9]", "f32[6, 2, 3, 3]", *("f32[6]",) * 4),
            (1, 2, 3, 4, 5),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, w, mean, var: _normed(op, x, w, None, (None, None, mean, op.aten.abs(var))),
            ("f32[2, 4, 9]", "f32[6, 2, 3]", "f32[6]", "f32[6]"),
            (2, 3),
            reason="a parameter is not constant",
        ),
        Example(
            lambda op, x, w, mean, var: _normed(op, x, w, None, (None, None, mean, op.aten.abs(var))),
            ("bf16[2, 4, 9]", "bf16[6, 2, 3]", "bf16[6]", "bf16[6]"),
            (1, 2, 3),
            reason="rounded to 16 bits",
        ),
    )


def _normed(op: Builder, x: Value, weight: Value, bias: Value | None, parameters: Any) -> Value:
    count = weight.tensor.rank - 2
    ones, zeros = (1,) * count, (0,) * count
    made = op.call(f"aten.conv{count}d", (x, weight, bias, ones, zeros, ones, 2), {})
    return op.aten.batch_norm(made, *parameters, False, 0.1, 1e-5, True)
