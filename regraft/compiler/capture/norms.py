"""Norms that take the statistics of what they are given, in an otherwise finished model.

torch keeps such a norm whole, and says nothing of the running statistics that it writes to. Written out, its
writes are seen: also where a tensor decides whether it runs. What eager asks of its sizes is checked at each
call where they are open: torch's tracers take it for granted that an open size is not 1.
"""

# torch's function modes are untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class BatchStatistics(TorchFunctionMode):
    """In the block, norms by the statistics of a batch, or of its elements, are written out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is F.batch_norm or func is torch.batch_norm:
            order = _batch_norm if func is F.batch_norm else _torch_batch_norm
            norm = order(*args, **given)
            if norm.pop("training"):
                return _by_batch(**norm)
        elif func is F.instance_norm or func is torch.instance_norm:
            order = _instance_norm if func is F.instance_norm else _torch_instance_norm
            norm = order(*args, **given)
            if norm.pop("use_input_stats"):
                return _by_element(**norm)
        return func(*args, **given)


def _batch_norm(
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


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> dict[str, Any]:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> dict[str, Any]:
    return dict(locals())


def _torch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> dict[str, Any]:
    return _instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _by_batch(input: Tensor, **norm: Any) -> Tensor:
    """``F.batch_norm(..., training=True)`` of ``[N, C, *]``.

    Raises:
        ValueError: there is one value a channel, as torch has it.
    """
    if input.dim() < 2:
        raise ValueError(f"batch_norm needs [N, C, ...], got a tensor of {input.dim()} dims")
    axes = [axis for axis in range(input.dim()) if axis != 1]
    _check_differs(input, _count(input, axes), 1, "Expected more than 1 value per channel when training")
    return _normalised(input, axes, **norm)


def _by_element(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, **norm: Any
) -> Tensor:
    """``F.instance_norm(..., use_input_stats=True)`` of ``[N, C, *]``.

    Raises:
        ValueError: there is one value a channel of an element, as torch has it, or there are running
            statistics and no elements, of which torch makes nan or an error.
    """
    if input.dim() < 2:
        raise ValueError(f"instance_norm needs [N, C, ...], got a tensor of {input.dim()} dims")
    axes = list(range(2, input.dim()))
    _check_differs(input, _count(input, axes), 1, "Expected more than 1 spatial element when training")
    if running_mean is None and running_var is None:
        return F.instance_norm(input, **norm)
    message = "Expected at least 1 element in the batch of an instance norm with running statistics"
    _check_differs(input, input.shape[0], 0, message)
    return _normalised(input, axes, running_mean, running_var, **norm)


def _count(input: Tensor, axes: list[int]) -> int | torch.SymInt:
    """How many values a mean over ``axes`` is of."""
    return math.prod(input.shape[axis] for axis in axes)


def _check_differs(input: Tensor, size: int | torch.SymInt, other: int, message: str) -> None:
    """Let the trace fail, or a call where ``size`` is open, if ``size`` is ``other``."""
    if not isinstance(size, int):
        torch.ops.aten._assert_async.msg(_as_tensor(size, input) != other, f"ValueError: {message}")
    elif size == other:
        raise ValueError(f"{message}, got input size {input.shape}")


def _as_tensor(size: Any, beside: Tensor) -> Tensor:
    """An open size as a tensor without dims."""
    return torch.full((), size, dtype=torch.int64, device=beside.device)


def _normalised(
    input: Tensor,
    axes: list[int],
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """``input[N, C, *]`` by its mean and variance over ``axes``, which the running statistics follow."""
    count = _count(input, axes)
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
        _follow(running_mean, wide.mean(axes), momentum, count)
    if running_var is not None:
        # A quotient of tensors: that of two open sizes is no number that a graph holds.
        _follow(running_var, squares.sum(axes) / (count - 1), momentum, count)
    return found.to(input.dtype)


def _follow(running: Tensor, now: Tensor, momentum: float, count: int | torch.SymInt) -> None:
    """Move ``running[C]`` towards ``now[C]`` or the mean of ``now[N, C]``, statistics of ``count`` values.

    Statistics of no values leave it as it is.
    """
    if isinstance(count, int) and count == 0:
        return
    after = (1 - momentum) * running + momentum * (now if now.dim() == 1 else now.mean(0))
    if not isinstance(count, int):
        after = torch.where(_as_tensor(count, now) > 0, after, running)
    running.copy_(after)
