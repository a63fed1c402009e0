"""Feed-forward networks without a gate."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Exactness, Example, Match, PatternBuilder, Rewrite, Value, Var
from regraft.rewrites.ffn.gated import activation_of


class PlainFFN(Rewrite):
    """down(act(up(x))) = ffn(x). Source: the MLP of Vaswani et al. 2017, arXiv:1706.03762, section 3.3."""

    stage = "fuse"
    after = ("GatedFFN",)
    # The products of a whole block may be grouped by other kernels than those of its layers one by one.
    exactness = Exactness.REASSOCIATES

    def pattern(self, op: PatternBuilder, x: Var, up: Var, down: Var, up_bias: Var, down_bias: Var) -> Any:
        raised = op.aten.linear(x, up, op.optional(up_bias))
        activated = op.one_of(
            op.aten.gelu(raised, approximate=op.attr("approximate")),
            op.aten.relu(raised),
            op.aten.silu(raised),
            op.aten.tanh(raised),
            op.aten.sigmoid(raised),
        )
        return op.aten.linear(activated, down, op.optional(down_bias))

    def check(self, m: Match) -> Declined | None:
        for weight in (m.up, m.down):
            if weight.tensor.rank != 2:
                return m.decline("a weight is not a matrix", weight)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        biases = {name: m.optional(name) for name in ("up_bias", "down_bias")}
        return op.rg.ffn(m.x, m.up, m.down, **biases, activation=activation_of(m))

    examples = (
        Example(
            lambda op, x, u, b, d, c: op.aten.linear(op.aten.gelu(op.aten.linear(x, u, b)), d, c),
            ("f32[B, S, 8]", "f32[24, 8]", "f32[24]", "f32[8, 24]", "f32[8]"),
            constants=(1, 2, 3, 4),
        ),
        Example(
            lambda op, x, u, d: op.aten.linear(op.aten.gelu(op.aten.linear(x, u), approximate="tanh"), d),
            ("f32[2, 8]", "f32[24, 8]", "f32[5, 24]"),
            constants=(1, 2),
        ),
        Example(
            lambda op, x, u, d: op.aten.linear(op.aten.relu(op.aten.linear(x, u)), d),
            ("bf16[2, 8]", "bf16[24, 8]", "bf16[8, 24]"),
            constants=(1, 2),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, u, d: op.aten.linear(op.aten.exp(op.aten.linear(x, u)), d),
            ("f32[2, 8]", "f32[24, 8]", "f32[8, 24]"),
            constants=(1, 2),
            reason="expected aten.gelu",
        ),
        Example(
            lambda op, x, u, d: op.aten.linear(op.aten.relu(op.aten.linear(x, u)), d),
            ("f32[2, 8]", "f32[24, 8]", "f32[24]"),
            constants=(1, 2),
            reason="not a matrix",
        ),
    )
