"""Functions for the tests of the ONNX Runtime back end, and a store for their constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.ir import (
    OPS,
    Builder,
    Constant,
    DType,
    Function,
    Leaf,
    Recipe,
    Region,
    TensorType,
    Value,
    dims,
    input_symbols,
)
from regraft.runtime import DTYPE_NAMES

BOOL, I64, BF16, F32, F64 = DType.BOOL, DType.I64, DType.BF16, DType.F32, DType.F64
B = dims.symbol("b", 1)
S = dims.symbol("s", 1)
#: A size that may be 0.
E = dims.symbol("e", 0)


class Store:
    """Constants that are leaves, or transposes of one."""

    def tensor(self, constant: Constant) -> Tensor:
        if isinstance(constant, Leaf):
            return constant.storage
        assert isinstance(constant, Recipe)
        (leaf,) = constant.constants()
        return self.tensor(leaf).t().contiguous()

    def name(self, constant: Constant) -> str:
        assert isinstance(constant, (Leaf, Recipe))
        return constant.name


def leaf(name: str, tensor: Tensor) -> Leaf:
    return Leaf(name, TensorType(DType(DTYPE_NAMES[tensor.dtype]), tuple(tensor.shape)), tensor)


def transposed(constant: Leaf) -> Recipe:
    """The recipe ``permute(constant)``."""
    body = Region()
    b = Builder(OPS, body)
    b.create("cf.yield", ([b.aten.permute(b.constant(constant), (1, 0))],))
    return Recipe(body, f"{constant.name}.t")


def tensor(*shape: Any, dtype: DType = F32) -> TensorType:
    return TensorType(dtype, shape)


def region(types: Sequence[TensorType], build: Callable[..., Any], symbols: Sequence[Any] = ()) -> Region:
    """A region whose results are what ``build(op, *arguments)`` returns."""
    made = Region(types, symbols)
    b = Builder(OPS, made)
    built = build(b, *made.args)
    b.create("cf.yield", ([built] if isinstance(built, Value) else list(built),))
    return made


def function(types: Sequence[TensorType], build: Callable[..., Any]) -> Function:
    made = region(types, build)
    return Function("forward", made, input_symbols(made.args))


def llama_attention(batch: Any, length: Any, heads: int = 4, groups: int = 2, width: int = 8) -> Function:
    """Grouped-head causal attention with rotary embeddings, from projections to projection."""
    size = heads * width
    generator = torch.Generator().manual_seed(0)

    def weight(name: str, rows: int) -> Leaf:
        return leaf(name, torch.randn(rows, size, generator=generator) * size**-0.5)

    weights = [weight("q", size), weight("k", groups * width), weight("v", groups * width), weight("o", size)]

    def build(op: Any, x: Value, angles: Value) -> Value:
        table = op.aten.cat((angles, angles), 2)
        cos, sin = (op.aten.view(t, (1, 1, length, width)) for t in (op.aten.cos(table), op.aten.sin(table)))

        def project(constant: Leaf, count: int) -> Value:
            flat = op.aten.linear(x, op.constant(constant), None)
            return op.aten.permute(op.aten.view(flat, (batch, length, count, width)), (0, 2, 1, 3))

        q, k, v = (project(w, n) for w, n in zip(weights, (heads, groups, groups), strict=False))
        q, k = op.rg.rotary(q, cos, sin), op.rg.rotary(k, cos, sin)
        y = op.aten.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        y = op.aten.view(op.aten.permute(y, (0, 2, 1, 3)), (batch, length, size))
        return op.aten.add.Tensor(x, op.aten.linear(y, op.constant(weights[3]), None))

    return function([tensor(batch, length, size), tensor(1, length, width // 2)], build)
