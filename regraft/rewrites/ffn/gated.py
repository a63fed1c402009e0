"""Gated feed-forward networks (Shazeer 2020, arXiv:2002.05202): SwiGLU, GEGLU and their kin."""

from __future__ import annotations

from typing import Any

from regraft.ir import Builder, Example, Match, PatternBuilder, Rewrite, Value, Var


def gated_network(
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
    """linear(f(linear(y, gate)) * linear(x, up), down), for an activation ``f`` of ``rg.ffn``."""
    gated = op.aten.linear(y, gate, op.optional(gate_bias))
    activated = op.one_of(
        op.aten.silu(gated),
        op.aten.gelu(gated, approximate=op.attr("approximate")),
        op.aten.relu(gated),
        op.aten.sigmoid(gated),
        op.aten.tanh(gated),
    )
    product = op.aten.mul.Tensor(activated, op.aten.linear(x, up, op.optional(up_bias)))
    return op.aten.linear(product, down, op.optional(down_bias))


class GatedFFN(Rewrite):
    """down(act(gate(x)) * up(x)) = ffn(x). Source: ``LlamaMLP`` and its many copies in transformers."""

    stage = "fuse"

    def pattern(
        self,
        op: PatternBuilder,
        x: Var,
        gate: Var,
        up: Var,
        down: Var,
        gate_bias: Var,
        up_bias: Var,
        down_bias: Var,
    ) -> Any:
        return gated_network(op, x, x, gate, up, down, gate_bias, up_bias, down_bias)

    def rewrite(self, op: Builder, m: Match) -> Value:
        return op.rg.ffn(
            m.x,
            m.up,
            m.down,
            gate_weight=m.gate,
            up_bias=m.optional("up_bias"),
            gate_bias=m.optional("gate_bias"),
            down_bias=m.optional("down_bias"),
            activation=activation_of(m),
        )

    examples = (
        Example(
            lambda op, x, g, u, d: _ffn(op, x, g, u, d, "silu"),
            ("bf16[2, 8]", "bf16[24, 8]", "bf16[24, 8]", "bf16[8, 24]"),
            constants=(1, 2, 3),
        ),
        Example(
            lambda op, x, g, u, d: _ffn(op, x, g, u, d, "silu"),
            ("f32[B, S, 8]", "f32[24, 8]", "f32[24, 8]", "f32[8, 24]"),
            constants=(1, 2, 3),
        ),
        Example(
            lambda op, x, g, u, d, b: _ffn(op, x, g, u, d, "gelu", b, up_first=True),
            ("f32[2, 8]", "f32[24, 8]", "f32[24, 8]", "f32[8, 24]", "f32[24]"),
            constants=(1, 2, 3, 4),
        ),
        Example(
            lambda op, x, g, u, d: _ffn(op, x, g, u, d, "gelu_tanh"),
            ("f32[2, 8]", "f32[24, 8]", "f32[24, 8]", "f32[5, 24]"),
            constants=(1, 2, 3),
        ),
        Example(
            lambda op, x, w, u, d, b, c: op.aten.linear(_gated(op, x, (w, b), (u, c)), d, b),
            ("f32[2, 8]", "f32[8, 8]", "f32[8, 8]", "f32[8, 8]", "f32[8]", "f32[8]"),
            constants=(1, 2, 3, 4, 5),
        ),
    )
    counterexamples = (
        Example(
            lambda op, x, g, u, d: _ffn(op, x, g, u, d, "silu", other=op.aten.neg(x)),
            ("f32[2, 8]", "f32[24, 8]", "f32[24, 8]", "f32[8, 24]"),
            constants=(1, 2, 3),
            reason="two different values",
        ),
        Example(
            lambda op, x, g, u, d: _ffn(op, x, g, u, d, "exp"),
            ("f32[2, 8]", "f32[24, 8]", "f32[24, 8]", "f32[8, 24]"),
            constants=(1, 2, 3),
            reason="expected aten.silu",
        ),
    )


def activation_of(m: Match) -> str:
    """The name that ``rg.ffn`` has for the matched activation."""
    if "approximate" in m.attrs:
        return "gelu_tanh" if m.attr("approximate") == "tanh" else "gelu"
    names = {f"aten.{name}": name for name in ("silu", "relu", "sigmoid", "tanh")}
    return next(names[op.name] for op in m.ops if op.name in names)


def _gated(op: Builder, x: Value, gate: tuple[Value, Value], up: tuple[Value, Value]) -> Value:
    """The hidden features of a layer with a bias everywhere."""
    return op.aten.mul.Tensor(op.aten.silu(op.aten.linear(x, *gate)), op.aten.linear(x, *up))


def _ffn(
    op: Builder,
    x: Value,
    gate: Value,
    up: Value,
    down: Value,
    activation: str,
    bias: Value | None = None,
    *,
    up_first: bool = False,
    other: Value | None = None,
) -> Value:
    gated = op.aten.linear(x, gate, bias)
    if activation == "gelu_tanh":
        activated = op.aten.gelu(gated, approximate="tanh")
    else:
        activated = op.call(f"aten.{activation}", (gated,), {})
    raised = op.aten.linear(x if other is None else other, up)
    product = op.aten.mul.Tensor(raised, activated) if up_first else op.aten.mul.Tensor(activated, raised)
    return op.aten.linear(product, down)
