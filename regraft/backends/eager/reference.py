"""What the ``rg.*`` ops mean, over torch tensors, and ``aten`` ops that mean more here than in torch.

Arguments come in the order of the op's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from regraft.errors import RegraftError


def dim_value(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64)


def check(pred: Tensor, message: str) -> None:
    if not bool(pred):
        raise RegraftError(message or "a check of the model failed")


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x[..., T, D]`` turned by the tables: ``x * cos + rotate_half(x) * sin``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def ffn(
    x: Tensor,
    up_weight: Tensor,
    down_weight: Tensor,
    gate_weight: Tensor | None,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    down_bias: Tensor | None,
    gate_input: Tensor | None,
    activation: str,
    rows_at_once: int = 0,
) -> Tensor:
    """``x[..., E] -> [..., O]`` through ``F`` hidden features, gated when there is a gate's weight."""
    if gate_input is None:
        gate_input = x
    if rows_at_once:
        weights = (up_weight, down_weight, gate_weight, up_bias, gate_bias, down_bias)
        parts = [v.reshape(-1, v.shape[-1]).split(rows_at_once) for v in (x, gate_input)]
        done = torch.cat([ffn(part, *weights, gate, activation) for part, gate in zip(*parts, strict=True)])
        return done.reshape(*x.shape[:-1], down_weight.shape[0])
    activate = ACTIVATIONS[activation]
    up = functional.linear(x, up_weight, up_bias)
    if gate_weight is None:
        inner = activate(up)
    else:
        inner = activate(functional.linear(gate_input, gate_weight, gate_bias)) * up
    return functional.linear(inner, down_weight, down_bias)


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scales: Tensor | None,
    mode: str,
    include_last_offset: bool,
    padding_idx: int,
) -> Tensor:
    """Groups of rows of ``weight``, each reduced to one."""
    return functional.embedding_bag(
        indices,
        weight,
        offsets,
        mode=mode,
        per_sample_weights=scales,
        include_last_offset=include_last_offset,
        padding_idx=None if padding_idx == -1 else padding_idx,
    )


#: Cell -> torch's layer, and the place in its weights of each of its gates in ONNX's order.
_LAYERS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "lstm": (torch.lstm, (0, 3, 1, 2)),
    "gru": (torch.gru, (1, 0, 2)),
    "rnn_tanh": (torch.rnn_tanh, (0,)),
    "rnn_relu": (torch.rnn_relu, (0,)),
}


def recurrent(
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None,
    hidden: Tensor,
    memory: Tensor | None,
    cell: str,
) -> tuple[Tensor, ...]:
    """One layer: ``x[T, N, I] -> [T, D, N, H]`` and the last states."""
    layer, order = _LAYERS[cell]
    directions, rows, width = recurrence.shape
    if not x.shape[0]:  # torch refuses to run no step
        last = [state.clone() for state in (hidden, memory) if state is not None]
        return x.new_empty(0, directions, x.shape[1], width), *last

    def restored(gates: Tensor) -> Tensor:
        blocks = gates.chunk(len(order))
        return torch.cat([blocks[order.index(i)] for i in range(len(order))])

    params: list[Tensor] = []
    for d in range(directions):
        params += [restored(weight[d]), restored(recurrence[d])]
        params += [] if bias is None else [restored(bias[d, :rows]), restored(bias[d, rows:])]
    states = hidden if memory is None else [hidden, memory]
    y, *last = layer(x, states, params, bias is not None, 1, 0.0, False, directions == 2, False)
    return y.unflatten(2, (directions, width)).transpose(1, 2), *last


# The IR has no strides: a view is any change of shape, whatever the layout of its operand.
def view(value: Tensor, size: Sequence[int]) -> Tensor:
    return value.reshape(size)


REFERENCE: dict[str, Callable[..., Any]] = {
    "rg.dim_value": dim_value,
    "rg.check": check,
    "rg.rotary": rotary,
    "rg.ffn": ffn,
    "rg.recurrent": recurrent,
    "rg.embedding_bag": embedding_bag,
    "aten.view": view,
    "aten._unsafe_view": view,
    "aten.view_as": Tensor.reshape_as,
    # Its schema asks for the device, which the IR keeps in types.
    "aten.to.device": Tensor.to,
}
