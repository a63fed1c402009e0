"""A call of a plan with a clock around every step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.runtime.plan import Plan, with_bound


@dataclass(frozen=True)
class StepTime:
    """Wall-clock seconds that one step of a plan took."""

    backend: str
    seconds: float


@dataclass(frozen=True)
class Profile:
    """One call of a plan.

    Fields:
        steps: time of each step, in order. What a call does besides its steps is in none of them.
        live_bytes: the most bytes that tensors made by steps held at once, as seen between steps. What
            an executable allocates inside is its own affair and not in it.
    """

    steps: tuple[StepTime, ...]
    live_bytes: int


def profile(plan: Plan, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> Profile:
    """Run ``plan`` once on flat inputs as a call does, step by step, and drop the results."""
    frame = plan.take(sizes)
    slots: dict[int, Tensor] = dict(enumerate(tensors))
    times: list[StepTime] = []
    peak = 0
    with torch.no_grad():
        for number, step in enumerate(plan.steps):
            inputs = [slots[i] for i in step.inputs]
            start = time.perf_counter()
            if frame is None:
                outputs = step.executable.run(inputs, sizes)
            else:
                outputs = frame.steps[number][1].run(inputs)
            times.append(StepTime(step.executable.backend, time.perf_counter() - start))
            sizes = with_bound(sizes, step.binds, outputs)
            slots.update(zip(step.outputs, outputs, strict=True))
            peak = max(peak, sum(t.nbytes for i, t in slots.items() if i >= plan.inputs))
            for slot in step.dead:
                del slots[slot]
    if frame is not None:
        plan.give_back(frame)
    return Profile(tuple(times), peak)
