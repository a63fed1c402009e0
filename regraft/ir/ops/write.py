"""What in-place ops become: new tensors with the values that were written. All are spellings."""

from __future__ import annotations

from typing import Any

from regraft.ir.opdef import CallSite
from regraft.ir.ops.elementwise import cast, scalar_tensor
from regraft.ir.ops.rules import one, refuse, require, require_scalar_fits, same_type, spelling
from regraft.ir.types import TensorType


def _copy_type(site: CallSite) -> TensorType:
    target, source = site.type("self"), site.type("src")
    if source.rank > target.rank:
        refuse(site, f"a tensor of rank {source.rank} does not fit into one of rank {target.rank}")
    require(source.device == target.device, site, f"the tensors are on {source.device} and {target.device}")
    return target


def _copied(b: Any, op: Any) -> Any:
    return _filled(b, op, cast(b, op.operand("src"), op.result.tensor.dtype))


def _fill_scalar_type(site: CallSite) -> TensorType:
    require_scalar_fits(site, site.type("self").dtype, site.attr("value"))
    return site.type("self")


def _fill_tensor_type(site: CallSite) -> TensorType:
    if site.type("value").rank:
        refuse(site, f"the value has rank {site.type('value').rank}, expected a tensor without dimensions")
    return site.type("self")


def _filled(b: Any, op: Any, value: Any) -> Any:
    return b.aten.expand(value, op.result.tensor.shape)


OPS = (
    spelling("aten.copy(Tensor self, Tensor src)", _copy_type, one(_copied)),
    spelling(
        "aten.fill.Scalar(Tensor self, Scalar value)",
        _fill_scalar_type,
        one(lambda b, op: _filled(b, op, scalar_tensor(b, op.attr("value"), op.result.tensor.dtype))),
    ),
    spelling(
        "aten.fill.Tensor(Tensor self, Tensor value)",
        _fill_tensor_type,
        one(lambda b, op: _filled(b, op, cast(b, op.operand("value"), op.result.tensor.dtype))),
    ),
    spelling(
        "aten.zero(Tensor self)",
        same_type(),
        one(lambda b, op: _filled(b, op, scalar_tensor(b, 0, op.result.tensor.dtype))),
    ),
)
