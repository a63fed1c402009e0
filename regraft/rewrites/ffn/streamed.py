"""Feed-forward networks of low rank whose hidden features are never there all at once.

FlashSVD (Zishan-Shao/FlashSVD, kernels/mlp/prefill) streams over the hidden features inside one kernel and
keeps what is as wide as the rank. Here the rows take turns instead, some at a time: what is alive is as
small, the products stay the library's, and nothing is summed up in another order.
"""

from __future__ import annotations

from typing import Any

from regraft.ir import (
    Builder,
    Declined,
    Dim,
    Example,
    Match,
    PatternBuilder,
    Rewrite,
    Value,
    Var,
    dims,
)
from regraft.rewrites.ffn.gated import activation_of, gated_network
from regraft.rewrites.support import same_dims

#: Rows at a time: enough for a product to run at full speed, few enough to stay in the cache.
ROWS = 256
#: The hidden features are this many times as wide as input and output together, or more.
MIN_WIDTH_RATIO = 4


def _is_narrow(hidden: Dim, *widths: Dim) -> bool:
    """Whether inputs and output of ``widths`` are narrow beside the ``hidden`` features."""
    total: Dim = 0
    for width in widths:
        total += width
    return dims.le(MIN_WIDTH_RATIO * total, hidden) is True


class LowRankGatedFFN(Rewrite):
    """down(act(gate(y)) * up(x)) = ffn(x, gate_input=y), for x, y and result narrow beside what is inside.

    A gated network whose three layers are of low rank is that between its outer factors.
    """

    stage = "fuse"
    after = ("GatedFFN",)

    def pattern(
        self,
        op: PatternBuilder,
        x: Var,
        y: Var,
        gate: Var,
        up: Var,
        down: Var,
        gate_bias: Var,
        up_bias: Var,
        down_bias: Var,
    ) -> Any:
        return gated_network(op, x, y, gate, up, down, gate_bias, up_bias, down_bias)

    def check(self, m: Match) -> Declined | None:
        if m.x is m.y:
            return m.decline("gate and up read one value", m.x)
        for weight in (m.gate, m.up, m.down):
            if weight.tensor.rank != 2:
                return m.decline("a weight is not a matrix", weight)
        if not same_dims(m.x.tensor.shape[:-1], m.y.tensor.shape[:-1]):
            return m.decline("gate and up have other rows", m.y)
        (hidden, width), gate_width, out = m.up.tensor.shape, m.gate.tensor.shape[1], m.down.tensor.shape[0]
        if not _is_narrow(hidden, width, gate_width, out):
            return m.decline("inputs and output are not narrow beside the hidden features", m.up)
        return None

    def rewrite(self, op: Builder, m: Match) -> Value:
        biases = {name: m.optional(name) for name in ("up_bias", "gate_bias", "down_bias")}
        return op.rg.ffn(
            m.x,
            m.up,
            m.down,
            gate_weight=m.gate,
            **biases,
            gate_input=m.y,
            activation=activation_of(m),
        )

    examples = (
        Example(
            lambda op, x, y, g, u, d: _gated(op, x, y, g, u, d),
            ("f32[B, S, 2]", "f32[B, S, 1]", "f32[24, 1]", "f32[24, 2]", "f32[3, 24]"),
            constants=(2, 3, 4),
        ),
        Example(
            lambda op, x, y, g, u, d, b: _gated(op, x, y, g, u, d, b),
            ("f32[N, 2]", "f32[N, 2]", "f32[24, 2]", "f32[24, 2]", "f32[2, 24]", "f32[24]"),
            constants=(2, 3, 4, 5),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, y, g, u, d: _gated(op, x, y, g, u, d),
            ("f32[5, 4]", "f32[5, 1]", "f32[24, 1]", "f32[24, 4]", "f32[3, 24]"),
            constants=(2, 3, 4),
            reason="not narrow",
        ),
        Example(
            lambda op, x, y, g, u, d: _gated(op, x, y, g, u, d),
            ("f32[5, 2]", "f32[1, 1]", "f32[24, 1]", "f32[24, 2]", "f32[3, 24]"),
            constants=(2, 3, 4),
            reason="other rows",
        ),
        Example(
            lambda op, x, g, u, d: _gated(op, x, x, g, u, d),
            ("f32[5, 2]", "f32[24, 2]", "f32[24, 2]", "f32[2, 24]"),
            constants=(1, 2, 3),
            reason="read one value",
        ),
    )


def _gated(op: Builder, x: Value, y: Value, g: Value, u: Value, d: Value, b: Value | None = None) -> Value:
    hidden = op.aten.mul.Tensor(op.aten.silu(op.aten.linear(y, g, b)), op.aten.linear(x, u))
    return op.aten.linear(hidden, d)


class StreamedFFN(Rewrite):
    """ffn(x) = ffn(x, rows_at_once=256), for many rows of few features and a wide inside.

    Where a size that varies settles the number of rows, each call sees for itself whether they are many.
    """

    stage = "fuse"
    after = ("GatedFFN", "PlainFFN", "LowRankGatedFFN")

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
        gate_input: Var,
    ) -> Any:
        optional = [op.optional(v) for v in (gate, up_bias, gate_bias, down_bias, gate_input)]
        return op.rg.ffn(x, up, down, *optional, activation=op.attr("activation"))

    def check(self, m: Match) -> Declined | None:
        rows, (hidden, width) = dims.product(m.x.tensor.shape[:-1]), m.up.tensor.shape
        if dims.le(rows, 2 * ROWS - 1) is True:
            return m.decline(f"the rows are few: from {2 * ROWS} on it pays", m.x)
        gate_input = m.optional("gate_input")
        own = 0 if gate_input is None else gate_input.tensor.shape[-1]
        if not _is_narrow(hidden, width, own, m.down.tensor.shape[0]):
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
        Example(
            lambda op, x, u, d: op.rg.ffn(x, u, d, activation="relu"),
            ("f32[B, S, 2]", "f32[24, 2]", "f32[3, 24]"),
            constants=(1, 2),
        ),
        Example(
            lambda op, x, y, u, d, g: op.rg.ffn(x, u, d, g, gate_input=y, activation="silu"),
            ("f32[600, 2]", "f32[600, 1]", "f32[24, 2]", "f32[3, 24]", "f32[24, 1]"),
            constants=(2, 3, 4),
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
            ("f32[5, 2]", "f32[24, 2]", "f32[3, 24]"),
            constants=(1, 2),
            reason="the rows are few",
        ),
    )
