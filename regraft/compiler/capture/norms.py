"""Batch norms that take the statistics of their batch, in an otherwise finished model.

torch keeps such a norm whole, and says nothing of the running statistics that it writes to. Written out, its
writes are seen: also where a tensor decides whether it runs.
"""

# torch's function modes are untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class BatchStatistics(TorchFunctionMode):
    """In the block, batch norms by the statistics of a batch are written out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is F.batch_norm and _arguments(*args, **given)["training"]:
            return _normalised(**_arguments(*args, **given))
        return func(*args, **given)


def _arguments(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> dict[str, Any]:
    return dict(locals())


def _normalised(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """``F.batch_norm(..., training=True)`` of ``[N, C, *]``.

    Raises:
        ValueError: there is one value a channel, as torch has it.
    """
    if input.dim() < 2:
        raise ValueError(f"batch_norm needs [N, C, ...], got a tensor of {input.dim()} dims")
    axes = [axis for axis in range(input.dim()) if axis != 1]
    count = input.numel() // input.shape[1]
    if count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {input.shape}"
        )
    wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    mean = wide.mean(axes, keepdim=True)
    squares = (wide - mean).square()
    var = squares.mean(axes, keepdim=True)
    found = (wide - mean) * torch.rsqrt(var + eps)
    shape = (1, -1, *[1] * (input.dim() - 2))
    if weight is not None:
        found = found * weight.view(shape)
    if bias is not None:
        found = found + bias.view(shape)
    if running_mean is not None:
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean.flatten())
    if (
        running_var is not None
    ):  # a quotient of tensors: that of two open sizes is no number that a graph holds
        unbiased = squares.sum(axes) / (count - 1)
        running_var.copy_((1 - momentum) * running_var + momentum * unbiased)
    return found.to(input.dtype)
