"""Several functions in one artefact: each has names of its own for tensors and files that all share.

A tensor is stored once, however many functions have it and whatever they call it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from regraft.runtime.added import Added
from regraft.runtime.executable import ArtefactReader


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor is and how it is read: equal for two tensors that always have equal values."""
    return (
        tensor.data_ptr(),
        tuple(tensor.shape),
        tuple(tensor.stride()),
        tensor.dtype,
        tensor.device,
        tensor.is_conj(),
        tensor.is_neg(),
    )


class FolderWriter(Protocol):
    """Writes into the artefact's folder."""

    def add_new(self, name: str, tensor: Tensor) -> str:
        """Store a tensor under a name that no other has, ``name`` or one like it."""
        ...

    def add_file(self, name: str, content: bytes) -> None: ...


class Shelf:
    """What the functions of an artefact store, each tensor and each file once.

    Constants never change, so those with equal values are one: weights that functions have in common, and
    what each of them has computed from such by the same recipe. State changes, so one is another's only when
    both are one tensor.
    """

    def __init__(self, writer: FolderWriter) -> None:
        self._writer = writer
        self._seen: list[Tensor] = []  # A place means something only as long as its tensor lives.
        self._constants: dict[tuple[Any, ...], str] = {}
        self._values: dict[tuple[Any, ...], str] = {}
        self._states: dict[tuple[Any, ...], str] = {}
        self._files: dict[bytes, str] = {}

    def constant(self, name: str, tensor: Tensor) -> str:
        """The name that the constant ``name`` is stored under."""
        where = place(tensor)
        if where not in self._constants:
            self._seen.append(tensor)
            self._constants[where] = self._of_value(name, tensor)
        return self._constants[where]

    def state(self, name: str, tensor: Tensor, value: Tensor) -> str:
        """The name that the state ``tensor`` is stored under; its value is ``value``."""
        where = place(tensor)
        if where not in self._states:
            self._seen.append(tensor)
            self._states[where] = self._writer.add_new(name, value)
        return self._states[where]

    def file(self, name: str, content: bytes) -> str:
        """The name that a file is stored under; ``name`` must be of this file alone."""
        digest = hashlib.sha256(content).digest()
        if digest not in self._files:
            self._writer.add_file(name, content)
            self._files[digest] = name
        return self._files[digest]

    def _of_value(self, name: str, tensor: Tensor) -> str:
        whole = tensor.detach().resolve_conj().resolve_neg().contiguous()
        value = (whole.dtype, tuple(whole.shape), _digest(whole))
        if value not in self._values:
            self._values[value] = self._writer.add_new(name, whole)
        return self._values[value]


def _digest(whole: Tensor) -> bytes:
    elements = whole.cpu().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(elements.data if elements.size else b"").digest()


@dataclass(frozen=True)
class FunctionWriter:
    """What one function writes to a shelf.

    Fields:
        tensors: its names of constants -> those they are stored under.
        files: the same of its files.
    """

    function: str
    shelf: Shelf
    tensors: dict[str, str] = field(default_factory=dict[str, str])
    files: dict[str, str] = field(default_factory=dict[str, str])

    def add_tensor(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = self.shelf.constant(name, tensor)

    def add_state(self, name: str, tensor: Tensor, value: Tensor) -> str:
        """The name that the state ``tensor``, whose value is ``value``, is stored under for all functions."""
        return self.shelf.state(name, tensor, value)

    def add_file(self, name: str, content: bytes) -> None:
        self.files[name] = self.shelf.file(f"{self.function}.{name}", content)


class FolderReader(ArtefactReader, Protocol):
    """Reads the files of a folder."""

    folder: Path
    added: Added

    def state(self, name: str) -> Tensor: ...


class FunctionReader:
    """Reads what a ``FunctionWriter`` wrote; two functions get the same tensor where they share one.

    A name that the function has not written is a KeyError.
    """

    def __init__(self, reader: FolderReader, tensors: Mapping[str, str], files: Mapping[str, str]) -> None:
        self.folder, self.added = reader.folder, reader.added
        self._reader, self._tensors, self._files = reader, tensors, files

    def tensor(self, name: str) -> Tensor:
        return self._reader.tensor(self._tensors[name])

    def state(self, name: str) -> Tensor:
        return self._reader.state(name)

    def file(self, name: str) -> bytes:
        return self._reader.file(self._files[name])

    def library(self, domain: str) -> str:
        return self._reader.library(domain)
