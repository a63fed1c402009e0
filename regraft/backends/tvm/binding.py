"""Programs over memory: the arguments of every kernel of a call."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from regraft.backends.tvm.arena import ALIGNMENT, Life, placed
from regraft.backends.tvm.library import runtime
from regraft.backends.tvm.loaded import Branch, Call, Copy, LoadedProgram, Sizes, Step
from regraft.runtime import ResultMemory, byte_of, lasting

_BoundStep = tuple[Callable[..., object], list[Any]]
"""What is called, and with what."""


def _run_all(steps: Sequence[_BoundStep]) -> None:
    for function, arguments in steps:
        function(*arguments)


def _run_arm(then: Sequence[_BoundStep], other: Sequence[_BoundStep], pred: memoryview[int] | Tensor) -> None:
    _run_all(then if pred[0] else other)


def _copied(source: Tensor, target: Tensor) -> None:
    """torch would wake its own threads for a large row, while those of the kernels wait for work."""
    ctypes.memmove(target.data_ptr(), source.data_ptr(), target.nbytes)


class Binding:
    """A program over memory for one combination of sizes; one call at a time has it.

    The arguments of every kernel are there already, but for those that change from call to call: the
    arguments and results of the model that do not stay where they are, whose places in them are kept.
    """

    def __init__(
        self,
        program: LoadedProgram,
        sizes: Sizes,
        inputs: Sequence[Tensor | None] = (),
        keep: Sequence[bool] = (),
    ) -> None:
        """``inputs`` are the arguments that stay, as rows, and None for others; ``keep`` says which results
        may stay, and ``kept`` has those that do. Left out, nothing stays.
        """
        self._program = program
        counts = [buffer.size(sizes) for buffer in program.buffers]
        self._shapes = [tuple(size(sizes) for size in result.shape) for result in program.results]
        self.kept = _kept(program, self._shapes, keep or [False] * len(program.results))
        self._stay = _staying(program, inputs, self.kept)
        self._moving = [
            (number, buffer) for number, buffer in program.inputs.items() if buffer not in self._stay
        ]
        self._made = [number for number, tensor in enumerate(self.kept) if tensor is None]
        self._copies = [number for number, result in enumerate(program.results) if result.is_copy]
        self._arena, pieces = _arena(program, counts)
        memory = {**program.constants, **pieces, **self._stay}
        self._open: list[tuple[int, list[Any], int, _Seen]] = []
        self._calls = list(self._bound(program.steps, memory, counts, sizes))

    def _bound(
        self, steps: Sequence[Step], memory: Mapping[int, Tensor], counts: Sequence[int], sizes: Sizes
    ) -> Iterator[_BoundStep]:
        for step in steps:
            if isinstance(step, Branch):
                then, other = (list(self._bound(arm, memory, counts, sizes)) for arm in step.arms)
                is_there = step.pred in memory
                pred = [byte_of(memory[step.pred])] if is_there else self._rows((step.pred,), memory)
                yield partial(_run_arm, then, other), pred
            elif isinstance(step, Copy):
                yield _copied, self._rows((step.source, step.target), memory)
            elif any(counts[n] for n in step.writes or step.reads):  # a kernel of no element computes nothing
                yield step.function, self._arguments(step, memory, sizes)

    def _rows(self, buffers: Sequence[int], memory: Mapping[int, Tensor]) -> list[Any]:
        """The rows of ``buffers`` as torch has them."""
        arguments: list[Any] = [memory.get(number) for number in buffers]
        for place, number in enumerate(buffers):
            if number not in memory:
                self._open.append((number, arguments, place, _Seen(None, None)))
        return arguments

    def _arguments(self, call: Call, memory: Mapping[int, Tensor], sizes: Sizes) -> list[Any]:
        buffers = (*call.reads, *call.writes)
        arguments: list[Any] = [None] * len(buffers)
        for place, number in enumerate(buffers):
            shape = None if call.shapes is None else tuple(size(sizes) for size in call.shapes[place])
            seen = _Seen(shape, call.views[place])
            if number in memory:
                arguments[place] = runtime().from_dlpack(seen.of(memory[number]))
            else:
                self._open.append((number, arguments, place, seen))
        arguments += [sizes[symbol] for symbol in call.symbols]
        return arguments

    def run(self, inputs: Sequence[Tensor], memories: Sequence[ResultMemory]) -> list[Tensor]:
        """The results for ``inputs``, each one row of elements; those that do not stay, in ``memories``."""
        program = self._program
        given = {buffer: inputs[number] for number, buffer in self._moving}
        made: list[Any] = list(self.kept)
        for number in self._made:
            result = program.results[number]
            tensor = memories[number].empty(self._shapes[number], program.buffers[result.buffer].dtype)
            made[number] = tensor
            if not result.is_copy:
                given[result.buffer] = tensor.view(-1)
        for number, arguments, place, seen in self._open:
            arguments[place] = seen.of(given[number])
        _run_all(self._calls)
        for number in self._copies:
            buffer = program.results[number].buffer
            source = given.get(buffer, self._stay.get(buffer, program.constants.get(buffer)))
            assert source is not None, "a result is copied from scratch memory"
            _copied(source, made[number].view(-1))
        self._forget()
        return made

    def _forget(self) -> None:
        """Let arguments and results go, which the caller owns."""
        for _, arguments, place, _ in self._open:
            arguments[place] = None


def _kept(
    program: LoadedProgram, shapes: Sequence[tuple[int, ...]], keep: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Memory for the results that stay."""
    return tuple(
        lasting(shape, program.buffers[result.buffer].dtype) if may_stay else None
        for result, shape, may_stay in zip(program.results, shapes, keep, strict=True)
    )


def _staying(
    program: LoadedProgram, inputs: Sequence[Tensor | None], kept: Sequence[Tensor | None]
) -> dict[int, Tensor]:
    """Buffer -> its row, of the arguments and results that stay."""
    stay = {program.inputs[number]: row for number, row in enumerate(inputs) if row is not None}
    for result, tensor in zip(program.results, kept, strict=True):
        if tensor is not None and not result.is_copy:
            stay[result.buffer] = tensor.view(-1)
    return stay


@dataclass(frozen=True)
class _Seen:
    """How a kernel sees a row of elements: in a shape, or as elements of another type."""

    shape: tuple[int, ...] | None
    view: torch.dtype | None

    def of(self, row: Tensor) -> Tensor:
        row = row if self.view is None or row.dtype == self.view else row.view(self.view)
        return row if self.shape is None else row.view(self.shape)


def _arena(program: LoadedProgram, counts: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """The memory of one call's scratch buffers, and each of them in it."""
    lives = [
        Life(n, counts[n] * program.buffers[n].dtype.itemsize, *program.buffers[n].life)
        for n in program.scratch
    ]
    offsets, total = placed(lives)
    arena = torch.empty(max(total, ALIGNMENT), dtype=torch.uint8, device="cpu")
    return arena, dict(_pieces(program, counts, offsets, arena))


def _pieces(
    program: LoadedProgram, counts: Sequence[int], offsets: Mapping[int, int], arena: Tensor
) -> Iterator[tuple[int, Tensor]]:
    for number, offset in offsets.items():
        dtype = program.buffers[number].dtype
        yield number, arena[offset : offset + counts[number] * dtype.itemsize].view(dtype)
