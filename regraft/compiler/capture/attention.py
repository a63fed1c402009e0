"""Attention of which torch's own code asks what a trace cannot know, and need not.

- Asked for the type of its result, torch's tracers run attention as they would compute it, on a path that
  asks whether there are tokens at all, also where values decide how many. What the type is can be said
  without.
- ``nn.TransformerEncoder`` and its like look whether a mask is the causal one, to leave it out then: with the
  mask they compute the same.
"""

# torch's own kernel has no public name.
# pyright: reportUnknownMemberType=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.modules import transformer

_ATTENTION: Any = torch.ops.aten.scaled_dot_product_attention.default


def _type(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A tensor like the result: ``[*batch, L, Ev]``."""
    try:
        return _ATTENTION._op_dk(DispatchKey.CompositeImplicitAutograd, query, key, value, *args, **kwargs)
    except GuardOnDataDependentSymNode:
        grouped = kwargs.get("enable_gqa", False)
        others = () if grouped else (key.shape[:-2], value.shape[:-2])
        batch = torch.broadcast_shapes(query.shape[:-2], *others)
        return query.new_empty((*batch, query.shape[-2], value.shape[-1]))


ATTENTION: Mapping[Any, Callable[..., Any]] = {_ATTENTION: _type}


@contextmanager
def masks_as_given() -> Generator[None]:
    """In the block, torch's transformer layers take a traced mask for any mask, unless they are told."""
    layers: Any = transformer
    detect = layers._detect_is_causal_mask

    def is_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
        is_open = is_causal is None and isinstance(mask, FakeTensor)
        return False if is_open else detect(mask, is_causal, size)

    layers._detect_is_causal_mask = is_causal
    try:
        yield
    finally:
        layers._detect_is_causal_mask = detect
