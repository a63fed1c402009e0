"""Runs programs of TVM kernels. An artefact needs this file and its siblings that import no compiler.

A program is JSON: ``buffers``, flat pieces of memory with an element type and a size that may depend on the
symbols; ``calls``, each with the name of a kernel, the buffers that it reads and writes, the symbols whose
values it takes, and where it sees buffers otherwise than as a row, their ``shapes`` and element types
(``views``); ``results``, buffers in a shape. A buffer is an ``input``, a ``constant``, what a ``result`` is
made in, or scratch.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regraft.backends.tvm.arena import ALIGNMENT, Life, placed
from regraft.backends.tvm.library import load as load_library
from regraft.backends.tvm.library import runtime, use_threads
from regraft.backends.tvm.packing import Packing
from regraft.errors import ArtefactError, BackendError
from regraft.runtime import (
    TORCH_DTYPES,
    ArtefactReader,
    ArtefactWriter,
    Bound,
    Executable,
    NativeCode,
    ResultMemory,
    compile_dim,
    lasting,
)

Record = Mapping[str, Any]
Sizes = Mapping[str, int]

#: Combinations of sizes whose memory is kept for the next call.
_KEPT = 8


class TvmExecutable:
    """A program, its kernels and its constants.

    Fields:
        copied: how many arguments were copied so far, because they were not contiguous or not aligned.
        packed_bytes: of the packed weights.
        kernels: what a report says of each kernel of a template; its ``text`` is for people.
        portable: makes the same without machine code; None where nobody has said how.
    """

    backend = "tvm"

    def __init__(
        self,
        program: Record,
        library: bytes | None,
        constants: Mapping[str, Tensor],
        *,
        features: frozenset[str],
        own: frozenset[str],
        threads: int | None = None,
        portable: Callable[[], Executable] | None = None,
        kernels: Sequence[Record] = (),
    ) -> None:
        """Load the kernels of ``program`` from ``library``, a shared object.

        ``features`` are what the kernels need of a CPU; ``portable()`` makes the same without machine code.
        Constants in ``own`` are nobody else's: those that kernels read packed alone are not kept as they are.

        Raises:
            BackendError: the library, or TVM's runtime, cannot be loaded.
        """
        self.copied = 0
        self.kernels = tuple(kernels)
        self._record, self._library, self._threads = program, library, threads
        self._features, self.portable = features, portable
        self._names = tuple(constants)
        held = {name: tensor.detach() for name, tensor in constants.items()}
        self._program = _Program.of(program, library, held)
        packed = _packed(program, self._program, held)
        self._packed = {name: each for name, each in packed.items() if name in own}
        self._constants = {name: tensor for name, tensor in held.items() if name not in self._packed}
        self.packed_bytes = sum(self._program.constants[number].nbytes for number in self._packings())
        self._idle: OrderedDict[tuple[tuple[str, int], ...], list[_Binding]] = OrderedDict()
        self._memories: list[list[ResultMemory]] = []
        self._lock = threading.Lock()

    @property
    def native(self) -> NativeCode | None:
        """What the kernels need, and the form for who cannot or may not run them."""
        return None if self.portable is None else NativeCode(self._features, self.portable())

    def run(self, inputs: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The results for ``inputs``. Calls at once have memory of their own.

        Raises:
            BackendError: an input has no memory, or a kernel failed, as on an index out of range.
        """
        held = [self.readable(tensor) for tensor in inputs]
        key = tuple(sizes.items())
        binding, memory = self._take(key)
        binding = binding or _Binding(self._program, sizes)
        results = self.call(binding, held, memory)
        self._give_back(key, binding, memory)
        return results

    def bind(self, inputs: Sequence[Tensor | None], keep: Sequence[bool], sizes: Sizes) -> Bound:
        """A call whose kernels have the addresses of what stays."""
        rows = [None if tensor is None else tensor.view(-1) for tensor in inputs]
        return _BoundCall(
            self, _Binding(self._program, sizes, rows, keep), [tensor is None for tensor in inputs]
        )

    def call(
        self, binding: _Binding, rows: Sequence[Tensor], memories: Sequence[ResultMemory]
    ) -> list[Tensor]:
        """The results of ``binding`` for inputs that ``readable`` gave."""
        use_threads(self._threads)
        try:
            return binding.run(rows, memories)
        except Exception as error:
            raise BackendError(f"a kernel failed: {error}", backend=self.backend) from error

    def readable(self, tensor: Tensor) -> Tensor:
        """``tensor`` as one aligned row of elements; a copy where it is not one."""
        try:
            is_aligned = tensor.data_ptr() % ALIGNMENT == 0
        except RuntimeError as error:
            raise BackendError(
                f"an argument has no memory to read, as under torch.func transforms: {error}",
                backend=self.backend,
            ) from error
        assert tensor.is_cpu, f"an argument is on {tensor.device}, expected the cpu"
        if not tensor.numel():  # whatever its strides are
            return torch.empty(0, dtype=tensor.dtype, device="cpu")
        if is_aligned and tensor.is_contiguous() and not tensor.is_neg():
            return tensor.detach().view(-1)
        self.copied += 1
        return _copy(tensor)

    def _packings(self) -> list[int]:
        """The buffers that have packed weights."""
        return [n for n in self._program.constants if "packing" in self._record["buffers"][n]]

    def _take(self, key: tuple[tuple[str, int], ...]) -> tuple[_Binding | None, list[ResultMemory]]:
        """What a call of these sizes has for itself: a binding, if one is there, and memory for results."""
        with self._lock:
            kept = self._idle.get(key)
            memory = (
                self._memories.pop() if self._memories else [ResultMemory() for _ in self._program.results]
            )
            return kept.pop() if kept else None, memory

    def _give_back(
        self, key: tuple[tuple[str, int], ...], binding: _Binding, memory: list[ResultMemory]
    ) -> None:
        with self._lock:
            self._memories.append(memory)
            self._idle.setdefault(key, []).append(binding)
            self._idle.move_to_end(key)
            if len(self._idle) > _KEPT:
                self._idle.popitem(last=False)

    def save(self, writer: ArtefactWriter) -> dict[str, Any]:
        """The program, and its kernels as a file; the constants go to ``writer`` under their names."""
        held = self._constants | {name: each.original() for name, each in self._packed.items()}
        constants = {name: held[name] for name in self._names}
        for name, tensor in constants.items():
            writer.add_tensor(name, tensor)
        file = None
        if self._library is not None:
            file = f"{hashlib.sha256(self._library).hexdigest()[:16]}.so"
            writer.add_file(file, self._library)
        return {
            "program": self._record,
            "library": file,
            "constants": list(constants),
            "threads": self._threads,
            "features": sorted(self._features),
        }


def load(record: Record, reader: ArtefactReader) -> TvmExecutable:
    """The executable that ``save`` wrote.

    Raises:
        ArtefactError: its kernels, or TVM's runtime, cannot be loaded here.
    """
    constants = {name: reader.tensor(name) for name in record["constants"]}
    library = None if record["library"] is None else reader.file(record["library"])
    try:
        return TvmExecutable(
            record["program"],
            library,
            constants,
            features=frozenset(record["features"]),
            own=frozenset(constants),
            threads=record["threads"],
        )
    except BackendError as error:
        raise ArtefactError(str(error), path=str(record["library"])) from error


def _copy(tensor: Tensor) -> Tensor:
    plain = tensor.detach()
    copy = torch.empty(plain.shape, dtype=plain.dtype, device="cpu")
    return copy.copy_(plain.resolve_neg()).view(-1)


# -- programs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Buffer:
    dtype: torch.dtype
    size: Callable[[Sizes], int]
    """Elements."""
    life: tuple[int, int]
    """The calls between which it is in use."""


@dataclass(frozen=True)
class _Call:
    function: Any
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    symbols: tuple[str, ...]
    shapes: tuple[tuple[Callable[[Sizes], int], ...], ...] | None
    """Of the buffers, where the kernel takes more of them than a row."""
    views: tuple[torch.dtype | None, ...]
    """What the kernel sees the elements of each buffer as, where that is another type than the buffer's."""


@dataclass(frozen=True)
class _Result:
    """A result: the buffer that holds it, its shape, and whether the call hands out a copy."""

    buffer: int
    shape: tuple[Callable[[Sizes], int], ...]
    is_copy: bool


@dataclass(frozen=True)
class _Program:
    """A program, ready to be bound to memory.

    Fields:
        inputs: input -> its buffer.
        constants: buffer -> the constant in it, held by whoever has the program.
        scratch: the buffers that calls share an arena for.
    """

    buffers: tuple[_Buffer, ...]
    calls: tuple[_Call, ...]
    results: tuple[_Result, ...]
    inputs: Mapping[int, int]
    constants: Mapping[int, Tensor]
    scratch: tuple[int, ...]
    module: Any = field(repr=False)

    @staticmethod
    def of(record: Record, library: bytes | None, constants: Mapping[str, Tensor]) -> _Program:
        module: Any = {} if library is None else load_library(library)
        calls = tuple(
            _Call(
                module[c["kernel"]],
                tuple(c["reads"]),
                tuple(c["writes"]),
                tuple(c["symbols"]),
                tuple(tuple(map(_size, shape)) for shape in c["shapes"]) if "shapes" in c else None,
                _views(c),
            )
            for c in record["calls"]
        )
        buffers = record["buffers"]
        owners = {b["result"]: number for number, b in enumerate(buffers) if "result" in b}
        results = tuple(
            _Result(r["buffer"], tuple(map(_size, r["shape"])), owners.get(number) != r["buffer"])
            for number, r in enumerate(record["results"])
        )
        lives = _lives(len(buffers), calls)
        used = {n for n, life in enumerate(lives) if life[0] <= life[1]} | {r.buffer for r in results}
        return _Program(
            tuple(
                _Buffer(TORCH_DTYPES[b["dtype"]], _size(b["size"]), lives[number])
                for number, b in enumerate(buffers)
            ),
            calls,
            results,
            {b["input"]: number for number, b in enumerate(buffers) if "input" in b},
            {n: _constant(b, constants) for n, b in enumerate(buffers) if "constant" in b and n in used},
            tuple(n for n, b in enumerate(buffers) if not {"input", "constant", "result"} & set(b)),
            module,
        )


def _views(call: Record) -> tuple[torch.dtype | None, ...]:
    count = len(call["reads"]) + len(call["writes"])
    names: Sequence[str | None] = call.get("views", [None] * count)
    return tuple(None if name is None else _VIEWS[name] for name in names)


#: The types that kernels may see elements as: the bits of bf16, and pairs of bf16.
_VIEWS = {"uint16": torch.uint16, "int32": torch.int32}


def _size(text: str | int) -> Callable[[Sizes], int]:
    return compile_dim(int(text) if isinstance(text, str) and text.isdigit() else text)


def _lives(count: int, calls: Sequence[_Call]) -> list[tuple[int, int]]:
    """The first and the last call that has each buffer."""
    lives = [(len(calls), -1)] * count
    for number, call in enumerate(calls):
        for buffer in (*call.reads, *call.writes):
            lives[buffer] = min(lives[buffer][0], number), max(lives[buffer][1], number)
    return lives


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
class _Packed:
    """A constant that is there only as ``row``, which has it packed."""

    row: Tensor
    packing: Packing
    shape: tuple[int, ...]
    dtype: torch.dtype

    def original(self) -> Tensor:
        return self.packing.undo(self.row, self.shape, self.dtype)


def _packed(record: Record, program: _Program, constants: Mapping[str, Tensor]) -> dict[str, _Packed]:
    """The constants that calls read packed and in no other way, by name."""
    found: dict[str, _Packed] = {}
    plain: set[str] = set()
    for number, row in program.constants.items():
        buffer = record["buffers"][number]
        name = buffer["constant"]
        if "packing" not in buffer:
            plain.add(name)
            continue
        tensor = constants[name]
        found[name] = _Packed(row, _packing(buffer), tuple(tensor.shape), tensor.dtype)
    return {name: each for name, each in found.items() if name not in plain}


def _aligned(tensor: Tensor) -> Tensor:
    """``tensor`` as one row; itself where its memory will do."""
    is_plain = tensor.is_contiguous() and not tensor.is_neg() and tensor.data_ptr() % ALIGNMENT == 0
    return tensor.view(-1) if is_plain else _copy(tensor)


class _Binding:
    """A program over memory for one combination of sizes; one call at a time has it.

    The arguments of every kernel are there already, but for those that change from call to call: the
    arguments and results of the model that do not stay where they are, whose places in them are kept.
    """

    def __init__(
        self,
        program: _Program,
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
        self._calls: list[tuple[Any, list[Any]]] = []
        self._open: list[tuple[int, list[Any], int, _Seen]] = []
        for call in program.calls:
            if any(counts[n] for n in call.writes or call.reads):  # a kernel of no element computes nothing
                self._calls.append((call.function, self._arguments(call, memory, sizes)))

    def _arguments(self, call: _Call, memory: Mapping[int, Tensor], sizes: Sizes) -> list[Any]:
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
        for function, arguments in self._calls:
            function(*arguments)
        for number in self._copies:
            buffer = program.results[number].buffer
            source = given.get(buffer, self._stay.get(buffer, program.constants.get(buffer)))
            assert source is not None, "a result is copied from scratch memory"
            made[number].view(-1).copy_(source)
        self._forget()
        return made

    def _forget(self) -> None:
        """Let arguments and results go, which the caller owns."""
        for _, arguments, place, _ in self._open:
            arguments[place] = None


def _kept(
    program: _Program, shapes: Sequence[tuple[int, ...]], keep: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Memory for the results that stay."""
    return tuple(
        lasting(shape, program.buffers[result.buffer].dtype) if may_stay else None
        for result, shape, may_stay in zip(program.results, shapes, keep, strict=True)
    )


def _staying(
    program: _Program, inputs: Sequence[Tensor | None], kept: Sequence[Tensor | None]
) -> dict[int, Tensor]:
    """Buffer -> its row, of the arguments and results that stay."""
    stay = {program.inputs[number]: row for number, row in enumerate(inputs) if row is not None}
    for result, tensor in zip(program.results, kept, strict=True):
        if tensor is not None and not result.is_copy:
            stay[result.buffer] = tensor.view(-1)
    return stay


class _BoundCall:
    """A binding for one caller, with memory of its own for the results."""

    def __init__(
        self,
        executable: TvmExecutable,
        binding: _Binding,
        moves: Sequence[bool],
    ) -> None:
        """``moves`` says of the inputs which come with a call."""
        self._executable, self._binding, self._moves = executable, binding, moves
        self._memories = [ResultMemory() for _ in binding.kept]
        self.kept = binding.kept

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """As ``TvmExecutable.run``."""
        executable = self._executable
        held = [
            executable.readable(tensor) if moves else tensor
            for tensor, moves in zip(inputs, self._moves, strict=True)
        ]
        return executable.call(self._binding, held, self._memories)


@dataclass(frozen=True)
class _Seen:
    """How a kernel sees a row of elements: in a shape, or as elements of another type."""

    shape: tuple[int, ...] | None
    view: torch.dtype | None

    def of(self, row: Tensor) -> Tensor:
        row = row if self.view is None or row.dtype == self.view else row.view(self.view)
        return row if self.shape is None else row.view(self.shape)


def _arena(program: _Program, counts: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
    """The memory of one call's scratch buffers, and each of them in it."""
    lives = [
        Life(n, counts[n] * program.buffers[n].dtype.itemsize, *program.buffers[n].life)
        for n in program.scratch
    ]
    offsets, total = placed(lives)
    arena = torch.empty(max(total, ALIGNMENT), dtype=torch.uint8, device="cpu")
    return arena, dict(_pieces(program, counts, offsets, arena))


def _pieces(
    program: _Program, counts: Sequence[int], offsets: Mapping[int, int], arena: Tensor
) -> Iterator[tuple[int, Tensor]]:
    for number, offset in offsets.items():
        dtype = program.buffers[number].dtype
        yield number, arena[offset : offset + counts[number] * dtype.itemsize].view(dtype)
