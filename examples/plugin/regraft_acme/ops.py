"""``acme.soft_cap``: logits kept within a bound, ``cap * tanh(x / cap)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regraft import OnnxOp, op_from_torch
from regraft.ir import CallSite, TensorType


@torch.library.custom_op("acme::soft_cap", mutates_args=())
def soft_cap(x: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)


@soft_cap.register_fake
def _(x: Tensor, cap: float) -> Tensor:
    return torch.empty_like(x)


def infer(site: CallSite) -> TensorType:
    """Needed because a rewrite writes the op: there is no capture then to see its type."""
    return site.type("x")


def decompose(op: Any, soft_cap: Any) -> Sequence[Any]:
    """For back ends that do not know the op."""
    cap = soft_cap.attr("cap")
    scaled = op.aten.div.Scalar(soft_cap.operand("x"), cap)
    return (op.aten.mul.Scalar(op.aten.tanh(scaled), cap),)


SOFT_CAP = op_from_torch(
    soft_cap, infer=infer, decompose=decompose, onnx=OnnxOp("com.acme", "SoftCap", version=2)
)
