"""The ``rg.*`` ops in which rewrites and back ends meet."""

from __future__ import annotations

from typing import Any

from regraft.ir.dims import Dim, eq, floordiv, mod
from regraft.ir.opdef import SAFE, CallSite
from regraft.ir.ops.matmul import linear_type
from regraft.ir.ops.rules import (
    broadcast,
    define,
    one,
    per_result,
    refuse,
    require,
    require_float,
    same_dtype,
)
from regraft.ir.ops.views import take
from regraft.ir.types import TensorType

#: Activation names of ``rg.ffn`` -> the op and its attributes.
ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "silu": ("aten.silu", {}),
    "gelu": ("aten.gelu", {}),
    "gelu_tanh": ("aten.gelu", {"approximate": "tanh"}),
    "relu": ("aten.relu", {}),
    "sigmoid": ("aten.sigmoid", {}),
    "tanh": ("aten.tanh", {}),
}


def _rotary(site: CallSite) -> TensorType:
    """``x[..., T, D]`` with ``cos`` and ``sin`` that broadcast to it; ``D`` is even."""
    x = require_float(site, "x")
    require(x.rank >= 2, site, f"x has rank {x.rank}, expected at least 2")
    require(mod(x.shape[-1], 2) == 0, site, f"the last axis of {x} cannot be halved")
    tables = (site.type("cos"), site.type("sin"))
    shape = broadcast(site, [x.shape, *(t.shape for t in tables)])
    require(len(shape) == x.rank, site, "a table has more axes than x")
    return TensorType(same_dtype(site, (x, *tables)), shape, x.device)


def _rotate(b: Any, op: Any) -> Any:
    """``x * cos + rotate_half(x) * sin``."""
    x, cos, sin = (op.operand(name) for name in ("x", "cos", "sin"))
    axis = x.tensor.rank - 1
    half = floordiv(x.tensor.shape[axis], 2)
    first, second = take(b, x, axis, 0, half), take(b, x, axis, half, half)
    rotated = b.aten.cat((b.aten.neg(second), first), axis)
    return b.aten.add.Tensor(b.aten.mul.Tensor(x, cos), b.aten.mul.Tensor(rotated, sin))


def _ffn(site: CallSite) -> TensorType:
    """``x[..., E]``, up and gate ``[F, E]``, down ``[O, F]`` -> ``[..., O]``.

    The gate reads ``gate_input[..., G]`` where it is given, of as many rows as ``x``, and is then ``[F, G]``.
    ``rows_at_once`` bounds the rows whose hidden features are there at the same time; 0 sets no bound.
    """
    require(site.int("rows_at_once") >= 0, site, "rows_at_once is negative")
    if site.attr("activation") not in ACTIVATIONS:
        refuse(site, f"activation is {site.attr('activation')!r}, expected one of {', '.join(ACTIVATIONS)}")
    x = require_float(site, "x")
    inner = linear_type(site, x, site.type("up_weight"), site.optional("up_bias"), "up ")
    gate = site.optional("gate_weight")
    if gate is None:
        for name in ("gate_bias", "gate_input"):
            require(site.optional(name) is None, site, f"a {name} without a gate_weight")
    else:
        source = site.optional("gate_input") or x
        require(
            len(source.shape) == len(x.shape)
            and all(eq(a, b) is True for a, b in zip(source.shape[:-1], x.shape[:-1], strict=True)),
            site,
            f"the rows of x, {x}, and of gate_input, {source}, differ",
        )
        gated = linear_type(site, source, gate, site.optional("gate_bias"), "gate ")
        inner = inner.with_shape(broadcast(site, [inner.shape, gated.shape]))
    return linear_type(site, inner, site.type("down_weight"), site.optional("down_bias"), "down ")


def _ffn_flops(site: CallSite) -> Dim:
    """The products, the activation and the gate."""
    x, up, down = site.type("x"), site.type("up_weight"), site.type("down_weight")
    rows = floordiv(x.numel, x.shape[-1])
    gate = site.optional("gate_weight")
    gates = 0 if gate is None else 1
    products = up.numel + down.numel + (0 if gate is None else gate.numel)
    return rows * (2 * products + up.shape[0] * (1 + gates))


def _feed_forward(b: Any, op: Any) -> Any:
    args = op.arguments()
    x, gate = args["x"], args["gate_weight"]
    name, attrs = ACTIVATIONS[args["activation"]]
    up = b.aten.linear(x, args["up_weight"], args["up_bias"])
    if gate is None:
        inner = b.call(name, (up,), attrs)
    else:
        source = x if args["gate_input"] is None else args["gate_input"]
        gated = b.aten.linear(source, gate, args["gate_bias"])
        inner = b.aten.mul.Tensor(b.call(name, (gated,), attrs), up)
    return b.aten.linear(inner, args["down_weight"], args["down_bias"])


OPS = (
    define(
        "rg.rotary(Tensor x, Tensor cos, Tensor sin)", _rotary, SAFE, per_result(4), decompose=one(_rotate)
    ),
    define(
        "rg.ffn(Tensor x, Tensor up_weight, Tensor down_weight, Tensor? gate_weight=None, "
        "Tensor? up_bias=None, Tensor? gate_bias=None, Tensor? down_bias=None, Tensor? gate_input=None, "
        "str activation, int rows_at_once=0)",
        _ffn,
        SAFE,
        _ffn_flops,
        decompose=one(_feed_forward),
    ),
)
