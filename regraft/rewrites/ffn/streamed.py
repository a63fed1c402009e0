"""Feed-forward networks of low rank whose hidden features are never there all at once.

FlashSVD (Zishan-Shao/FlashSVD, kernels/mlp/prefill) streams over the hidden features inside one kernel and
keeps what is as wide as the rank. Here the rows take turns instead, some at a time: what is alive is as
small, the products stay the library's, and nothing is summed up in another order.
"""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Declined, Example, Match, PatternBuilder, Rewrite, Value, Var, dims

#: Rows at a time: enough for a product to run at full speed, few enough to stay in the cache.
ROWS = 256
#: The hidden features are this many times as wide as input and output together, or more.
MIN_WIDTH_RATIO = 4


class StreamedFFN(Rewrite):
    """ffn(x) = ffn(x, rows_at_once=256), for many rows of few features and a wide inside."""

    stage = "fuse"
    after = ("GatedFFN", "PlainFFN")

    def pattern(
        self,
        op: PatternBuilder,
        x: Var,
        up: Var,
        down: Var,
        gate: Var,
        up_bias: Var,
        gate_bias: Var,
        down_bias: Var,
    ) -> Any:
        optional = [op.optional(v) for v in (gate, up_bias, gate_bias, down_bias)]
        return op.rg.ffn(x, up, down, *optional, activation=op.attr("activation"))

    def check(self, m: Match) -> Declined | None:
        rows, (hidden, width), out = (
            dims.product(m.x.tensor.shape[:-1]),
            m.up.tensor.shape,
            m.down.tensor.shape[0],
        )
        if not isinstance(rows, int) or rows < 2 * ROWS:
            return m.decline(
                f"the rows are few, or their number is not known (from {2 * ROWS} on it pays)", m.x
            )
        if dims.le(MIN_WIDTH_RATIO * (width + out), hidden) is not True:
            return m.decline("input and output are not narrow beside the hidden features", m.up)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.create("rg.ffn", (), m.root.arguments() | {"rows_at_once": ROWS}).result

    examples = (
        Example(
            lambda op, x, u, d, b, c: op.rg.ffn(x, u, d, None, b, None, c, activation="gelu_tanh"),
            ("f32[2, 300, 2]", "f32[24, 2]", "f32[3, 24]", "f32[24]", "f32[3]"),
            constants=(1, 2, 3, 4),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, u, d: op.rg.ffn(x, u, d, activation="relu"),
            ("f32[600, 8]", "f32[24, 8]", "f32[8, 24]"),
            constants=(1, 2),
            reason="not narrow",
        ),
        Example(
            lambda op, x, u, d: op.rg.ffn(x, u, d, activation="relu"),
            ("f32[N, 2]", "f32[24, 2]", "f32[3, 24]"),
            constants=(1, 2),
            reason="the rows are few",
        ),
    )
