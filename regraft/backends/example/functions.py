"""What ops mean in NumPy. Arguments come in the order of the op's parameters.

Nothing here casts its result: the interpreter does, to the type that the IR gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any  # NumPy's functions return arrays, or scalars where an array would have rank 0

#: Names of element types -> NumPy's. NumPy has no bf16, and sums f16 in f16.
DTYPES: dict[str, np.dtype[Any]] = {
    "bool": np.dtype(np.bool_),
    "u8": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}


def linear(x: Array, weight: Array, bias: Array | None) -> Array:
    y = x @ weight.T
    return y if bias is None else y + bias


def layer_norm(
    x: Array, shape: Sequence[int], weight: Array | None, bias: Array | None, eps: float, _: bool
) -> Array:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    centred = x - x.mean(axis=axes, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def softmax(x: Array, axis: int, dtype: Any) -> Array:
    x = x if dtype is None else x.astype(dtype)
    powers = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=axis, keepdims=True)


def gelu_tanh(x: Array, _: str) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + 0.044715 * x**3)))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def expand(x: Array, size: Sequence[int], _: bool) -> Array:
    kept = (1,) * (len(size) - x.ndim) + x.shape
    return np.broadcast_to(x, [old if new == -1 else new for new, old in zip(size, kept, strict=True)])


def slice_(x: Array, axis: int, start: int | None, end: int | None, step: int) -> Array:
    axis %= x.ndim
    return x[(slice(None),) * axis + (slice(start, end, step),)]


def concatenate(tensors: Sequence[Array], axis: int) -> Array:
    # torch's schema lets an empty vector stand among tensors of any rank.
    return np.concatenate([t for t in tensors if t.shape != (0,)] or tensors, axis=axis)


def reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduce(x: Array, axes: Sequence[int] | None, keepdims: bool, dtype: Any) -> Array:
        return function(x, axis=tuple(axes) if axes else None, keepdims=keepdims, dtype=dtype)

    return reduce


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "aten.linear": linear,
    "aten.matmul": np.matmul,
    "aten.add.Tensor": lambda a, b, alpha: a + alpha * b,
    "aten.sub.Tensor": lambda a, b, alpha: a - alpha * b,
    "aten.mul.Tensor": np.multiply,
    "aten.div.Tensor": np.divide,
    "aten.maximum": np.maximum,
    "aten.add.Scalar": lambda a, b, alpha: a + alpha * b,
    "aten.mul.Scalar": np.multiply,
    "aten.div.Scalar": np.divide,
    "aten.eq.Tensor": np.equal,
    "aten.lt.Scalar": np.less,
    "aten.neg": np.negative,
    "aten.abs": np.abs,
    "aten.exp": np.exp,
    "aten.sqrt": np.sqrt,
    "aten.tanh": np.tanh,
    "aten.relu": lambda x: np.maximum(x, 0),
    "aten.sigmoid": sigmoid,
    "aten.silu": lambda x: x * sigmoid(x),
    "aten.gelu": gelu_tanh,
    "aten.softmax.int": softmax,
    "aten.layer_norm": layer_norm,
    "aten.sum.dim_IntList": reduction(np.sum),
    "aten.mean.dim": reduction(np.mean),
    "aten.where.self": np.where,
    "aten._to_copy": lambda x, _: x,  # the cast to the result's type is all there is to do
    "aten.view": np.reshape,
    "aten.permute": np.transpose,
    "aten.expand": expand,
    "aten.slice.Tensor": slice_,
    "aten.cat": concatenate,
    "aten.embedding": lambda weight, indices, *_: weight[indices],
}
