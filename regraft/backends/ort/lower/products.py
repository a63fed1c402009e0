"""Products together with the scale or the sum behind them: a pass, or a node, less over the result."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import torch

from regraft.backends.ort.emit import Emitter, Lowering
from regraft.backends.ort.lower import elementwise
from regraft.backends.ort.lower.elementwise import dtype_of
from regraft.backends.ort.lower.matmul import is_matrix, matrix, times
from regraft.ir import DType, Op, Value


def _sum(e: Emitter, op: Op) -> ir.Value:
    """``alpha * a @ b + beta * c`` as one ``Gemm``, where all of them are matrices."""
    left, right = op.operands
    sign = op.attr("alpha") * (-1 if op.name == "aten.sub.Tensor" else 1)
    if _vanishes(sign):
        return _one_value(elementwise.LOWERINGS[op.name], e, op)
    for term, alpha, addend, beta in ((right, sign, left, 1), (left, 1, right, sign)):
        product, scale = _unscaled(term)
        if not _is_fusible(product, dtype_of(op)) or addend.tensor.shape != product.tensor.shape:
            continue
        assert product.op is not None
        if all(map(is_matrix, product.op.operands)):
            c, other = _unscaled(addend)
            if _vanishes(alpha * scale) or _vanishes(beta * other):
                continue
            inputs = [matrix(e, v) for v in (*product.op.operands, c)]
            made = e.op("Gemm", *inputs, alpha=float(alpha * scale), beta=float(beta * other))
            return e.reshape(made, c.tensor.shape[-2:], c.tensor.shape)
    return _one_value(elementwise.LOWERINGS[op.name], e, op)


def _unscaled(value: Value) -> tuple[Value, float]:
    """``(x, factor)`` of which ``value`` is the product, where nobody else reads it."""
    made = value.op
    if (
        made is not None
        and made.name == "aten.mul.Scalar"
        and len(value.uses) == 1
        and not _vanishes(made.attr("other"))
    ):
        return made.operand("self"), made.attr("other")
    return value, 1


def _vanishes(factor: float) -> bool:
    """Whether ``factor`` is 0 as an attribute, of f32: Gemm then leaves out the term, and nan with it."""
    return abs(factor) < torch.finfo(torch.float32).tiny


def _scaled(e: Emitter, op: Op) -> ir.Value:
    """``scale * a @ b`` as one product."""
    product, dtype = op.operand("self"), dtype_of(op)
    if e.contrib_allowed and _is_fusible(product, dtype) and not _vanishes(op.attr("other")):
        assert product.op is not None
        a, b = (e.get(v) for v in product.op.operands)
        return times(e, a, b, dtype, scale=op.attr("other"))
    return _one_value(elementwise.LOWERINGS[op.name], e, op)


def _is_fusible(value: Value, dtype: DType) -> bool:
    """Whether ``value`` is a product that nobody else reads. Factors are attributes, and those are f32."""
    made = value.op
    return made is not None and made.name == "aten.matmul" and len(value.uses) == 1 and dtype == DType.F32


def _one_value(lowering: Lowering, e: Emitter, op: Op) -> ir.Value:
    emitted = lowering.emit(e, op)
    assert isinstance(emitted, ir.Value)
    return emitted


#: In place of those in ``elementwise``.
LOWERINGS: dict[str, Lowering] = {
    name: replace(elementwise.LOWERINGS[name], emit=emit)
    for name, emit in (("aten.add.Tensor", _sum), ("aten.sub.Tensor", _sum), ("aten.mul.Scalar", _scaled))
}
