"""Recurrent layers as ONNX has them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import dtype_of
from regraft.backends.ort.lower.empty import empty, unless_empty
from regraft.ir import Dim, DType, Op, dims

_KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}


def _recurrent(e: Emitter, op: Op) -> Sequence[ir.Value]:
    """Without a step the kernels' last states are arbitrary, or the process ends."""

    def nothing() -> list[ir.Value]:
        names = ("hidden", "memory") if op.attr("cell") == "lstm" else ("hidden",)
        return [empty(e, op.results[0].tensor), *(e.operand(op, name) for name in names)]

    return unless_empty(e, op.operand("x").tensor.shape[0], lambda: _steps(e, op), nothing)


def _steps(e: Emitter, op: Op) -> list[ir.Value]:
    cell = op.attr("cell")
    directions, _, width = op.operand("recurrence").tensor.shape
    attrs = {"hidden_size": width, "direction": "bidirectional" if directions == 2 else "forward"}
    if cell == "gru":  # torch resets what the recurrence has made of the state, not the state
        attrs["linear_before_reset"] = 1
    if cell.startswith("rnn"):
        attrs["activations"] = ["Tanh" if cell == "rnn_tanh" else "Relu"] * int(str(directions))
    names = ("x", "weight", "recurrence")
    x, weight, recurrence = (e.operand(op, name) for name in names)
    states = [e.operand(op, "hidden"), e.optional(op, "memory")]
    batch = op.operand("x").tensor.shape[1]
    may_be_empty = dims.le(1, batch) is not True
    if may_be_empty:
        x, *states = _with_a_sample(e, [x, *states], batch)
    inputs = (x, weight, recurrence, e.optional(op, "bias"), None, *states)
    made = e.ops(_KINDS[cell], len(op.results), *inputs, **attrs)
    return _cut(e, op, made, batch) if may_be_empty else made


def _with_a_sample(e: Emitter, values: Sequence[ir.Value | None], batch: Dim) -> list[ir.Value | None]:
    """``values[., batch, .]``, padded by a sample where there is none: the kernels end the process there."""
    one = e.scalar(1, DType.I64)
    missing = e.op("Unsqueeze", e.op("Sub", one, e.op("Min", e.size_scalar(batch), one)), e.ints(0))
    pads = e.op("Concat", e.ints(0, 0, 0, 0), missing, e.ints(0), axis=0)
    return [None if value is None else e.op("Pad", value, pads) for value in values]


def _cut(e: Emitter, op: Op, made: Sequence[ir.Value], batch: Dim) -> list[ir.Value]:
    """The first ``batch`` samples of the results."""
    end = e.op("Unsqueeze", e.size_scalar(batch), e.ints(0))
    axes = (result.tensor.rank - 2 for result in op.results)
    return [e.op("Slice", x, e.ints(0), end, e.ints(axis)) for x, axis in zip(made, axes, strict=True)]


def _check(op: Op) -> str | None:
    if dtype_of(op) == DType.F64:
        return "ONNX Runtime computes recurrent layers in f32 only"
    return None


LOWERINGS: dict[str, Lowering] = {"rg.recurrent": Lowering(_recurrent, check=_check)}
