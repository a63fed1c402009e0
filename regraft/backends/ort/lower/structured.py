"""Feed-forward blocks."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower import elementwise
from regraft.backends.ort.lower.elementwise import dtype_of
from regraft.backends.ort.lower.gelu import gelu
from regraft.backends.ort.lower.matmul import linear
from regraft.ir import Dim, DType, Op, dims


def activate(e: Emitter, name: str, x: ir.Value, dtype: DType) -> ir.Value:
    """The activation ``name`` of ``rg.ffn``."""
    if name == "silu":
        return elementwise.silu(e, x, dtype)
    if name in ("gelu", "gelu_tanh"):
        return gelu(e, x, dtype, "tanh" if name == "gelu_tanh" else "none")
    return e.op({"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}[name], x)


def _ffn(e: Emitter, op: Op) -> ir.Value:
    """All rows at once, or, where their number is known, some at a time."""
    x, shape, size = e.operand(op, "x"), op.operand("x").tensor.shape, op.attr("rows_at_once")
    rows = dims.product(shape[:-1])
    if not size or not isinstance(rows, int) or rows <= size:
        return _feed_forward(e, op, x, shape)
    sizes = [min(size, rows - start) for start in range(0, rows, size)]
    flat = e.reshape(x, shape, (rows, shape[-1]))
    parts = e.ops("Split", len(sizes), flat, e.ints(*sizes), axis=0)
    done = [_feed_forward(e, op, part, (n, shape[-1])) for part, n in zip(parts, sizes, strict=True)]
    out = op.operand("down_weight").tensor.shape[0]
    return e.reshape(e.op("Concat", *done, axis=0), (rows, out), (*shape[:-1], out))


def _feed_forward(e: Emitter, op: Op, x: ir.Value, shape: Sequence[Dim]) -> ir.Value:
    """``x`` of ``shape`` through the layers of the ``rg.ffn`` ``op``."""
    dtype = dtype_of(op)

    def project(value: ir.Value, name: str, inner: Dim, bias: ir.Value | None) -> ir.Value:
        return linear(e, value, (*shape[:-1], inner), op.operand(f"{name}_weight"), bias, dtype)

    activation, up_bias = op.attr("activation"), e.optional(op, "up_bias")
    if op.optional("gate_weight") is None and activation == "gelu_tanh" and len(shape) > 2:
        up = project(x, "up", shape[-1], None)
        hidden = gelu(e, up, dtype, "tanh", up_bias)
    elif op.optional("gate_weight") is None:
        hidden = activate(e, activation, project(x, "up", shape[-1], up_bias), dtype)
    else:
        up = project(x, "up", shape[-1], up_bias)
        bias, gate_weight = e.optional(op, "gate_bias"), op.optional("gate_weight")
        assert gate_weight is not None
        gate = linear(e, x, shape, gate_weight, bias, dtype)
        hidden = e.op("Mul", activate(e, activation, gate, dtype), up)
    return project(hidden, "down", op.operand("down_weight").tensor.shape[1], e.optional(op, "down_bias"))


def _ffn_check(op: Op) -> str | None:
    if dtype_of(op) == DType.F64 and op.attr("activation") == "gelu":
        return "ONNX Runtime has no f64 kernel for Erf"
    return None


LOWERINGS: dict[str, Lowering] = {
    "rg.ffn": Lowering(_ffn, ("FusedMatMul",), check=_ffn_check),
}
