"""What a layer with a constant weight makes of a constant factor, and who else reads that weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regraft.ir import Builder, Declined, DType, Op, Value, dims
from regraft.rewrites.support import is_along, is_computed_at_compile_time, is_known

Factor = Value | float


@dataclass(frozen=True)
class Layer:
    """An op whose result is linear in its weight.

    Fields:
        weight, input: names of its operands.
        channel: the axis of the result that holds its outputs, counted from the end.
        out: the axis of the weight that holds them.
    """

    weight: str
    input: str
    channel: int
    out: int


LAYERS: Mapping[str, Layer] = {
    "aten.linear": Layer("weight", "input", -1, 0),
    "aten.embedding": Layer("weight", "indices", -1, 1),
    **{f"aten.conv{n}d": Layer("weight", "input", -n - 1, 0) for n in (1, 2, 3)},
}

#: Elements of a table that may be stored again: look-ups read the model's own in place, and little of it.
_LARGEST_TABLE = 1 << 22
#: Factors beyond this might overflow the weight where they did not overflow the result.
_LARGEST_FACTOR = 2.0**32


def layer_of(op: Op) -> Layer | None:
    """What ``op`` is as a layer; None where it is none, or a use of one that the op table does not cover."""
    return None if op.definition.opaque else LAYERS.get(op.name)


def why_not_scaled(op: Op, factor: Factor) -> Declined | None:
    """Why the result of ``op`` times ``factor`` is not the same layer with another weight, if it is not."""
    layer = layer_of(op)
    if layer is None:
        return Declined(f"the factor's neighbour is {op.name}", op.result)
    weight = op.operand(layer.weight)
    if weight.tensor.rank < 2:
        return Declined("the weight is a vector", weight)
    if op.name == "aten.embedding" and dims.le(weight.tensor.numel, _LARGEST_TABLE) is not True:
        return Declined("the table is large, and would be stored a second time", weight)
    if isinstance(factor, Value):
        if not is_known(factor):
            return Declined("the factor is not constant", factor)
        if not is_along(factor, op.result, layer.channel):
            return Declined("the factor is not one number an output", factor)
    elif not is_moderate(factor):
        return Declined(f"the factor {factor} might overflow or vanish in the weight", op.result)
    return why_not_changed(weight)


def why_not_changed(weight: Value) -> Declined | None:
    """Why ``weight`` should not be replaced by one computed from it, if it should not."""
    if not is_computed_at_compile_time(weight):
        return Declined("the weight is not constant", weight)
    if weight.tensor.dtype not in (DType.F32, DType.F64):
        return Declined("the new weight would be rounded to 16 bits once more", weight)
    if is_shared(weight):
        return Declined("the weight is shared: a second one would take its memory again", weight)
    return None


def is_moderate(number: Any) -> bool:
    """Whether ``number`` is a factor that a weight can take in without overflow."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        return False
    return 1 / _LARGEST_FACTOR <= abs(number) <= _LARGEST_FACTOR


def is_shared(weight: Value) -> bool:
    """Whether something else needs the constant ``weight``, or a constant that it is computed from.

    What reads it at compile time alone and makes less of it, such as what a bias is computed from, does not.
    """
    pending = [weight]
    while pending:
        value = pending.pop()
        if sum(not _is_reduced(user, value) for user in value.users) > 1:
            return True
        if value.op is not None:
            pending += [v for v in value.op.operands if v.tensor.rank > 1]
    return False


def _is_reduced(user: Op, weight: Value) -> bool:
    """Whether ``user`` makes a smaller constant of ``weight``."""
    results = user.results
    smaller = all(dims.le(r.tensor.numel + 1, weight.tensor.numel) is True for r in results)
    return smaller and bool(results) and all(map(is_computed_at_compile_time, results))


def scaled(op: Builder, layer_op: Op, factor: Factor) -> Value:
    """The layer with its weight, and its bias, times ``factor``."""
    layer = LAYERS[layer_op.name]
    arguments = layer_op.arguments()
    weight: Value = arguments[layer.weight]
    arguments[layer.weight] = times(op, weight, along(op, factor, weight.tensor.rank, layer.out))
    bias: Value | None = arguments.get("bias")
    if bias is not None:
        arguments["bias"] = times(op, bias, along(op, factor, 1, 0))
    return op.create(layer_op.name, (), arguments).result


def along(op: Builder, factor: Factor, rank: int, axis: int) -> Factor:
    """``factor`` in a shape that multiplies ``axis`` of a tensor of ``rank``."""
    if not isinstance(factor, Value):
        return factor
    count = factor.tensor.numel
    return op.aten.view(factor, tuple(count if i == axis else 1 for i in range(rank)))


def times(op: Builder, value: Value, factor: Factor) -> Value:
    if isinstance(factor, Value):
        return op.aten.mul.Tensor(value, factor)
    return op.aten.mul.Scalar(value, factor)
