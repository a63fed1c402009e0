"""One step of a denoiser in which some blocks are not computed, as a module to compile.

Blocks that are given a value are not called, so that nothing of them, and of what only they read, is traced.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.compiler.steps.caching import Feedback, Taylor
from regraft.errors import OptionError

#: Computed and remembered, forecast, given as the probe computed it, or neither looked at nor replaced.
Mode = Literal["computed", "forecast", "given", "idle"]
Forecast = Taylor | Feedback


@dataclass(frozen=True)
class Block:
    """A block of the model, by its name, and what stands for its output."""

    name: str
    forecast: Forecast


class StepGraph(nn.Module):
    """``model`` with each of ``blocks`` in its mode of ``modes``.

    A call takes, by block, the differences and the numbers, the values that are given, and the arguments of
    the model; it returns the model's result and the new differences of the blocks that were computed. What
    the model writes into a block's output is in neither these differences nor the values that are given.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Block], modes: Sequence[Mode]) -> None:
        super().__init__()
        self.training = False  # eval() would reach the user's modules
        self.model = model
        self.blocks = tuple(blocks)
        self.modes: tuple[Mode, ...] = tuple(modes)

    def forward(
        self,
        differences: dict[str, list[Tensor]],
        numbers: dict[str, Tensor],
        given: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Any, dict[str, list[Tensor]]]:
        modes = dict(zip((b.name for b in self.blocks), self.modes, strict=True))
        values = dict(given)
        for block in self.blocks:
            if modes[block.name] == "forecast":
                values[block.name] = _forecast(block, differences, numbers, args, kwargs)
        wanted = [name for name, mode in modes.items() if mode == "computed"]
        with observed(self.model, values, wanted) as computed:
            result = self.model(*args, **kwargs)
        computed |= given
        new: dict[str, list[Tensor]] = {}
        for block in self.blocks:
            if modes[block.name] in ("computed", "given") and isinstance(block.forecast, Taylor):
                old, rate = differences[block.name], numbers[block.name]
                new[block.name] = block.forecast.updated(old, computed[block.name], rate)
        return result, new


class ProbeGraph(nn.Module):
    """The output of one block of ``model``, and how far its forecast is off, relative to its magnitude."""

    def __init__(self, model: nn.Module, block: Block) -> None:
        super().__init__()
        self.training = False
        self.model = model
        self.block = block

    def forward(
        self, differences: list[Tensor], weights: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(self.block.forecast, Taylor), "a probe forecasts itself"
        with observed(self.model, {}, [self.block.name]) as computed:
            self.model(*args, **kwargs)
        value = computed[self.block.name]
        foreseen = self.block.forecast.forecast(differences, weights)
        return value, (foreseen - value).abs().mean() / value.abs().mean()


def _forecast(
    block: Block,
    differences: Mapping[str, list[Tensor]],
    numbers: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Tensor:
    if isinstance(block.forecast, Taylor):
        return block.forecast.forecast(differences[block.name], numbers[block.name])
    return block.forecast.predict(differences[block.forecast.source][0].clone(), *args, **kwargs)


@contextmanager
def observed(
    model: nn.Module, values: Mapping[str, Tensor], wanted: Sequence[str]
) -> Generator[dict[str, Tensor]]:
    """In the block the submodules ``values`` return those, and what the ``wanted`` ones return is collected.

    Both are copies, since the model may write to what a submodule returns.

    Raises:
        OptionError: a block is called more than once, never, or returns something else than one tensor.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(_replaced(model.get_submodule(name), value))
        for name in wanted:
            stack.enter_context(_watched(model.get_submodule(name), name, found))
        yield found
    never = [name for name in wanted if name not in found]
    if never:
        raise _refusal(never[0], "is not called in a step (one that values decide over may not be)")


class _Given:
    """A ``forward`` that returns a copy of what it was given."""

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._value.clone()


@contextmanager
def _replaced(block: nn.Module, value: Tensor) -> Generator[None]:
    """In the block, a call of ``block`` computes nothing and returns ``value``.

    Its hooks do not run: what they do to an output is in ``value`` already.
    """
    names = ("forward", "_forward_hooks", "_forward_pre_hooks")
    own = {name: vars(block)[name] for name in names if name in vars(block)}
    vars(block).update(forward=_Given(value), _forward_hooks={}, _forward_pre_hooks={})
    try:
        yield
    finally:
        del vars(block)["forward"]
        vars(block).update(own)


@contextmanager
def _watched(block: nn.Module, name: str, found: dict[str, Tensor]) -> Generator[None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if name in found:
            raise _refusal(name, "is called more than once in a step")
        if not isinstance(output, torch.Tensor):
            raise _refusal(name, f"returns a {type(output).__name__}, where one tensor is needed")
        found[name] = output.clone()

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _refusal(name: str, reason: str) -> OptionError:
    return OptionError(
        f"the block {name} {reason}", "blocks", repr(name), "a block of one output, called once"
    )
