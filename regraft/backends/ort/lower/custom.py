"""Ops of the user's own: by a lowering of theirs, or as the ONNX operator that they name."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from regraft.backends.ort.dtypes import ONNX_TYPES, ORT_DOMAINS, carrier
from regraft.backends.ort.emit import Emitter, Lowering
from regraft.ir import DType, OnnxOp, Op, OpDef, Value


def lowering_of_own(definition: OpDef) -> Lowering | None:
    """The lowering that a user's op brings along; None when it brings none."""
    own = definition.lowerings.get("ort")
    if own is not None:
        return Lowering(own)
    return None if definition.onnx is None else Lowering(_operator, check=_attributes_fit)


def kernel_missing(onnx: OnnxOp | None) -> str | None:
    """Why no session of ours can run the operator, or None."""
    if onnx is None or onnx.domain in ORT_DOMAINS or onnx.library is not None:
        return None
    return f"ONNX Runtime has no kernel for {onnx}; OnnxOp.library may name a library that has one"


def _operator(e: Emitter, op: Op) -> list[ir.Value]:
    """One node, its operands in the order of the schema and in their own types."""
    onnx = op.definition.onnx
    assert onnx is not None
    inputs: list[ir.Value | None] = []
    for operand in op.definition.operands:
        given: Any = op.arguments()[operand.name]
        values = given if isinstance(given, tuple) else (given,)
        inputs += [None if value is None else _narrowed(e, value) for value in values]
    attrs = {name: _attribute(name, value) for name, value in op.attrs.items() if value is not None}
    outputs = e.ops(onnx.name, len(op.results), *inputs, domain=onnx.domain, **attrs)
    return [_widened(e, output, result) for output, result in zip(outputs, op.results, strict=True)]


def _narrowed(e: Emitter, value: Value) -> ir.Value:
    dtype = value.tensor.dtype
    return e.cast(e.get(value), carrier(dtype), dtype)


def _widened(e: Emitter, output: ir.Value, result: Value) -> ir.Value:
    """The output, which no schema describes, with the type of the op's result."""
    dtype, shape = result.tensor.dtype, result.tensor.shape
    output.type = ir.TensorType(ONNX_TYPES[dtype])
    output.shape = e.onnx_shape(shape)
    return e.cast(output, dtype, carrier(dtype))


def _attribute(name: str, value: Any) -> Any:
    if isinstance(value, DType):
        return int(ONNX_TYPES[value])
    if isinstance(value, tuple):
        return [int(v) for v in value] if value and isinstance(value[0], bool) else list(value)
    return int(value) if isinstance(value, bool) else value


def _attributes_fit(op: Op) -> str | None:
    for name, value in op.attrs.items():
        values = value if isinstance(value, tuple) else (value,)
        if value == () or not all(v is None or isinstance(v, (bool, int, float, str, DType)) for v in values):
            return f"ONNX has no form for the attribute {name} = {value!r}; give the op a lowering"
    return None
