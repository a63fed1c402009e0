"""What a back end is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from regraft.ir import Constant, Dim, DType, Function, Op, Value
from regraft.runtime import Executable
from regraft.timing import Measured


class ConstantStore(Protocol):
    """Gives back ends the values of constants, evaluated when first asked for and kept once."""

    def tensor(self, constant: Constant) -> Any:
        """The value as a torch tensor: a leaf's own storage, or a recipe's result."""
        ...

    def name(self, constant: Constant) -> str:
        """A name that is unique in this compile and stable between compiles of equal models."""
        ...


class KernelTimes(Protocol):
    """Measured times of one back end's kernels on this machine, kept between processes."""

    def record(self, signature: str, forms: Sequence[str], measured: Measured) -> None:
        """Keep the times of all ``forms`` of a kernel, in the place of earlier ones."""
        ...

    def times(self, signature: str) -> Mapping[int, Mapping[str, tuple[float, float]]]:
        """Number of rows -> form -> microseconds and the relative noise of measuring."""
        ...

    def written(self, signature: str) -> Mapping[int, float]:
        """Number of rows -> when the oldest of its times was measured, by ``time.time``."""
        ...

    @property
    def recent(self) -> KernelTimes:
        """The same times without those that are to be measured again."""
        ...


def _untold(note: str) -> None:
    pass


@dataclass(frozen=True)
class KernelTuning:
    """What a back end chooses between kernels of its own by.

    Fields:
        times: back end -> what was measured of it; none where nothing is kept.
        deadline: what is not known is measured until then, by ``time.perf_counter``; None measures nothing.
        rows: the numbers of rows to measure at where sizes vary; none leaves it to the back end.
        tell: hears what the user should know.
        again: what is known is measured again, and new times take the place of all that were known at the
            same number of rows.
        measuring: made and entered around all that is measured.
    """

    times: Mapping[str, KernelTimes] = field(default_factory=dict[str, KernelTimes])
    deadline: float | None = None
    rows: Sequence[int] = ()
    tell: Callable[[str], None] = _untold
    again: bool = False
    measuring: Callable[[], AbstractContextManager[object]] = nullcontext


class CodeStore(Protocol):
    """Keeps machine code between processes."""

    def read(self, key: str) -> bytes | None:
        """What was kept under ``key``, which says all that it was built of; None where that is not whole."""
        ...

    def write(self, key: str, content: bytes) -> str | None:
        """Keep ``content``; why it cannot be kept, or None."""
        ...


@dataclass(frozen=True)
class LowerOptions:
    """Options that reach every back end.

    Fields:
        threads: worker threads; None lets the library choose (one per core).
        portable: for back ends that make machine code: makes the executable of the function they were given
            that stands in where the code may not or cannot run (``NativeCode``). None where nobody saves.
        tuning: for back ends that have several kernels for one computation.
        code: for back ends that make machine code; None where none is kept.
    """

    threads: int | None = None
    portable: Callable[[Function], Executable] | None = None
    tuning: KernelTuning = field(default_factory=KernelTuning)
    code: CodeStore | None = None


class Backend(Protocol):
    """Turns functions into executables.

    A back end is a class without arguments. ``supports`` must be true to ``lower``: a function all
    of whose ops are supported is lowered, not refused. One that measures kernels of its own has an attribute
    ``tunes_kernels``, which is true. One may have a method ``claims(op)``: whether it does ``op`` in a way
    that others have nothing like. Such an op is lowered there, wherever it stands in the user's list, unless
    times that were measured say otherwise.
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


class OnnxEmitter(Protocol):
    """What a lowering ``(emitter, op)`` of a user's op to ONNX writes its nodes with.

    It returns the ONNX value of each result of ``op``, or the value itself when there is one. Values
    of f16 and bf16 are f32 here: they are rounded where they enter and leave a model.
    """

    def operand(self, op: Op, name: str) -> Any:
        """The ONNX value of an operand of ``op``."""
        ...

    def optional(self, op: Op, name: str) -> Any | None:
        """The same for an operand that may be absent."""
        ...

    def get(self, value: Value) -> Any:
        """The ONNX value of a value, such as one of ``op.variadic(name)``."""
        ...

    def op(self, op_type: str, *inputs: Any, domain: str = "", **attrs: Any) -> Any:
        """A node with one output. A domain of the user's own is the one that ``OpDef.onnx`` names."""
        ...

    def ops(self, op_type: str, count: int, *inputs: Any, domain: str = "", **attrs: Any) -> Sequence[Any]:
        """A node with ``count`` outputs."""
        ...

    def scalar(self, value: Any, dtype: DType) -> Any:
        """A constant of rank 0."""
        ...

    def ints(self, *values: int) -> Any:
        """A constant vector of i64."""
        ...

    def shape(self, dims: Sequence[Dim]) -> Any:
        """Sizes, symbolic ones too, as a vector of i64."""
        ...

    def cast(self, value: Any, source: DType, to: DType) -> Any:
        """``value``, which has the type ``source``, as ``to``."""
        ...


@runtime_checkable
class FileExporter(Protocol):
    """A back end that can also write a whole function as a file for others to run."""

    name: str

    def supports(self, op: Op) -> str | None: ...

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> Executable: ...

    def can_write(self, op: Op) -> str | None:
        """None when ``op`` can be written to a file, whoever is to run it, else the reason why not."""
        ...

    def export_file(
        self,
        function: Function,
        store: ConstantStore,
        path: Path,
        *,
        opset: int | None,
        contrib: bool,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        size_names: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """Write ``function`` to ``path``, whole or not at all; what was written is described.

        Symbols have the names of ``size_names`` in it, and it says of itself what ``metadata`` has.

        Raises:
            OptionError: ``path`` cannot be written, or ``opset`` is not one that can be emitted.
        """
        ...

    def argument_names(self, function: Function) -> list[str]:
        """The names of the arguments in a file."""
        ...

    def plan_runner(self) -> str:
        """The source of a script that runs a folder of files by a plan, as ``export_plan`` writes it."""
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
