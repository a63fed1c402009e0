"""Programs as they are run: read from JSON, with their kernels and constants at hand.

The JSON of a program has ``buffers``, flat pieces of memory with an element type and a size that may depend
on the symbols; ``calls``, each with the name of a kernel, the buffers that it reads and writes, the symbols
whose values it takes, and where it sees buffers otherwise than as a row, their ``shapes`` and element types
(``views``); ``results``, buffers in a shape. A buffer is an ``input``, a ``constant``, what a ``result`` is
made in, or scratch. Among the calls stand conditions, each with the buffer that decides (``pred``) and its
``arms``, the calls where it is true and those where it is false; and copies of a buffer ``to`` another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regraft.backends.tvm.arena import ALIGNMENT
from regraft.backends.tvm.library import KernelLibrary
from regraft.backends.tvm.library import load as load_library
from regraft.backends.tvm.packing import Packing
from regraft.errors import BackendError
from regraft.runtime import TORCH_DTYPES, compile_dim

Record = Mapping[str, Any]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Buffer:
    dtype: torch.dtype
    size: Callable[[Sizes], int]
    """Elements."""
    life: tuple[int, int]
    """The calls between which it is in use."""


@dataclass(frozen=True)
class Call:
    kernel: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    symbols: tuple[str, ...]
    shapes: tuple[tuple[Callable[[Sizes], int], ...], ...] | None
    """Of the buffers, where the kernel takes more of them than a row."""
    views: tuple[torch.dtype | None, ...]
    """What the kernel sees the elements of each buffer as, where that is another type than the buffer's."""


@dataclass(frozen=True)
class Branch:
    """The buffer that decides, and the steps where it is true, and where it is false."""

    pred: int
    arms: tuple[tuple[Step, ...], ...]


@dataclass(frozen=True)
class Copy:
    source: int
    target: int


Step = Call | Branch | Copy


@dataclass(frozen=True)
class Result:
    """A result: the buffer that holds it, its shape, and whether the call hands out a copy."""

    buffer: int
    shape: tuple[Callable[[Sizes], int], ...]
    is_copy: bool


@dataclass(frozen=True)
class LoadedProgram:
    """A program, ready to be bound to memory.

    Fields:
        inputs: input -> its buffer.
        constants: buffer -> the constant in it, held by whoever has the program.
        scratch: the buffers that calls share an arena for.
        library: its kernels, and what runs steps; None where it has no steps.
    """

    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    results: tuple[Result, ...]
    inputs: Mapping[int, int]
    constants: Mapping[int, Tensor]
    scratch: tuple[int, ...]
    library: KernelLibrary | None = field(repr=False)

    @staticmethod
    def of(record: Record, library: bytes | None, constants: Mapping[str, Tensor]) -> LoadedProgram:
        steps = tuple(_step(step) for step in record["calls"])
        if steps and library is None:
            raise BackendError("a program has steps, and no library that runs them", backend="tvm")
        buffers = record["buffers"]
        owners = {b["result"]: number for number, b in enumerate(buffers) if "result" in b}
        results = tuple(
            Result(r["buffer"], tuple(map(_size, r["shape"])), owners.get(number) != r["buffer"])
            for number, r in enumerate(record["results"])
        )
        lives = _lives(len(buffers), steps)
        used = {n for n, life in enumerate(lives) if life[0] <= life[1]} | {r.buffer for r in results}
        return LoadedProgram(
            tuple(
                Buffer(TORCH_DTYPES[b["dtype"]], _size(b["size"]), lives[number])
                for number, b in enumerate(buffers)
            ),
            steps,
            results,
            {b["input"]: number for number, b in enumerate(buffers) if "input" in b},
            {n: _constant(b, constants) for n, b in enumerate(buffers) if "constant" in b and n in used},
            tuple(n for n, b in enumerate(buffers) if not {"input", "constant", "result"} & set(b)),
            None if library is None else load_library(library),
        )


def _step(record: Record) -> Step:
    if "arms" in record:
        arms = (tuple(_step(step) for step in arm) for arm in record["arms"])
        return Branch(record["pred"], tuple(arms))
    if "copy" in record:
        return Copy(record["copy"], record["to"])
    shapes = record.get("shapes")
    return Call(
        record["kernel"],
        tuple(record["reads"]),
        tuple(record["writes"]),
        tuple(record["symbols"]),
        None if shapes is None else tuple(tuple(map(_size, shape)) for shape in shapes),
        _views(record),
    )


def _views(call: Record) -> tuple[torch.dtype | None, ...]:
    count = len(call["reads"]) + len(call["writes"])
    names: Sequence[str | None] = call.get("views", [None] * count)
    return tuple(None if name is None else _VIEWS[name] for name in names)


#: The types that kernels may see elements as: the bits of bf16, and pairs of bf16.
_VIEWS = {"uint16": torch.uint16, "int32": torch.int32}


def _size(text: str | int) -> Callable[[Sizes], int]:
    return compile_dim(int(text) if isinstance(text, str) and text.isdigit() else text)


def _lives(count: int, steps: Sequence[Step]) -> list[tuple[int, int]]:
    """The first and the last step that has each buffer, the arms of a condition one behind the other."""
    touched = list(_touched(steps))
    lives = [(len(touched), -1)] * count
    for number, buffers in enumerate(touched):
        for buffer in buffers:
            lives[buffer] = min(lives[buffer][0], number), max(lives[buffer][1], number)
    return lives


def _touched(steps: Sequence[Step]) -> Iterator[tuple[int, ...]]:
    for step in steps:
        if isinstance(step, Branch):
            yield (step.pred,)
            for arm in step.arms:
                yield from _touched(arm)
        elif isinstance(step, Copy):
            yield (step.source, step.target)
        else:
            yield (*step.reads, *step.writes)


def _constant(buffer: Record, constants: Mapping[str, Tensor]) -> Tensor:
    """The constant in ``buffer`` as a row, packed where kernels want it so."""
    tensor = constants[buffer["constant"]]
    if "packing" not in buffer:
        return _aligned(tensor)
    return _packing(buffer).apply(tensor).view(-1)


def _packing(buffer: Record) -> Packing:
    written: dict[str, Any] = buffer["packing"]
    fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in written.items()}
    return Packing(**fields)


@dataclass(frozen=True)
class PackedConstant:
    """A constant that is there only as ``row``, which has it packed."""

    row: Tensor
    packing: Packing
    shape: tuple[int, ...]
    dtype: torch.dtype

    def original(self) -> Tensor:
        return self.packing.undo(self.row, self.shape, self.dtype)


def packed_constants(
    record: Record, program: LoadedProgram, constants: Mapping[str, Tensor]
) -> dict[str, PackedConstant]:
    """The constants that calls read packed and in no other way, by name."""
    found: dict[str, PackedConstant] = {}
    plain: set[str] = set()
    for number, row in program.constants.items():
        buffer = record["buffers"][number]
        name = buffer["constant"]
        if "packing" not in buffer:
            plain.add(name)
            continue
        tensor = constants[name]
        found[name] = PackedConstant(row, _packing(buffer), tuple(tensor.shape), tensor.dtype)
    return {name: each for name, each in found.items() if name not in plain}


def _aligned(tensor: Tensor) -> Tensor:
    """``tensor`` as one row; itself where its memory will do."""
    is_plain = tensor.is_contiguous() and not tensor.is_neg() and tensor.data_ptr() % ALIGNMENT == 0
    return tensor.view(-1) if is_plain else copied_row(tensor)


def copied_row(tensor: Tensor) -> Tensor:
    """A copy of ``tensor`` as one aligned row of elements."""
    plain = tensor.detach()
    copy = torch.empty(plain.shape, dtype=plain.dtype, device="cpu")
    return copy.copy_(plain.resolve_neg()).view(-1)
