"""The plan: calls of executables over numbered slots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from regraft.errors import BackendError
from regraft.runtime.executable import HOST, Bindable, Bound, Executable

Bind: TypeAlias = tuple[str, int, int]
"""A symbol, the number of a tensor among several, and the axis of it whose size is the symbol's value."""

#: Combinations of sizes whose frames are kept for the next call.
_KEPT = 8


@dataclass(frozen=True)
class Step:
    """One call: slots it reads, slots it fills, and slots nobody reads afterwards.

    ``binds`` are the symbols that only its results tell, for the steps behind it.
    """

    executable: Executable
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...] = ()
    binds: tuple[Bind, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Steps in order. Slots 0 to ``inputs - 1`` are the flat inputs."""

    inputs: int
    slots: int
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    _whole: Executable | None = field(init=False, repr=False, compare=False)
    """The one executable that turns the inputs into the results, when the plan is nothing else."""
    is_steady: bool = field(init=False, repr=False, compare=False)
    """Whether the sizes of a call are known before it, so that a ``Frame`` can run the plan."""
    _idle: dict[tuple[tuple[str, int], ...], list[Frame]] = field(init=False, repr=False, compare=False)
    """By the sizes of calls that have been, the frames that no call has."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_whole", self._only_executable())
        object.__setattr__(self, "is_steady", not any(step.binds for step in self.steps))
        object.__setattr__(self, "_idle", {})

    def _only_executable(self) -> Executable | None:
        if len(self.steps) != 1 or self.steps[0].executable.backend == HOST:
            return None  # control flow has a frame for its regions
        (step,) = self.steps
        # Lengths first: a file may claim any number of inputs.
        in_order = len(step.inputs) == self.inputs and step.inputs == tuple(range(self.inputs))
        is_whole = in_order and step.outputs == self.results
        return step.executable if is_whole and len(set(self.results)) == len(self.results) else None

    def run(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """The flat results. Thread-safe: each call has slots of its own.

        Raises:
            BackendError: a step gives another number of results than the plan, maybe a file's, says.
        """
        if self._whole is not None:
            made = self._whole.run(tensors, sizes)
            _check_count(self._whole, len(made), self.results)
            return made
        with torch.no_grad():
            frame = self.take(sizes)
            if frame is None:
                return fresh(self.values(tensors, sizes), tensors)
            made = frame.run(tensors)
            self.give_back(frame)  # one in which a step failed is not used again
            return fresh(made, tensors)

    def take(self, sizes: Mapping[str, int]) -> Frame | None:
        """A frame for a call; None where it helps nothing, or there were no such sizes before: they may never
        come again.
        """
        if self._whole is not None or not self.is_steady:
            return None
        key = tuple(sizes.items())
        is_new = key not in self._idle
        if is_new and len(self._idle) >= _KEPT:
            self._idle.clear()
        idle = self._idle.setdefault(key, [])
        if is_new and key:
            return None
        try:
            return idle.pop()
        except IndexError:  # as many are made as there are calls at a time
            return Frame(self, [None] * self.inputs, sizes)

    def give_back(self, frame: Frame) -> None:
        """Let another call have ``frame``."""
        self._idle.setdefault(frame.key, []).append(frame)

    def values(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """What ``run`` gives, where results may be arguments, or the same tensor twice."""
        slots: list[Tensor | None] = [*tensors, *[None] * (self.slots - self.inputs)]
        for step in self.steps:
            outputs = step.executable.run([_filled(slots[i]) for i in step.inputs], sizes)
            _check_count(step.executable, len(outputs), step.outputs)
            sizes = with_bound(sizes, step.binds, outputs)
            for slot, tensor in zip(step.outputs, outputs, strict=True):
                slots[slot] = tensor
            for slot in step.dead:
                slots[slot] = None
        return [_filled(slots[slot]) for slot in self.results]


class Frame:
    """A plan in memory of its own, for one combination of sizes and one call at a time.

    A small result that one step hands to others stays at its place, which executables that are ``Bindable``
    are told once: a call then does little more than to call kernels. Its results are no such tensors.
    """

    def __init__(self, plan: Plan, inputs: Sequence[Tensor | None], sizes: Mapping[str, int]) -> None:
        """``inputs`` are those of ``plan`` that stay where they are; None for those that come with a call."""
        assert plan.is_steady, "the sizes behind a step are known after it alone"
        self.key = tuple(sizes.items())
        self._results = plan.results
        self._rest: list[Tensor | None] = [None] * (plan.slots - plan.inputs)
        self.steps: list[tuple[Step, Bound]] = []
        stay: dict[int, Tensor | None] = dict(enumerate(inputs))
        for step in plan.steps:
            bound = _bound(step, [stay.get(slot) for slot in step.inputs], plan.results, sizes)
            self.steps.append((step, bound))
            stay.update(zip(step.outputs, bound.kept, strict=True))
        self.kept = (None,) * len(plan.results)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What ``Plan.values`` gives. Gradients are to be off."""
        slots: list[Tensor | None] = [*inputs, *self._rest]
        for step, bound in self.steps:
            made = bound.run([_filled(slots[i]) for i in step.inputs])
            for slot, tensor in zip(step.outputs, made, strict=True):
                slots[slot] = tensor
            for slot in step.dead:
                slots[slot] = None
        return [_filled(slots[slot]) for slot in self._results]


def _bound(
    step: Step, inputs: Sequence[Tensor | None], results: Sequence[int], sizes: Mapping[str, int]
) -> Bound:
    executable = step.executable
    if not isinstance(executable, Bindable):
        return _Loose(step, sizes)
    bound = executable.bind(inputs, [slot not in results for slot in step.outputs], sizes)
    _check_count(executable, len(bound.kept), step.outputs)
    return bound


class _Loose:
    """A step of an executable that cannot be bound."""

    def __init__(self, step: Step, sizes: Mapping[str, int]) -> None:
        self._step = step
        self._sizes = sizes
        self.kept = (None,) * len(step.outputs)

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        made = self._step.executable.run(inputs, self._sizes)
        _check_count(self._step.executable, len(made), self._step.outputs)
        return made


def fresh(results: Iterable[Tensor], taken: Iterable[Tensor]) -> list[Tensor]:
    """``results``, no two of them the same tensor and none one of ``taken``: their owner may write to any."""
    seen = set(map(id, taken))
    found: list[Tensor] = []
    for result in results:
        found.append(result.detach().clone() if id(result) in seen else result)
        seen.add(id(result))
    return found


def with_bound(
    sizes: Mapping[str, int], binds: Sequence[Bind], tensors: Sequence[Tensor]
) -> Mapping[str, int]:
    """``sizes`` and what ``binds`` say that ``tensors`` tell."""
    if not binds:
        return sizes
    return {**sizes, **{name: tensors[number].shape[axis] for name, number, axis in binds}}


def _check_count(executable: Executable, made: int, expected: Sequence[int]) -> None:
    if made != len(expected):
        message = f"a step gives {made} results where the plan has {len(expected)}"
        raise BackendError(message, backend=executable.backend)


def _filled(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "a plan reads a slot that no step has filled"
    return tensor
