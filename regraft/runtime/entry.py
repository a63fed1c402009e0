"""One way into a compiled model: from a user's call to the user's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from regraft.errors import GradientError, RegraftError
from regraft.runtime.effects import Effects
from regraft.runtime.plan import Plan
from regraft.runtime.signature import Signature, autocast_dtype

#: How many combinations of shapes are remembered; a model whose every call is new pays the checks each time.
_REMEMBERED = 1024


class EntryPoint:
    """A signature, the plan behind it with its effects, and the calls that were found to fit.

    Checking the shapes of a call takes longer than a small model's work. What the checks say depends on
    the tensors' kinds alone, so each combination of kinds is checked once.
    """

    def __init__(self, signature: Signature, plan: Plan, effects: Effects | None = None) -> None:
        self.signature = signature
        self._run = plan.run if effects is None else partial(effects.run, plan)
        self._device = signature.tensors[0].device if signature.tensors else "cpu"
        self._sizes: dict[tuple[Any, ...], Mapping[str, int]] = {}

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of a call. Safe in several threads at once.

        Raises:
            ShapeError: an argument differs from what the model was compiled for.
            GradientError: a gradient would be lost.
            RegraftError: it runs under another autocast than the model was compiled under.
        """
        tensors = self.signature.flatten(args, kwargs)
        kinds = tuple([(t.shape, t.dtype, t.device, t.layout, type(t)) for t in tensors])
        sizes = self._sizes.get(kinds)
        if sizes is None:
            sizes = self._admit(kinds, tensors)
        if torch.is_autocast_enabled(self._device) or self.signature.autocast:
            self._check_autocast()
        if torch.is_grad_enabled():
            for index, tensor in enumerate(tensors):
                if tensor.requires_grad:
                    raise GradientError.of(self.signature.tensors[index].name)
        return self.signature.unflatten(self._run(tensors, sizes))

    def _check_autocast(self) -> None:
        ours, theirs = self.signature.autocast, autocast_dtype(self._device)
        if ours != theirs:
            raise RegraftError(
                f"the call runs under {theirs or 'no'} autocast, and the model was compiled under "
                f"{ours or 'no'} autocast, which gives other values; compile and call it under the same one"
            )

    def _admit(self, kinds: tuple[Any, ...], tensors: Sequence[Tensor]) -> Mapping[str, int]:
        """The sizes of a call with ``tensors``, checked and remembered."""
        sizes = MappingProxyType(self.signature.sizes(tensors))
        if len(self._sizes) >= _REMEMBERED:
            self._sizes.clear()
        self._sizes[kinds] = sizes
        return sizes
