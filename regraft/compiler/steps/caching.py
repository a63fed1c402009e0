"""Which blocks of a denoiser are computed at which steps, and what stands for those that are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft.errors import OptionError


@dataclass(frozen=True)
class Taylor:
    """Forecast from the differences between the steps at which the block was computed.

    ``order`` 0 reuses the last output as it is. Above, the output ``x`` steps after the last one computed is
    the sum of ``d[i] * x**i / i!``, where ``d[0]`` is that output and ``d[i + 1]`` the change of ``d[i]``
    since the step computed before, by the number of steps between (TaylorSeer, arXiv:2503.06923). Orders for
    which too few steps were computed so far are left out.
    """

    order: int = 1

    def __post_init__(self) -> None:
        if type(self.order) is not int or self.order < 0:
            raise OptionError("no such forecast", "order", repr(self.order), "an integer from 0")

    def forecast(self, differences: Sequence[Tensor], weights: Tensor) -> Tensor:
        """The output, given ``weights`` as ``weights_at`` has them; it may be ``differences[0]`` itself."""
        found = differences[0]
        for i, difference in enumerate(differences[1:]):
            found = found + _product(difference, weights[i])
        return found

    def updated(self, differences: Sequence[Tensor], value: Tensor, rate: Tensor) -> list[Tensor]:
        """The differences after ``value`` was computed, ``rate`` being 1 by the steps since the last time."""
        found = [value]
        for old in differences[: self.order]:
            found.append(_product(found[-1] - old, rate[0]))
        return found

    def weights_at(self, ahead: int, computed: int) -> list[float]:
        """What counts for each difference but the first, ``ahead`` steps after the last of ``computed``."""
        return [ahead**i / math.factorial(i) if i < computed else 0.0 for i in range(1, self.order + 1)]


def _product(difference: Tensor, weight: Tensor) -> Tensor:
    """``difference * weight``, 0 where the weight is: a difference not known yet may be infinite."""
    return torch.where(weight != 0, difference * weight, 0.0)


@dataclass(frozen=True)
class Feedback:
    """Predicted by a module from what the block ``source`` gave in the step before.

    ``predict`` is called with that output and the arguments of the present call. (Inner loop feedback,
    arXiv:2501.13107: the rest of the network runs on, from features that a small module foresees.) The source
    is computed at every step: it is none of the blocks that something stands for, and no probe.
    """

    predict: Callable[..., Any]
    source: str


@dataclass(frozen=True)
class Every:
    """All blocks are computed at the ``first`` steps, and at each ``interval``-th after the last of these."""

    interval: int
    first: int = 1

    def __post_init__(self) -> None:
        _check_counts(interval=self.interval, first=self.first)

    def computes(self, step: int) -> bool:
        return step < self.first or (step - self.first + 1) % self.interval == 0


@dataclass(frozen=True)
class Steps:
    """The steps at which each block is computed; the first is 0. Names are those, or patterns, of ``blocks``.

    (Block-wise adaptive caching, arXiv:2506.13456.)
    """

    of: Mapping[str, Sequence[int]]

    def __post_init__(self) -> None:
        for name, steps in self.of.items():
            wrong = [step for step in steps if type(step) is not int or step < 0]
            if wrong:
                raise OptionError(f"no such step of {name}", "of", repr(wrong[0]), "integers from 0")


@dataclass(frozen=True)
class Probe:
    """A block, computed at every step, tells by its own forecast whether the others may be forecast.

    They are where the mean absolute error of that forecast is below ``threshold`` times the mean magnitude of
    the block's output, at the ``first`` steps never (confidence-gated Taylor, CG-Taylor).
    """

    block: str
    threshold: float
    first: int = 2

    def __post_init__(self) -> None:
        _check_counts(first=self.first)
        if not self.threshold >= 0:
            raise OptionError("no such error", "threshold", repr(self.threshold), "a number from 0")


@dataclass(frozen=True)
class StepCache:
    """What a denoiser need not compute at every step.

    Fields:
        blocks: submodules by name, or by a pattern such as ``"blocks.*.attn"`` (a ``*`` stands for no dot),
            with what stands for their outputs at steps at which they are not computed. A block returns one
            tensor, is called once in a step, and lies in no other.
        schedule: when they are computed.
    """

    blocks: Mapping[str, Taylor | Feedback]
    schedule: Every | Steps | Probe


def _check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        if type(count) is not int or count < 1:
            raise OptionError("no such number of steps", name, repr(count), "an integer from 1")
