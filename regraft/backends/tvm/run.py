"""Runs programs of TVM kernels. An artefact needs this file and its siblings that import no compiler."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from regraft.backends.tvm.arena import ALIGNMENT
from regraft.backends.tvm.binding import Binding
from regraft.backends.tvm.library import run_kernels
from regraft.backends.tvm.loaded import LoadedProgram, Record, Sizes, copied_row, packed_constants
from regraft.backends.tvm.table import VERSION
from regraft.errors import ArtefactError, BackendError
from regraft.runtime import ArtefactReader, ArtefactWriter, Bound, Executable, NativeCode, ResultMemory

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
        self._program = LoadedProgram.of(program, library, held)
        packed = packed_constants(program, self._program, held)
        self._packed = {name: each for name, each in packed.items() if name in own}
        self._constants = {name: tensor for name, tensor in held.items() if name not in self._packed}
        self.packed_bytes = sum(self._program.constants[number].nbytes for number in self._packings())
        self._idle: OrderedDict[tuple[tuple[str, int], ...], list[Binding]] = OrderedDict()
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
        binding = binding or Binding(self._program, sizes)
        results = self.call(binding, held, memory)
        self._give_back(key, binding, memory)
        return results

    def bind(self, inputs: Sequence[Tensor | None], keep: Sequence[bool], sizes: Sizes) -> Bound:
        """A call whose kernels have the addresses of what stays."""
        moves = [tensor is None for tensor in inputs]
        return _BoundCall(self, Binding(self._program, sizes, inputs, keep), moves)

    def call(
        self, binding: Binding, inputs: Sequence[Tensor], memories: Sequence[ResultMemory]
    ) -> list[Tensor]:
        """The results of ``binding`` for inputs that ``readable`` gave."""
        try:
            return run_kernels(lambda: binding.run(inputs, memories), self._threads)
        except Exception as error:
            raise BackendError(f"a kernel failed: {error}", backend=self.backend) from error

    def readable(self, tensor: Tensor) -> Tensor:
        """``tensor``, whose elements are in one aligned row; a copy where they are not."""
        try:
            is_aligned = tensor.data_ptr() % ALIGNMENT == 0
        except RuntimeError as error:
            raise BackendError(
                f"an argument has no memory to read, as under torch.func transforms: {error}",
                backend=self.backend,
            ) from error
        assert tensor.is_cpu, f"an argument is on {tensor.device}, expected the cpu"
        if is_aligned and tensor.is_contiguous() and not tensor.is_neg():
            return tensor
        self.copied += 1
        return copied_row(tensor)

    def _packings(self) -> list[int]:
        """The buffers that have packed weights."""
        return [n for n in self._program.constants if "packing" in self._record["buffers"][n]]

    def _take(self, key: tuple[tuple[str, int], ...]) -> tuple[Binding | None, list[ResultMemory]]:
        """What a call of these sizes has for itself: a binding, if one is there, and memory for results."""
        with self._lock:
            kept = self._idle.get(key)
            memory = (
                self._memories.pop() if self._memories else [ResultMemory() for _ in self._program.results]
            )
            return kept.pop() if kept else None, memory

    def _give_back(
        self, key: tuple[tuple[str, int], ...], binding: Binding, memory: list[ResultMemory]
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
            "steps": VERSION,
        }


def refusal(record: Record) -> str | None:
    """Why the machine code of what ``save`` wrote is not run; None where it is."""
    if record.get("steps") == VERSION:
        return None
    return "native code ('tvm') is that of another version of regraft; compile the model again for it"


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


class _BoundCall:
    """A binding for one caller, with memory of its own for the results."""

    def __init__(
        self,
        executable: TvmExecutable,
        binding: Binding,
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
