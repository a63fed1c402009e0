"""What the runtime asks of compiled code, and what saving and loading asks of storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

HOST = "host"
"""The name of the executables that are a plan's own control flow."""


class ArtefactWriter(Protocol):
    """Collects the files of an artefact."""

    def add_tensor(self, name: str, tensor: Tensor) -> None:
        """Store a constant under ``name``; a name may be added again with the same tensor."""
        ...

    def add_file(self, name: str, content: bytes) -> None: ...


class ArtefactReader(Protocol):
    """Reads the files of an artefact, their hashes checked."""

    def tensor(self, name: str) -> Tensor: ...
    def file(self, name: str) -> bytes: ...

    def library(self, domain: str) -> str:
        """The library with ONNX Runtime kernels for ``domain``, of the plug-ins that the loader named.

        Raises:
            ArtefactError: none of them has one. The artefact itself never says what to load.
        """
        ...


@dataclass(frozen=True)
class NativeCode:
    """What an executable that is machine code says of itself, as its attribute ``native``.

    Fields:
        features: the CPU features it needs, named as ``cpu_features`` does.
        portable: the same computation without machine code, for other CPUs and for who does not trust it.
    """

    features: frozenset[str]
    portable: Executable


class Executable(Protocol):
    """A lowered piece of a model. One that is machine code has an attribute ``native: NativeCode``.

    Further attributes go into reports where they are there: ``kernels`` (JSON, with a ``text`` each),
    ``packed_bytes`` and ``copied``, how many arguments it has copied so far.

    ``run`` must be safe to call from several threads at once. Its results are fresh tensors: never
    arguments, constants or views of them, and part of no graph of gradients, whatever the grad mode.
    """

    backend: str

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """Compute the results for ``inputs``; ``sizes`` gives every symbol's value in this call."""
        ...

    def save(self, writer: ArtefactWriter) -> dict[str, Any]:
        """A JSON record from which the back end's ``run.load(record, reader)`` rebuilds this.

        Raises:
            BackendError: it holds something that cannot be saved, such as a Python function.
        """
        ...


class Bound(Protocol):
    """A call that is prepared, for one caller at a time.

    Fields:
        kept: for each result the tensor that every run writes it to, small, contiguous and aligned as torch
            aligns new memory; None for a result that is a fresh tensor each time.
    """

    @property
    def kept(self) -> Sequence[Tensor | None]: ...

    def run(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The results for ``inputs``, of which those that stay must be those ``bind`` was given."""
        ...


@runtime_checkable
class Bindable(Executable, Protocol):
    """An executable that looks up once what does not change from call to call."""

    def bind(self, inputs: Sequence[Tensor | None], keep: Sequence[bool], sizes: Mapping[str, int]) -> Bound:
        """A call for ``sizes``.

        ``inputs`` are those that stay where they are, ``kept`` of other calls; None for others. ``keep``
        says which results may stay at one place.
        """
        ...
