"""The built-in op table: one module a family, one record an op."""

from __future__ import annotations

from regraft.ir.opdef import OpTable
from regraft.ir.ops import (
    alternatives,
    bags,
    control,
    conv,
    create,
    elementwise,
    functions,
    indexing,
    matmul,
    nn,
    order,
    pool,
    recurrent,
    reduce,
    resample,
    scatter,
    selection,
    structured,
    views,
    write,
)
from regraft.ir.ops.alternatives import chosen_form, settled_form
from regraft.ir.ops.bags import BAG_MODES
from regraft.ir.ops.rules import PLACEMENT, define
from regraft.ir.ops.structured import ACTIVATIONS

OPS = OpTable(
    [
        *elementwise.OPS,
        *functions.OPS,
        *reduce.OPS,
        *order.OPS,
        *views.OPS,
        *matmul.OPS,
        *conv.OPS,
        *pool.OPS,
        *resample.OPS,
        *recurrent.OPS,
        *nn.OPS,
        *indexing.OPS,
        *scatter.OPS,
        *selection.OPS,
        *bags.OPS,
        *create.OPS,
        *control.OPS,
        *alternatives.OPS,
        *structured.OPS,
        *write.OPS,
    ]
)

__all__ = ["ACTIVATIONS", "BAG_MODES", "OPS", "PLACEMENT", "chosen_form", "define", "settled_form"]
