"""Recurrent layers as ONNX has them."""

from __future__ import annotations

import onnx_ir as ir

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower.elementwise import dtype_of
from regraft.ir import DType, Op

_KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}


def _recurrent(e: Emitter, op: Op) -> list[ir.Value]:
    cell = op.attr("cell")
    directions, _, width = op.operand("recurrence").tensor.shape
    attrs = {"hidden_size": width, "direction": "bidirectional" if directions == 2 else "forward"}
    if cell == "gru":  # torch resets what the recurrence has made of the state, not the state
        attrs["linear_before_reset"] = 1
    if cell.startswith("rnn"):
        attrs["activations"] = ["Tanh" if cell == "rnn_tanh" else "Relu"] * int(str(directions))
    names = ("x", "weight", "recurrence")
    inputs = [e.operand(op, name) for name in names]
    states = [e.operand(op, "hidden"), e.optional(op, "memory")]
    return e.ops(_KINDS[cell], len(op.results), *inputs, e.optional(op, "bias"), None, *states, **attrs)


def _check(op: Op) -> str | None:
    if dtype_of(op) == DType.F64:
        return "ONNX Runtime computes recurrent layers in f32 only"
    return None


LOWERINGS: dict[str, Lowering] = {"rg.recurrent": Lowering(_recurrent, check=_check)}
