"""The lowering tables, one module a family of ops."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.backends.ort.dtypes import ONNX_TYPES, carrier, kernel_type
from regraft.backends.ort.emit import Lowering
from regraft.backends.ort.lower import (
    attention,
    control,
    create,
    custom,
    elementwise,
    functions,
    gelu,
    indexing,
    matmul,
    nn,
    products,
    recurrent,
    reduce,
    scatter,
    structured,
    views,
    windows,
)
from regraft.ir import DType, Op, TensorType, Trait

_FAMILIES = (
    elementwise,
    functions,
    reduce,
    views,
    matmul,
    products,
    gelu,
    nn,
    windows,
    recurrent,
    attention,
    indexing,
    scatter,
    create,
    control,
    structured,
)

#: Op name -> how it is emitted. A later family's entry stands in place of an earlier one's.
LOWERINGS: Mapping[str, Lowering] = {
    name: lowering for family in _FAMILIES for name, lowering in family.LOWERINGS.items()
}

#: Handled by the emitter itself.
STRUCTURAL = ("rg.const", "cf.yield")

#: Subgraphs in each other. Protobuf reads messages 100 deep, of which each takes three and the type of the
#: innermost value five; and a lowering may put two of its own into it.
_DEEPEST = 29


def lowering_of(op: Op) -> Lowering | None:
    """How ``op`` is emitted: by the table, or as a user's op says itself."""
    return custom.lowering_of_own(op.definition) or LOWERINGS.get(op.name)


def supports(op: Op) -> str | None:
    """Why ``op`` cannot run on ONNX Runtime; None when it can, with everything in its regions."""
    for inner in (op, *(each for region in op.regions for each in region.walk())):
        reason = custom.kernel_missing(inner.definition.onnx)
        if reason is not None:
            return reason if inner is op else f"{inner.name} in its region: {reason}"
    return can_write(op)


def can_write(op: Op) -> str | None:
    """Why ``op`` cannot be written as ONNX, whoever is to run it; None when it can."""
    for value in (*op.operands, *op.results):
        if not isinstance(value.type, TensorType):
            return "it is ordered by a token"
        if value.tensor.dtype not in ONNX_TYPES:
            return f"ONNX Runtime has no tensors of type {value.tensor.dtype.value}"
        if value.tensor.device != "cpu":
            return f"it runs on {value.tensor.device}, this back end on cpu"
    depth = _depth(op)
    if depth > _DEEPEST:
        return f"conditions and loops are {depth} deep in each other, and an ONNX file holds {_DEEPEST}"
    for region in op.regions:
        for inner in region.ops:
            reason = can_write(inner)
            if reason is not None:
                return f"{inner.name} in its region: {reason}"
    if op.name in STRUCTURAL:
        return None
    if op.has(Trait.RANDOM):
        return "it draws from torch's generator, and ONNX Runtime has its own"
    lowering = lowering_of(op)
    if op.name in LOWERINGS and op.definition.opaque:
        return op.definition.uncovered
    if lowering is None:
        return "there is no lowering to ONNX"
    return _kernels(op, lowering) or lowering.check(op)


def _depth(op: Op) -> int:
    """How many subgraphs are in each other where ``op`` is emitted."""
    if not op.regions:
        return 0
    own = len(op.attr("cuts")).bit_length() if op.name == "rg.alt" else 1
    return own + max((_depth(inner) for region in op.regions for inner in region.ops), default=0)


def _kernels(op: Op, lowering: Lowering) -> str | None:
    """Why a kernel that the op needs does not take its type."""
    dtype = _type_of(op, lowering.typed_by)
    for kernel in lowering.kernels:
        if dtype is not None and kernel_type(kernel, dtype) is None:
            return f"ONNX Runtime has no {carrier(dtype).value} kernel for {kernel}"
    return None


def _type_of(op: Op, typed_by: str | None) -> DType | None:
    if typed_by:
        return op.operand(typed_by).tensor.dtype
    if typed_by is None and op.operands:
        return op.operands[0].tensor.dtype
    return op.results[0].tensor.dtype if op.results else None
