"""Random ops and memory: which element gets which number depends on how the operand lies in memory.

torch fills a tensor in the order of its memory, and some ops draw otherwise when it is not row-major. The IR
has no strides, so such an op carries the order of its operands' axes, and torch is given tensors that lie so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from regraft.errors import CaptureError

Order = tuple[int, ...] | None


def memory_order(name: str, operands: Sequence[torch.Tensor]) -> tuple[Order, ...] | None:
    """For each operand of the random op ``name`` its axes, from the outermost in memory to the innermost.

    None stands for a row-major operand, and for all of them when they all are.

    Raises:
        CaptureError: an operand is not dense, so that no order of axes says how it lies.
    """
    orders = tuple(_order(name, operand) for operand in operands)
    return orders if any(orders) else None


def _order(name: str, operand: torch.Tensor) -> Order:
    if operand.is_contiguous():
        return None
    order = tuple(sorted(range(operand.dim()), key=operand.stride, reverse=True))
    if not operand.permute(order).is_contiguous():
        raise CaptureError(
            f"{name} draws over a part of a tensor or an expanded one, and the layout decides which element "
            "gets which number",
            hint="call .contiguous() on the tensor",
        )
    return order
