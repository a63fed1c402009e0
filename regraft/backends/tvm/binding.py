"""Programs over memory: the arguments of every kernel of a call."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from regraft.backends.tvm.arena import ALIGNMENT, Life, placed
from regraft.backends.tvm.library import KernelLibrary, runtime
from regraft.backends.tvm.loaded import Branch, Call, Copy, LoadedProgram, Sizes, Step
from regraft.backends.tvm.table import Argument, StepTable, TableBuilder
from regraft.runtime import ResultMemory, lasting


class Binding:
    """A program over memory for one combination of sizes; one call at a time has it.

    The arguments of every kernel are laid out already, but for the addresses of what changes from call to
    call: the arguments and results of the model that do not stay where they are.
    """

    def __init__(
        self,
        program: LoadedProgram,
        sizes: Sizes,
        inputs: Sequence[Tensor | None] = (),
        keep: Sequence[bool] = (),
    ) -> None:
        """``inputs`` are the arguments that stay, and None for others; ``keep`` says which results
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
        self._memory = {**program.constants, **pieces, **self._stay}
        self._counts, self._sizes = counts, sizes
        self._calls: dict[int, Call] = {}
        builder = TableBuilder()
        self._lay_out(builder, program.steps)
        addresses = {number: tensor.data_ptr() for number, tensor in self._memory.items()}
        self._table = StepTable(builder, addresses)
        placed = {buffer for _, buffer in self._moving} | {program.results[n].buffer for n in self._made}
        assert self._table.open <= placed, "a kernel would read where nothing is"

    def _lay_out(self, builder: TableBuilder, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, Branch):
                branch = builder.branch(step.pred)
                self._lay_out(builder, step.arms[0])
                builder.otherwise(branch)
                self._lay_out(builder, step.arms[1])
                builder.end(branch)
            elif isinstance(step, Copy):
                builder.copy(step.source, step.target, self._bytes(step.source))
            elif any(self._counts[n] for n in step.writes or step.reads):  # no element: nothing to compute
                self._calls[len(builder)] = step
                library = self._program.library
                assert library is not None, "a program that calls kernels has a library"
                numbers = [self._sizes[symbol] for symbol in step.symbols]
                builder.call(library.code.address(step.kernel), list(self._arguments(step)), numbers)

    def _bytes(self, buffer: int) -> int:
        return self._counts[buffer] * self._program.buffers[buffer].dtype.itemsize

    def _arguments(self, call: Call) -> Iterator[Argument]:
        """What the kernel sees of its buffers: a row of elements each, or a shape, maybe as another type."""
        for place, number in enumerate((*call.reads, *call.writes)):
            dtype = call.views[place] or self._program.buffers[number].dtype
            if call.shapes is None:
                shape = (self._bytes(number) // dtype.itemsize,)
            else:
                shape = tuple(size(self._sizes) for size in call.shapes[place])
            yield Argument(number, dtype, shape)

    def run(self, inputs: Sequence[Tensor], memories: Sequence[ResultMemory]) -> list[Tensor]:
        """The results for ``inputs``, which are contiguous and aligned; what does not stay, in ``memories``.

        Raises:
            Exception: whatever tvm-ffi makes of what a kernel says is wrong.
        """
        program, table = self._program, self._table
        given = {buffer: inputs[number] for number, buffer in self._moving}
        made: list[Any] = list(self.kept)
        for number in self._made:
            result = program.results[number]
            tensor = memories[number].empty(self._shapes[number], program.buffers[result.buffer].dtype)
            made[number] = tensor
            if not result.is_copy:
                given[result.buffer] = tensor
        for buffer, tensor in given.items():
            table.place(buffer, tensor.data_ptr())
        if program.library is not None and (failed := table.run(program.library.code)) is not None:
            self._fail(program.library, self._calls[failed], given)
        for number in self._copies:
            buffer = program.results[number].buffer
            source = given.get(buffer, self._memory.get(buffer))
            assert source is not None, "a result is in memory that nobody has"
            _copied(source, made[number])
        return made

    def _fail(self, library: KernelLibrary, call: Call, given: Mapping[int, Tensor]) -> NoReturn:
        """Raise what the kernel said: it says so again of the same arguments, to tvm-ffi.

        That needs kernels that look at what they are given before they write.
        """
        rows = {number: tensor.detach().view(-1) for number, tensor in {**self._memory, **given}.items()}
        arguments = [
            runtime().from_dlpack(rows[each.buffer].view(each.dtype).view(each.shape))
            for each in self._arguments(call)
        ]
        library.module[call.kernel](*arguments, *(self._sizes[symbol] for symbol in call.symbols))
        raise AssertionError(f"the kernel '{call.kernel}' failed once, and not when it was called again")


def _copied(source: Tensor, target: Tensor) -> None:
    """torch would wake its own threads for a large row, while those of the kernels wait for work."""
    ctypes.memmove(target.data_ptr(), source.data_ptr(), target.nbytes)


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
    """Buffer -> what is in it, of the arguments and results that stay."""
    stay = {program.inputs[number]: tensor for number, tensor in enumerate(inputs) if tensor is not None}
    for result, tensor in zip(program.results, kept, strict=True):
        if tensor is not None and not result.is_copy:
            stay[result.buffer] = tensor
    return stay


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
