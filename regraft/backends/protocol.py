"""What a back end is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from regraft.ir import Constant, Function, Op
from regraft.runtime import Executable


class ConstantStore(Protocol):
    """Gives back ends the values of constants, evaluated when first asked for and kept once."""

    def tensor(self, constant: Constant) -> Any:
        """The value as a torch tensor: a leaf's own storage, or a recipe's result."""
        ...

    def name(self, constant: Constant) -> str:
        """A name that is unique in this compile and stable between compiles of equal models."""
        ...


@dataclass(frozen=True)
class LowerOptions:
    """Options that reach every back end.

    Fields:
        threads: worker threads; None lets the library choose (one per core).
    """

    threads: int | None = None


class Backend(Protocol):
    """Turns functions into executables.

    A back end is a class without arguments. ``supports`` must be true to ``lower``: a function all
    of whose ops are supported is lowered, not refused.
    """

    name: str

    def supports(self, op: Op) -> str | None:
        """None when ``op`` can be lowered, else the reason why not, for the user."""
        ...

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> Executable:
        """Compile ``function``, whose ops are all supported.

        Raises:
            BackendError: the library refused what ``supports`` promised.
        """
        ...


@runtime_checkable
class FileExporter(Protocol):
    """A back end that can also write a whole function as a file for others to run."""

    name: str

    def supports(self, op: Op) -> str | None: ...

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> Executable: ...

    def export_file(
        self,
        function: Function,
        store: ConstantStore,
        path: Path,
        *,
        opset: int | None,
        contrib: bool,
        output_names: Sequence[str] | None,
    ) -> Any:
        """Write ``function`` to ``path``, whole or not at all; what was written is described.

        Raises:
            OptionError: ``path`` cannot be written, or ``opset`` is not one that can be emitted.
        """
        ...


class OpenFile(Protocol):
    """A file that is ready to run."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs, in order."""
        ...

    def bind(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """A call on these inputs, given in order."""
        ...


@runtime_checkable
class FileRunner(Protocol):
    """A back end whose library can also run files that others wrote, to compare with."""

    def open_file(self, path: Path, options: LowerOptions) -> OpenFile:
        """The file at ``path`` as the library runs it by default.

        Raises:
            BackendError: the library refuses it.
        """
        ...
