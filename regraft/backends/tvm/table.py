"""The steps of a program as words of 64 bits, which ``steps.c`` runs without Python between kernels.

Structs of the C ABIs of tvm-ffi (``TVMFFIAny``) and DLPack (``DLTensor``) are among the words, as kernels
take them.
"""

from __future__ import annotations

import ctypes
import struct
import weakref
from _ctypes import dlclose
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

#: What runs the steps, compiled into each program's library.
SOURCE = Path(__file__).with_name("steps.c")
_SYMBOL = "regraft_run_steps"
#: Of the layout of steps. Another one has another number: a saved library runs no other.
VERSION = 1
#: What tvm-ffi puts before the names of kernels.
_PREFIX = "__tvm_ffi_"

_CALL, _BRANCH, _COPY = 0, 1, 2
_WORD = 8
#: kTVMFFIInt and kTVMFFIDLTensorPtr of tvm-ffi.
_INTEGER, _TENSOR = 1, 7
#: kDLCPU, device 0.
_CPU = 1
#: Type -> DLPack's code and bits.
_CODES = {
    torch.int8: (0, 8),
    torch.int16: (0, 16),
    torch.int32: (0, 32),
    torch.int64: (0, 64),
    torch.uint8: (1, 8),
    torch.uint16: (1, 16),
    torch.float16: (2, 16),
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.bfloat16: (4, 16),
    torch.bool: (6, 8),
}


class StepLibrary:
    """The addresses of kernels in a shared object, and what runs steps there."""

    def __init__(self, path: str) -> None:
        """Raises:
        OSError: it cannot be loaded.
        AttributeError: it has no code to run steps.
        """
        self._library = ctypes.CDLL(path)
        weakref.finalize(self, dlclose, self._library._handle)
        self.run: Any = getattr(self._library, _SYMBOL)
        """From the addresses of the first step and of the end, to that of the step that failed, or None."""
        self.run.argtypes, self.run.restype = (ctypes.c_void_p, ctypes.c_void_p), ctypes.c_void_p

    def address(self, kernel: str) -> int:
        """Raises:
        AttributeError: there is no such kernel.
        """
        return ctypes.cast(getattr(self._library, _PREFIX + kernel), ctypes.c_void_p).value or 0


@dataclass(frozen=True)
class Argument:
    """What a kernel sees of a buffer."""

    buffer: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Here:
    """The address of another word of the table."""

    place: int


@dataclass(frozen=True)
class _Address:
    """Where a buffer lies."""

    buffer: int


@dataclass
class TableBuilder:
    """Lays steps out one behind the other, each with all that its kernel reads of it: few lines of memory."""

    words: list[int | _Here | _Address] = field(default_factory=list[int | _Here | _Address])

    def __len__(self) -> int:
        return len(self.words)

    def call(self, kernel: int, arguments: Sequence[Argument], numbers: Sequence[int]) -> None:
        """A call of the kernel at an address, with buffers and then integers."""
        first = len(self.words)
        tensors = first + 4 + 2 * (len(arguments) + len(numbers))
        self.words += [_CALL, 0, kernel, len(arguments) + len(numbers)]
        laid_out: list[int | _Here | _Address] = []
        for each in arguments:
            self.words += [_TENSOR, _Here(tensors + len(laid_out))]
            laid_out += _tensor(each, tensors + len(laid_out))
        for number in numbers:
            self.words += [_INTEGER, number]
        self.words += laid_out
        self.words[first + 1] = len(self.words) - first

    def branch(self, pred: int) -> int:
        """A condition on the bool in ``pred``; its number, for ``otherwise`` and ``end``.

        The steps where it holds come next, then ``otherwise`` and those where it does not, and ``end``.
        """
        self.words += [_BRANCH, 0, _Address(pred), 0]
        return len(self.words) - 4

    def otherwise(self, branch: int) -> None:
        self.words[branch + 3] = len(self.words) - branch - 4

    def end(self, branch: int) -> None:
        self.words[branch + 1] = len(self.words) - branch

    def copy(self, source: int, target: int, size: int) -> None:
        """A copy of ``size`` bytes."""
        self.words += [_COPY, 5, _Address(source), _Address(target), size]


def _tensor(argument: Argument, place: int) -> list[int | _Here | _Address]:
    """A ``DLTensor`` at ``place``, contiguous, and its shape behind it."""
    code, bits = _CODES[argument.dtype]
    (kind,) = struct.unpack("q", struct.pack("iBBH", len(argument.shape), code, bits, 1))
    return [_Address(argument.buffer), _CPU, kind, _Here(place + 6), 0, 0, *argument.shape]


class StepTable:
    """The words of a ``TableBuilder`` in memory; one call at a time has them."""

    def __init__(self, builder: TableBuilder, addresses: dict[int, int]) -> None:
        """``addresses`` are those of buffers that stay where they are."""
        words = builder.words
        memory = (ctypes.c_int64 * max(len(words), 1))()
        self._first = ctypes.addressof(memory)
        self._words = memoryview(memory).cast("B").cast("q")
        self._places: dict[int, list[int]] = {}
        for place, word in enumerate(words):
            if isinstance(word, _Address) and word.buffer not in addresses:
                self._places.setdefault(word.buffer, []).append(place)
            else:
                self._words[place] = self._resolved(word, addresses)
        self._end = self._first + _WORD * len(words)

    def _resolved(self, word: int | _Here | _Address, addresses: dict[int, int]) -> int:
        if isinstance(word, _Here):
            return self._first + _WORD * word.place
        return addresses[word.buffer] if isinstance(word, _Address) else word

    @property
    def open(self) -> frozenset[int]:
        """The buffers that are to be placed before each run."""
        return frozenset(self._places)

    def place(self, buffer: int, address: int) -> None:
        """Let ``buffer`` be at ``address`` from now on."""
        words = self._words
        for place in self._places.get(buffer, ()):
            words[place] = address

    def run(self, library: StepLibrary) -> int | None:
        """Run all steps; the word at which the one begins that failed."""
        failed = library.run(self._first, self._end)
        return None if failed is None else (failed - self._first) // _WORD
