"""How feature maps enter the arm of a condition, where convolutions have a layout in blocks of channels.

ONNX Runtime's transformer (``optimiser.py``) looks at one graph at a time: a map from around it has the plain
layout, and what joins it with another (the sum of a residual block) or scales it keeps that layout, so that
the convolutions of the whole arm change the layout to and fro. A pool of one pixel has the blocked layout and
copies the map into it: sums and norms behind it stay blocked, and become parts of convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from regraft.backends.ort.emit import Emitter
from regraft.ir import DType, Op, Region, TensorType, Value

#: Channels of a block: 16 or 8, by the CPU.
_BLOCK = 16
#: Convolutions in an arm from which the copy pays: more than one residual block has.
_FROM = 3

_JOINS = frozenset({"aten.add.Tensor", "aten.batch_norm"})


def entered(e: Emitter, arm: Region, operands: Sequence[ir.Value]) -> list[ir.Value]:
    """What stands for the arguments of ``arm``, which is emitted into the current scope, for ``operands``."""
    convolutions = sum(op.name == "aten.conv2d" for op in arm.ops)
    if not e.target.shared or convolutions < _FROM:
        return list(operands)
    return [
        e.op("AveragePool", value, kernel_shape=[1, 1]) if _is_joined(argument, arm) else value
        for argument, value in zip(arm.args, operands, strict=True)
    ]


def _is_joined(argument: Value, arm: Region) -> bool:
    """Whether ``argument`` is a map that a sum or a norm of the arm reads."""
    type = argument.type
    if not isinstance(type, TensorType) or type.dtype != DType.F32 or type.rank != 4:
        return False
    channels = type.shape[1]
    if not isinstance(channels, int) or channels % _BLOCK:
        return False
    return any(_joins(user, type) and user.parent is arm for user in argument.users)


def _joins(op: Op, type: TensorType) -> bool:
    """Whether ``op`` keeps maps of ``type`` in blocks, if what it reads is."""
    return op.name in _JOINS and all(
        operand.tensor.shape == type.shape for operand in op.operands if operand.tensor.rank == 4
    )
