"""Measuring a compiled model: what a call takes, and where."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regraft.compiler.trial import copied, on_copies
from regraft.runtime import CompiledModel, Profile, executables_of, profile


@dataclass(frozen=True)
class Measurement:
    """Wall-clock times of a compiled model on one set of arguments, warm.

    Fields:
        calls: how many calls each number is the median of.
        seconds: a whole call, as the user makes it.
        steps: (back end, seconds) of each step of the plan, from calls in which a clock stood around
            each step. They add up to less than a call: its arguments are checked besides.
        live_bytes: the most bytes of results held between steps.
        copied: back end -> the arguments that it copied in each call, since their memory did not suit it.
    """

    calls: int
    seconds: float
    steps: tuple[tuple[str, float], ...]
    live_bytes: int
    copied: Mapping[str, int]

    @property
    def executors(self) -> dict[str, float]:
        """Seconds of a call by back end."""
        total: dict[str, float] = {}
        for backend, seconds in self.steps:
            total[backend] = total.get(backend, 0.0) + seconds
        return total

    def to_dict(self) -> dict[str, Any]:
        """The measurement as JSON values."""
        return {
            "calls": self.calls,
            "seconds": self.seconds,
            "executors": self.executors,
            "steps": [{"backend": backend, "seconds": seconds} for backend, seconds in self.steps],
            "live_bytes": self.live_bytes,
            "copied": dict(self.copied),
        }


def measure(
    compiled: CompiledModel, args: Sequence[Any], kwargs: Mapping[str, Any], calls: int
) -> Measurement:
    """Time ``calls`` calls of ``compiled`` as they are and as many step by step, in turns, after one of each.

    They run on copies of the arguments and of the state, and leave torch's generator as it was.

    Raises:
        The errors of a call.
    """
    whole: list[float] = []
    stepwise: list[Profile] = []
    trial = on_copies(compiled)
    own_args, own_kwargs = copied((tuple(args), dict(kwargs)))
    with torch.no_grad(), torch.random.fork_rng(devices=()):  # pyright: ignore[reportUnknownMemberType]
        tensors = compiled.signature.flatten(own_args, own_kwargs)
        sizes = compiled.signature.sizes(tensors)
        inputs = [*tensors, *(() if trial.effects is None else trial.effects.state)]
        before = _copies(compiled)
        for round_ in range(calls + 1):
            start = time.perf_counter()
            trial(*own_args, **own_kwargs)
            seconds = time.perf_counter() - start
            profiled = profile(compiled.plan, inputs, sizes)
            if round_:  # the first of each warms caches up
                whole.append(seconds)
                stepwise.append(profiled)
    steps = tuple(
        (same[0].backend, statistics.median(each.seconds for each in same))
        for same in zip(*(p.steps for p in stepwise), strict=True)
    )
    runs = 2 * (calls + 1)
    copies = {name: (count - before[name]) // runs for name, count in _copies(compiled).items()}
    live = max(p.live_bytes for p in stepwise)
    return Measurement(
        calls, statistics.median(whole), steps, live, {name: count for name, count in copies.items() if count}
    )


def _copies(compiled: CompiledModel) -> dict[str, int]:
    """The arguments that each back end has copied so far."""
    found: dict[str, int] = {}
    for each in executables_of(compiled.plan):
        found[each.backend] = found.get(each.backend, 0) + getattr(each, "copied", 0)
    return found
