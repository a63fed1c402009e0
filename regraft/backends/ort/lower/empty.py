"""Kernels that refuse to run over no elements, or go wrong there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from regraft.backends.ort.dtypes import carrier
from regraft.backends.ort.emit import Emitter
from regraft.ir import Dim, DType, TensorType, dims


def is_positive(size: Dim) -> bool:
    """Whether ``size`` is proved to be 1 or more."""
    low = dims.bounds(size)[0]
    return low is not None and low > 0


def unless_empty(
    e: Emitter,
    count: Dim,
    made: Callable[[], Sequence[ir.Value]],
    otherwise: Callable[[], Sequence[ir.Value]],
) -> Sequence[ir.Value]:
    """``made()`` where ``count`` is not 0, else ``otherwise()``, as many values of the same types.

    Where a kernel fails, so does the call, before anybody reads the model's own check of the size. What
    ``made`` and ``otherwise`` emit is run only where it is wanted; sizes they take from outside.
    """
    if is_positive(count):
        return made()
    key = ("not empty", count)
    some = e.memoised(key, lambda: e.op("Greater", e.size_scalar(count), e.scalar(0, DType.I64)))
    with e.nested():
        then = e.graph("some", made())
    with e.nested():
        other = e.graph("none", otherwise())
    return e.ops("If", len(then.outputs), some, then_branch=then, else_branch=other)


def empty(e: Emitter, type: TensorType) -> ir.Value:
    """A tensor of ``type``, which has no elements where this is run."""
    return e.expand(e.scalar(0, carrier(type.dtype)), (), type.shape)
