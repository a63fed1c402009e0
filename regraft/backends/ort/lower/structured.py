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
    """All rows at once, or some at a time."""
    names = ("x",) if op.optional("gate_input") is None else ("x", "gate_input")
    inputs = [e.operand(op, name) for name in names]
    lead, size = op.operand("x").tensor.shape[:-1], op.attr("rows_at_once")
    rows = dims.product(lead)
    if not size or (isinstance(rows, int) and rows <= size):
        return _feed_forward(e, op, inputs, lead)
    flat = [
        e.reshape(value, op.operand(name).tensor.shape, (rows, op.operand(name).tensor.shape[-1]))
        for value, name in zip(inputs, names, strict=True)
    ]
    done = _in_parts(e, op, flat, rows) if isinstance(rows, int) else _in_trips(e, op, flat, rows)
    out = op.operand("down_weight").tensor.shape[0]
    return e.reshape(done, (rows, out), (*lead, out))


def _in_parts(e: Emitter, op: Op, inputs: Sequence[ir.Value], rows: int) -> ir.Value:
    """The rows one part after the other."""
    size = op.attr("rows_at_once")
    sizes = [min(size, rows - start) for start in range(0, rows, size)]
    parts = [e.ops("Split", len(sizes), value, e.ints(*sizes), axis=0) for value in inputs]
    done = [_feed_forward(e, op, part, (n,)) for n, *part in zip(sizes, *parts, strict=True)]
    return e.op("Concat", *done, axis=0)


def _in_trips(e: Emitter, op: Op, inputs: Sequence[ir.Value], rows: Dim) -> ir.Value:
    """The rows in a loop; where they are fewer than two parts, all at once and without its cost."""
    count = e.size_scalar(rows)
    few = e.op("Less", count, e.scalar(2 * op.attr("rows_at_once"), DType.I64))
    with e.nested():
        at_once = e.graph("then_branch", [_feed_forward(e, op, inputs, (rows,))])
    with e.nested():
        looped = e.graph("else_branch", [_loop(e, op, inputs, rows, count)])
    return e.op("If", few, then_branch=at_once, else_branch=looped)


def _loop(e: Emitter, op: Op, inputs: Sequence[ir.Value], rows: Dim, count: ir.Value) -> ir.Value:
    """Parts of one size, the rows padded by less than one for each part: a loop stacks equal results."""
    size, one = e.scalar(op.attr("rows_at_once"), DType.I64), e.scalar(1, DType.I64)

    def rounded_up(total: ir.Value, parts: ir.Value) -> ir.Value:
        return e.op("Div", e.op("Add", total, e.op("Sub", parts, one)), parts)

    trips = rounded_up(count, size)
    part = rounded_up(count, trips)
    missing = e.op("Unsqueeze", e.op("Sub", e.op("Mul", trips, part), count), e.ints(0))
    pads = e.op("Concat", e.ints(0, 0), missing, e.ints(0), axis=0)
    padded = [e.op("Pad", value, pads) for value in inputs]
    with e.nested():
        trip, go = e.value("trip", DType.I64, ()), e.value("go", DType.BOOL, ())
        start = e.op("Unsqueeze", e.op("Mul", trip, part), e.ints(0))
        end = e.op("Add", start, e.op("Unsqueeze", part, e.ints(0)))
        own = [e.op("Slice", value, start, end, e.ints(0)) for value in padded]
        body = e.graph("body", [go, _feed_forward(e, op, own, (rows,))], [trip, go])
    stacked = e.op("Loop", trips, e.scalar(True, DType.BOOL), body=body)
    out = op.operand("down_weight").tensor.shape[0]
    shape = e.ints(-1, out) if isinstance(out, int) else e.op("Concat", e.ints(-1), e.shape((out,)), axis=0)
    flat = e.op("Reshape", stacked, shape)
    return e.op("Slice", flat, e.ints(0), e.op("Unsqueeze", count, e.ints(0)), e.ints(0))


def _feed_forward(e: Emitter, op: Op, inputs: Sequence[ir.Value], lead: Sequence[Dim]) -> ir.Value:
    """``x``, and the gate's own input if it has one, through the layers of the ``rg.ffn`` ``op``."""
    dtype = dtype_of(op)

    def project(value: ir.Value, name: str, bias: ir.Value | None) -> ir.Value:
        weight = op.operand(f"{name}_weight")
        return linear(e, value, (*lead, weight.tensor.shape[1]), weight, bias, dtype)

    activation, up_bias = op.attr("activation"), e.optional(op, "up_bias")
    if op.optional("gate_weight") is None and activation == "gelu_tanh" and len(lead) > 1:
        hidden = gelu(e, project(inputs[0], "up", None), dtype, "tanh", up_bias)
    elif op.optional("gate_weight") is None:
        hidden = activate(e, activation, project(inputs[0], "up", up_bias), dtype)
    else:
        up = project(inputs[0], "up", up_bias)
        gate = project(inputs[-1], "gate", e.optional(op, "gate_bias"))
        hidden = e.op("Mul", activate(e, activation, gate, dtype), up)
    return project(hidden, "down", e.optional(op, "down_bias"))


def _ffn_check(op: Op) -> str | None:
    if dtype_of(op) == DType.F64 and op.attr("activation") == "gelu":
        return "ONNX Runtime has no f64 kernel for Erf"
    return None


LOWERINGS: dict[str, Lowering] = {
    "rg.ffn": Lowering(_ffn, ("FusedMatMul",), check=_ffn_check),
}
