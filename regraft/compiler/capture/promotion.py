"""Casts that torch does inside an op, made visible. The IR's ops take operands of one dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from regraft.ir import Builder, DType, OpDef, TensorType, Trait, Value
from regraft.runtime import DTYPE_NAMES, TORCH_DTYPES

#: Operands that select and are not computed with.
_SELECTORS = frozenset({"condition", "mask", "index", "indices"})
#: Ops that bring a list of tensors to one dtype.
_JOINS = frozenset({"aten.cat", "aten.stack"})


def promoted(
    definition: OpDef, bound: Mapping[str, Any], results: Sequence[TensorType], builder: Builder
) -> dict[str, Any]:
    """``bound`` with a cast on each operand of an elementwise op that torch would convert."""
    found = dict(bound)
    if "dtype" in {a.name for a in definition.attrs} and found.get("dtype") is None and not definition.opaque:
        found = _explicit_dtype(definition, found, results)
    if definition.name in _JOINS:
        target = results[0].dtype
        found["tensors"] = tuple(_cast(v, target, builder) for v in found["tensors"])
    if Trait.ELEMENTWISE not in definition.traits:
        return found
    tensors = {
        n: v
        for n, v in found.items()
        if isinstance(v, Value) and n not in _SELECTORS and isinstance(v.type, TensorType)
    }
    if not tensors:
        return found
    target = _common_dtype(tensors, found, results)
    for name, value in tensors.items():
        found[name] = _cast(value, target, builder)
    return found


def _cast(value: Value, dtype: DType, builder: Builder) -> Value:
    if value.tensor.dtype == dtype:
        return value
    return builder.create("aten._to_copy", (value,), {"dtype": dtype}).result


def _explicit_dtype(
    definition: OpDef, bound: dict[str, Any], results: Sequence[TensorType]
) -> dict[str, Any]:
    """An op that creates a tensor says of which dtype, instead of asking torch's default at run time."""
    if any(isinstance(v, Value) for v in bound.values()):
        return bound
    return bound | {"dtype": results[0].dtype}


def _common_dtype(
    tensors: Mapping[str, Value], bound: Mapping[str, Any], results: Sequence[TensorType]
) -> DType:
    metas = [_meta(v.tensor) for v in tensors.values()]
    scalars = [
        v
        for n, v in bound.items()
        if isinstance(v, (bool, int, float, complex)) and n in ("other", "exponent")
    ]
    common = DType(DTYPE_NAMES[_join(metas, scalars)])
    result = results[0].dtype
    # sqrt, div and their like compute integers in floating point.
    return result if result.is_float and not common.is_float and common.kind != "complex" else common


def _join(metas: Sequence[torch.Tensor], scalars: Sequence[Any]) -> torch.dtype:
    """The result type of several operands, some of which are 0-d and so weigh less."""
    total: Any = metas[0]
    for other in [*metas[1:], *scalars]:
        dtype = torch.result_type(total, other)
        rank = max(total.dim(), other.dim() if isinstance(other, torch.Tensor) else 0)
        total = torch.empty((1,) * rank, dtype=dtype, device="meta")
    return total.dtype


def _meta(type: TensorType) -> torch.Tensor:
    return torch.empty((1,) * type.rank, dtype=TORCH_DTYPES[type.dtype.value], device="meta")
