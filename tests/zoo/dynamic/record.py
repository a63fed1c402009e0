"""What the table knows of a dynamic network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.testing import randomise

Decisions = tuple[int, ...]
"""What a run decided, by its result: the exit it took, the blocks that ran, the number of trips."""

Paths = Mapping[Decisions, int]
"""For each path a seed whose input takes it."""

Draw = Callable[[torch.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Form:
    """A network at one size.

    Fields:
        make: the network, before its weights are drawn.
        draw: positional arguments from a generator.
        paths: for each path a seed whose input takes it. A form without choices has one path.
        gains, shifts: factors and terms for parameters, by name, after they were drawn: heads and gates that
            nobody trained are all too sure or never, and these bring them to where both happen.
    """

    make: Callable[[], nn.Module]
    draw: Draw
    paths: Paths
    gains: Mapping[str, float] = field(default_factory=dict)
    shifts: Mapping[str, float | Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class DynamicNetwork:
    """A network whose path depends on its input.

    Fields:
        name: as in ``DYNAMIC``.
        workload: the full form in a line.
        small, full: for tests and for benchmarks.
        decisions: reads the decisions off a result.
        one_way: lines with a condition, or an operand of one, that cannot decide both ways.
        idle: lines whose comparisons and selections reach no result.
    """

    name: str
    workload: str
    small: Form
    full: Form
    decisions: Callable[[Any], Decisions]
    one_way: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()

    def form(self, size: str) -> Form:
        return {"small": self.small, "full": self.full}[size]

    def make(self, size: str = "small") -> nn.Module:
        """The network in eval mode with weights drawn from seed 0; ``size`` is ``small`` or ``full``."""
        form = self.form(size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # ``randomise`` keeps, within bounds, what LSTMs and attention start with
            model = randomise(form.make().eval(), seed=0)
        with torch.no_grad():
            for name, gain in form.gains.items():
                model.get_parameter(name).mul_(gain)
            for name, shift in form.shifts.items():
                model.get_parameter(name).add_(torch.tensor(shift))
        return model

    def inputs(self, seed: int, size: str = "small") -> tuple[Tensor, ...]:
        return self.form(size).draw(torch.Generator().manual_seed(seed))


def normal(*shape: int) -> Draw:
    """One tensor whose scale varies with the seed: confidence grows with it."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        scale = 0.25 + 2.5 * torch.rand((), generator=generator)
        return (scale * torch.randn(shape, generator=generator),)

    return draw


def images(batch: int, size: int) -> Draw:
    """Images with coarse structure, without which pooled features are alike for all of them."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        coarse = torch.randn((batch, 3, 4, 4), generator=generator) + torch.randn(
            (batch, 3, 1, 1), generator=generator
        )
        fine = torch.randn((batch, 3, size, size), generator=generator)
        return (F.interpolate(coarse, (size, size)) + 0.3 * fine,)

    return draw


def tokens(vocabulary: int, *shape: int) -> Draw:
    """Token ids; 0, 1 and 2 are left to padding, start and end."""

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randint(3, vocabulary, shape, generator=generator),)

    return draw


def no_decisions(result: Any) -> Decisions:
    """Of networks that take the same path for all values."""
    return ()
