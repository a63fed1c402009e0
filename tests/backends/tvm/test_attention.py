"""Attention as one kernel, and taken apart: the values are eager's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import regraft
from regraft.backends.tvm import attention
from regraft.conformance import Case
from regraft.testing import assert_close

#: rows, keys, depth, width of values
SIZES = (
    (9, 1, 3, 1),
    (8, 16, 16, 16),
    (21, 33, 20, 7),
    (130, 64, 32, 32),
    (257, 70, 64, 80),
    (12, 1000, 8, 8),
)


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, *mask, **self.options)


class Each(nn.Module):
    """One attention for each triple of arguments, so that all are built at once."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = Attention(**options)

    def forward(self, given: list[tuple[Tensor, ...]]) -> list[Tensor]:
        return [self.attention(*each) for each in given]


def drawn(rows: int, keys: int, depth: int, width: int, heads: int = 2) -> tuple[Tensor, ...]:
    return (
        torch.randn(1, heads, rows, depth),
        torch.randn(1, heads, keys, depth),
        torch.randn(1, heads, keys, width),
    )


def double(given: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, given)


def check(tvm: Any, model: nn.Module, given: list[tuple[Tensor, ...]]) -> None:
    compiled = regraft.compile(model.eval(), (given,), backends=(tvm,), cache=False)
    for found, wanted in zip(compiled(given), model(double(given)), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_all_sizes(tvm: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    check(tvm, Each(**options), [drawn(*sizes) for sizes in SIZES])


def test_masks(tvm: Any) -> None:
    """Added and chosen ones, of all ranks, and rows that see nothing or of which all scores are infinite."""
    torch.manual_seed(0)
    rows, keys = 19, 37
    chosen = torch.rand(1, 2, rows, keys) > 0.5
    chosen[:, 1, 3] = False
    chosen[:, 0, :, 5:] = False
    added = torch.randn(rows, keys)
    added[4], added[:, 7] = -torch.inf, -torch.inf
    masks = (
        chosen,
        chosen[:, :1],
        chosen[0, 0],
        chosen[..., :1],
        chosen[:, :, :1],
        added,
        added[:1],
        added[None, None],
    )
    check(tvm, Each(), [(*drawn(rows, keys, 16, 24), mask) for mask in masks])


def test_shared_keys(tvm: Any) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 6, 11, 16)
    given = [(q, torch.randn(2, heads, 9, 16), torch.randn(2, heads, 9, 8)) for heads in (1, 2, 3, 6)]
    masked = [(*each, torch.rand(2, 6, 11, 9) > 0.3) for each in given]
    check(tvm, Each(enable_gqa=True), given + masked)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types(tvm: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    given = [tuple(x.to(dtype) for x in drawn(*sizes)) for sizes in SIZES[1:4]]
    compiled = regraft.compile(Each().eval(), (given,), backends=(tvm,), cache=False)
    wanted = Each()(double(given))
    for found, reference, eager in zip(compiled(given), wanted, Each()(given), strict=True):
        assert_close(found, reference, eager)


def test_values_that_are_not_finite(tvm: Any) -> None:
    torch.manual_seed(0)
    q, k, v = drawn(10, 20, 8, 8)
    nan, infinite = q.clone(), k.clone()
    nan[0, 0, 3, 2], infinite[0, 1, 4, 1] = torch.nan, torch.inf
    huge = v.clone()
    huge[0, 0, 2, 2] = torch.inf
    check(tvm, Each(), [(nan, k, v), (q, infinite, v), (q, k, huge)])


def test_any_rows_and_heads(tvm: Any) -> None:
    """Of queries, what is not known may be anything; keys must be known, or all is taken apart."""
    torch.manual_seed(0)
    model, x = Attention(is_causal=True).eval(), drawn(30, 20, 16, 16)
    any_rows = {"q": {0: Dim.AUTO, 2: Dim.AUTO}, "k": {0: Dim.AUTO}, "v": {0: Dim.AUTO}}
    for shapes in (any_rows, {**any_rows, "k": {2: Dim.AUTO}, "v": {2: Dim.AUTO}}):
        compiled = regraft.compile(model, x, backends=(tvm,), dynamic_shapes=shapes, cache=False)
        for rows in (30, 1, 200, 5):
            q, k, v = drawn(rows, 20, 16, 16)
            assert_close(compiled(q, k, v), model(*double((q, k, v))))


@pytest.mark.parametrize(
    ("sizes", "is_one"),
    [
        ((64, 64, 32, 32), True),
        (("T", 64, 32, 32), True),
        ((64, "K", 32, 32), False),
        ((1, 64, 32, 32), False),  # the keys would be laid out for one row
        ((64, 2048, 8, 8), False),  # scores of some rows would fill a cache
        ((64, 1024, 64, 64), False),  # and keys here
        ((64, 0, 32, 32), False),
    ],
)
def test_what_is_one_kernel(sizes: tuple[Any, ...], is_one: bool) -> None:
    rows, keys, depth, width = sizes
    types = (f"f32[2, {rows}, {depth}]", f"f32[2, {keys}, {depth}]", f"f32[2, {keys}, {width}]")
    case = Case("", lambda op, q, k, v: op.aten.scaled_dot_product_attention(q, k, v), types)
    op, _ = case.function().body.ops
    assert attention.is_one_kernel(op) == is_one
