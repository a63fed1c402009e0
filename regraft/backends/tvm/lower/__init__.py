"""The lowering tables, one module a family of ops, and what they take."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.backends.tvm.expand import EXPANSIONS
from regraft.backends.tvm.lower import (
    create,
    elementwise,
    gather,
    matmul,
    norm,
    parts,
    reduce,
    views,
)
from regraft.backends.tvm.lower.kinds import Lowering
from regraft.ir import DType, Op, TensorType, Trait

_FAMILIES = (elementwise, views, create, gather, parts, reduce, norm, matmul)

#: Op name -> how its kernel is written.
LOWERINGS: Mapping[str, Lowering] = {
    name: lowering for family in _FAMILIES for name, lowering in family.LOWERINGS.items()
}

#: Handled by the clustering itself.
STRUCTURAL = ("rg.const", "cf.yield")

_INTEGERS = (DType.I64, DType.I32, DType.I16, DType.I8, DType.U8, DType.BOOL)
#: Element types of what kernels read and write; those of bf16 are computed in f32.
DTYPES = frozenset({DType.F32, DType.F64, DType.BF16, *_INTEGERS})


def supports(op: Op) -> str | None:
    """Why ``op`` cannot be lowered to a kernel; None when it can."""
    for value in (*op.operands, *op.results):
        if not isinstance(value.type, TensorType):
            return "it is ordered by a token"
        if value.tensor.dtype not in DTYPES:
            return f"no kernels for {value.tensor.dtype} tensors"
        if value.tensor.device != "cpu":
            return f"it runs on {value.tensor.device}, this back end on cpu"
    if op.name in STRUCTURAL:
        return None
    if op.has(Trait.RANDOM):
        return "it draws from torch's generator"
    if op.regions:
        return "conditions and loops have no kernels"
    if op.symbols:
        return "the length of its result depends on values"
    expansion = EXPANSIONS.get(op.name)
    if expansion is not None:
        return expansion.check(op)
    lowering = LOWERINGS.get(op.name)
    if lowering is None:
        return "there is no lowering to a kernel"
    if op.definition.opaque:
        return "the op table does not cover this use of it"
    return lowering.check(op)
