"""Recurrent layers over sequences of any length.

Asked for the type of a recurrent layer's result, torch's tracers run its loop over the sequence, which
fixes the length. What the type is can be said without.
"""

# The tables of an op's Python kernels and decompositions have no public names.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._decomp import decomposition_table

_LAYERS: tuple[Any, ...] = (
    torch.ops.aten.lstm.input,
    torch.ops.aten.gru.input,
    torch.ops.aten.rnn_tanh.input,
    torch.ops.aten.rnn_relu.input,
)
#: Where torch has its own Python kernels of these layers.
_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


@contextmanager
def any_length() -> Generator[None]:
    """In the block, tracing a recurrent layer leaves the length of its sequence open.

    Only tracers look at the tables that it changes; these belong to the process: one block at a time.
    """
    kept = [(dict(layer.py_kernels), decomposition_table.get(layer)) for layer in _LAYERS]
    for layer in _LAYERS:
        set_kernels(layer, {**layer.py_kernels, **dict.fromkeys(_KEYS, _types)}, _types)
    try:
        yield
    finally:
        for layer, (kernels, decomposition) in zip(_LAYERS, kept, strict=True):
            set_kernels(layer, kernels, decomposition)


def set_kernels(op: Any, kernels: dict[Any, Any], decomposition: Any) -> None:
    """Give an op these Python kernels by their keys, and this decomposition, in torch's tables."""
    op.py_kernels.clear()
    op.py_kernels.update(kernels)
    op._dispatch_cache.clear()
    if decomposition is None:
        decomposition_table.pop(op, None)
    else:
        decomposition_table[op] = decomposition


def _types(
    sequence: Tensor,
    states: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Tensors like a layer's results: ``[T, N, D*H]`` (``[N, T, D*H]``), and the last states."""
    own = [states] if isinstance(states, Tensor) else list(states)
    first, second, _ = sequence.shape
    width = own[0].shape[2] * (2 if bidirectional else 1)
    if batch_first:
        # As torch lays it out: time is the outermost.
        output = sequence.new_empty((second, first, width)).transpose(0, 1)
    else:
        output = sequence.new_empty((first, second, width))
    return output, *(state.new_empty(state.shape) for state in own)
