"""The plan: calls of executables over numbered slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from regraft.errors import BackendError
from regraft.runtime.executable import Executable

Bind: TypeAlias = tuple[str, int, int]
"""A symbol, the number of a tensor among several, and the axis of it whose size is the symbol's value."""


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "_whole", self._only_executable())

    def _only_executable(self) -> Executable | None:
        if len(self.steps) != 1:
            return None
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
            _check_count(self._whole, made, self.results)
            return made
        return self._fresh(self.values(tensors, sizes))

    def values(self, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """What ``run`` gives, where results may be arguments, or the same tensor twice."""
        slots: list[Tensor | None] = [*tensors, *[None] * (self.slots - self.inputs)]
        for step in self.steps:
            outputs = step.executable.run([_filled(slots[i]) for i in step.inputs], sizes)
            _check_count(step.executable, outputs, step.outputs)
            sizes = with_bound(sizes, step.binds, outputs)
            for slot, tensor in zip(step.outputs, outputs, strict=True):
                slots[slot] = tensor
            for slot in step.dead:
                slots[slot] = None
        return [_filled(slots[slot]) for slot in self.results]

    def _fresh(self, values: Sequence[Tensor]) -> list[Tensor]:
        """``values``, no two of them and no argument the same tensor: a caller may write to any."""
        taken = set(range(self.inputs))
        fresh: list[Tensor] = []
        for slot, tensor in zip(self.results, values, strict=True):
            fresh.append(tensor.detach().clone() if slot in taken else tensor)
            taken.add(slot)
        return fresh


def with_bound(
    sizes: Mapping[str, int], binds: Sequence[Bind], tensors: Sequence[Tensor]
) -> Mapping[str, int]:
    """``sizes`` and what ``binds`` say that ``tensors`` tell."""
    if not binds:
        return sizes
    return {**sizes, **{name: tensors[number].shape[axis] for name, number, axis in binds}}


def _check_count(executable: Executable, made: Sequence[Tensor], expected: Sequence[int]) -> None:
    if len(made) != len(expected):
        message = f"a step gives {len(made)} results where the plan has {len(expected)}"
        raise BackendError(message, backend=executable.backend)


def _filled(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "a plan reads a slot that no step has filled"
    return tensor
