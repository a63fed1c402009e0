"""Runs ONNX models on ONNX Runtime, without copying weights, arguments or results.

A model is protobuf bytes whose large initializers are EXTERNAL: they are bound to torch's own
storage here, so that weights exist once beside ONNX Runtime's packed form of them. (Of the two ways
to bind, ``add_initializer`` shares and ``add_external_initializers`` copies.)
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import onnxruntime
import torch
from torch import Tensor

from regraft.backends.ort.optimiser import left_off
from regraft.errors import ArtefactError, BackendError, RegraftError
from regraft.runtime import (
    LARGE,
    TORCH_DTYPES,
    ArtefactReader,
    ArtefactWriter,
    Bound,
    ResultMemory,
    byte_of,
    compile_dim,
    lasting,
    lasting_flag,
)

#: Names of element types -> ONNX's numbers for them.
ELEMENT_TYPES = {
    "f32": 1,
    "u8": 2,
    "i8": 3,
    "i16": 5,
    "i32": 6,
    "i64": 7,
    "bool": 9,
    "f16": 10,
    "f64": 11,
    "bf16": 16,
}

#: What external initializers name as their file; they are bound to tensors instead.
STAND_IN = "torch"
#: The file of those that ONNX Runtime reads in the body of a condition or loop, where it takes no tensors.
WRITTEN = "written"

#: Types that no kernel computes in: such constants are widened to f32.
_HALVES = frozenset({torch.float16, torch.bfloat16})

#: Bytes; what a page holds, since ONNX Runtime may map the file.
_ALIGNMENT = 4096

#: How many combinations of sizes an executable remembers the results' shapes of.
_REMEMBERED = 1024

#: Bytes up to which a result is sooner copied out of memory that is bound once than bound in new memory.
_COPIED = 4096

#: Bytes of constants that the file of an optimised model, one message of protobuf (2 GiB), has room for.
_ONE_MESSAGE = (1 << 31) - (1 << 26)

# Binding asks for an address even where there are no elements.
_NOTHING = torch.zeros(1, dtype=torch.int64, device="cpu")
_NOWHERE = _NOTHING.data_ptr()
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Port:
    """An input or output of a model.

    ``shape`` holds numbers or texts of sizes; None says that only the run will tell.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None = None


@dataclass(frozen=True)
class Interface:
    """How a model is called.

    Fields:
        inputs: the tensors, in order.
        outputs: the results, in order, and then one ``bool[]`` for each check.
        sizes: symbol -> the ``i64[1]`` input that takes its value.
        checks: a message for each check, raised when its output is false.
        blocked: where there are convolutions, the values that ONNX Runtime reads to change their layout.
        written: those of them that it reads from the file ``WRITTEN``, in the file's order.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sizes: Mapping[str, str]
    checks: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    written: tuple[str, ...] = ()


class OrtExecutable:
    """A session and how to call it."""

    backend = "ort"

    def __init__(
        self,
        model: bytes,
        constants: Mapping[str, Tensor],
        interface: Interface,
        threads: int | None = None,
        libraries: Mapping[str, str] | None = None,
    ) -> None:
        """Load ``model``.

        ``constants`` are the tensors of its external initializers; ``libraries`` have the kernels of its
        operators in other domains than ONNX Runtime's, by domain.

        Raises:
            BackendError: ONNX Runtime refuses the model.
        """
        self.interface = interface
        self._model = model
        self._constants = {name: plain(tensor.detach()) for name, tensor in constants.items()}
        self._threads = threads
        self._libraries = dict(libraries or {})
        # ONNX Runtime only borrows the memory: values and tensors live as long as the session.
        self._shared = {
            name: onnxruntime.OrtValue.from_dlpack(tensor)
            for name, tensor in self._constants.items()
            if tensor.dtype not in _HALVES and name not in interface.blocked
        }
        try:
            self._session = self._open()
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"ONNX Runtime refuses the model: {error}", backend=self.backend) from error
        self._inputs = [_Place.of(port) for port in interface.inputs]
        results = len(interface.outputs) - len(interface.checks)
        checks = (Port(port.name, "bool", ()) for port in interface.outputs[results:])
        self._outputs = [_Place.of(port) for port in (*interface.outputs[:results], *checks)]
        self._sizes = tuple(interface.sizes)
        self._size_inputs = [_Place.of(Port(name, "i64")) for name in interface.sizes.values()]
        self._layouts: dict[tuple[tuple[str, int], ...], _Layout] = {}
        self._idle: list[_Binding] = []

    def _open(self) -> onnxruntime.InferenceSession:
        read = [self._constants[name] for name in self.interface.blocked if name in self._constants]
        off = left_off(has_halves=any(tensor.dtype in _HALVES for tensor in read))
        copied = {
            name: _widened(tensor)
            for name, tensor in self._constants.items()
            if name not in self._shared and name not in self.interface.written
        }
        with tempfile.TemporaryDirectory() as folder:
            # A shared initializer needs a file of its size at its place, which nobody reads: a sparse one.
            with open(os.path.join(folder, STAND_IN), "wb") as file:
                file.truncate(max((2 * t.nbytes for t in self._constants.values()), default=1))
            path, optimised = os.path.join(folder, "model.onnx"), os.path.join(folder, "optimised.onnx")
            with open(path, "wb") as file:
                file.write(self._model)
            options = self._options(optimises=bool(self.interface.blocked))
            if copied:  # these ONNX Runtime copies, and frees what it packs
                values = [onnxruntime.OrtValue.from_dlpack(t) for t in copied.values()]
                options.add_external_initializers(list(copied), values)
            if self.interface.written:
                self._write(os.path.join(folder, WRITTEN))
            # What is shared stays outside of the file.
            inside = (t for name, t in self._constants.items() if name not in self._shared)
            may_join = bool(self.interface.written) and sum(4 * t.numel() for t in inside) < _ONE_MESSAGE
            if may_join:
                options.optimized_model_filepath = optimised
            session = _session(path, options, off if self.interface.blocked else None)
            if not may_join or not _joined(optimised):
                return session
            del session  # before there is another
            return _session(optimised, self._options(optimises=False))

    def _options(self, *, optimises: bool) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimises else levels.ORT_DISABLE_ALL
        options.intra_op_num_threads = self._threads or 0
        options.inter_op_num_threads = 1
        if self.interface.checks:  # as the model has them: before the kernels that would fail where they do
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.log_severity_level = 4  # what it logs as an error it raises as well
        # Workers spin within a call and sleep after it: spinning on would starve torch, or the next
        # back end of a plan, of cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        register(options, self._libraries)
        for name, value in self._shared.items():
            options.add_initializer(name, value)
        return options

    def _write(self, path: str) -> None:
        tensors = [_widened(self._constants[name]) for name in self.interface.written]
        with open(path, "wb") as file:
            for tensor, offset in zip(tensors, offsets(t.nbytes for t in tensors), strict=True):
                file.seek(offset)
                file.write(tensor.numpy().data)

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """The results for ``inputs``. Calls share the session and nothing else.

        Raises:
            BackendError: an input has no memory, or a kernel failed, for example on an index out of range.
            RegraftError: a check of the model's failed.
        """
        layout = self.layout(sizes)
        binding = self._take_binding(layout, sizes)
        made = binding.owned(self.call(binding, layout, inputs))
        if layout.is_complete:
            self._idle.append(binding)  # one that holds results is not used again
        return made

    def bind(self, inputs: Sequence[Tensor | None], keep: Sequence[bool], sizes: Mapping[str, int]) -> Bound:
        """A call with a binding of its own, in which results that stay are bound once."""
        return _BoundCall(self, keep, sizes)

    def layout(self, sizes: Mapping[str, int]) -> _Layout:
        """What ``sizes`` determine."""
        return self._layouts.get(tuple(sizes.items())) or self._remember(sizes)

    def binding(self, kept: Sequence[Tensor | None]) -> _Binding:
        """A new binding, with the results that stay in ``kept``, None for others."""
        inputs = [*self._inputs, *self._size_inputs]
        return _Binding(self._session, inputs, self._outputs, kept, self.interface.checks)

    def kept(self, layout: _Layout, keep: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Memory for those of the results that may stay and are small."""
        return tuple(
            lasting(dense.shape, port.dtype) if may_stay and dense is not None else None
            for may_stay, dense, port in zip(keep, layout.shapes, self._outputs, strict=False)
        )

    def call(self, binding: _Binding, layout: _Layout, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results for ``inputs``, those that stay where they are.

        Raises: as ``run``.
        """
        held: list[Tensor] = []  # what the binding has only addresses of
        for tensor, port in zip(inputs, self._inputs, strict=True):
            assert tensor.dtype is port.dtype, f"{port.name} is {tensor.dtype}, expected {port.dtype}"
            assert tensor.is_cpu, f"{port.name} is on {tensor.device}, expected the cpu"
            held.append(tensor if tensor.is_contiguous() and not tensor.is_neg() else plain(tensor))
        held += layout.sizes
        try:
            binding.bind_inputs(held)
        except RuntimeError as error:
            raise BackendError(
                f"an argument has no memory to read, as under torch.func transforms: {error}",
                backend=self.backend,
            ) from error
        results = binding.bind_results(layout)
        try:
            self._session.run_with_iobinding(binding.io)
        except Exception as error:
            binding.check()  # it may say why
            raise BackendError(f"ONNX Runtime failed: {error}", backend=self.backend) from error
        binding.check()
        made = results if layout.is_complete else binding.completed(results)
        return made[: len(made) - len(self.interface.checks)]

    def _remember(self, sizes: Mapping[str, int]) -> _Layout:
        if len(self._layouts) >= _REMEMBERED:
            self._layouts.clear()
        layout = _Layout.of(self._outputs, [sizes[symbol] for symbol in self._sizes], sizes)
        self._layouts[tuple(sizes.items())] = layout
        return layout

    def _take_binding(self, layout: _Layout, sizes: Mapping[str, int]) -> _Binding:
        try:
            return self._idle.pop()
        except IndexError:  # as many are made as there are calls at a time
            shapes = layout.shapes[: len(layout.shapes) - len(self.interface.checks)]
            keep = [not sizes and dense is not None and dense.nbytes <= _COPIED for dense in shapes]
            return self.binding(self.kept(layout, keep))

    def save(self, writer: ArtefactWriter) -> dict[str, Any]:
        """The model as a file of its own; its constants go to ``writer`` under their names."""
        for name, tensor in self._constants.items():
            writer.add_tensor(name, tensor)
        file = f"{hashlib.sha256(self._model).hexdigest()[:16]}.onnx"
        writer.add_file(file, self._model)
        return {
            "model": file,
            "constants": list(self._constants),
            "threads": self._threads,
            "inputs": [asdict(port) for port in self.interface.inputs],
            "outputs": [asdict(port) for port in self.interface.outputs],
            "sizes": dict(self.interface.sizes),
            "checks": list(self.interface.checks),
            "blocked": list(self.interface.blocked),
            "written": list(self.interface.written),
            "domains": list(self._libraries),
        }


@dataclass(frozen=True)
class _Place:
    """An input or output as it is bound; a result's shape is a function of the sizes where it is known."""

    name: str
    dtype: torch.dtype
    element: int
    shape: Callable[[Mapping[str, int]], tuple[int, ...]] | None

    @staticmethod
    def of(port: Port) -> _Place:
        return _Place(port.name, TORCH_DTYPES[port.dtype], ELEMENT_TYPES[port.dtype], _shape(port.shape))


class _Dense(NamedTuple):
    """A result's shape, its strides in row-major order, and its bytes."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    nbytes: int

    @staticmethod
    def of(shape: tuple[int, ...], dtype: torch.dtype) -> _Dense:
        strides = [1]
        for size in reversed(shape[1:]):
            strides.append(strides[-1] * max(size, 1))
        size = math.prod(shape) * dtype.itemsize
        return _Dense(shape, tuple(reversed(strides[: len(shape)])), size)


@dataclass(frozen=True)
class _Layout:
    """What the sizes of a call determine: shapes and strides of its results, and the sizes as tensors.

    A result that ONNX Runtime has to allocate has None.
    """

    shapes: tuple[_Dense | None, ...]
    sizes: tuple[Tensor, ...]
    is_complete: bool

    @staticmethod
    def of(outputs: Sequence[_Place], values: Sequence[int], sizes: Mapping[str, int]) -> _Layout:
        shapes = tuple(
            None if output.shape is None else _Dense.of(output.shape(sizes), output.dtype)
            for output in outputs
        )
        tensors = tuple(torch.tensor([value], dtype=torch.int64, device=_CPU) for value in values)
        return _Layout(shapes, tensors, None not in shapes)


class _Binding:
    """A session's inputs and outputs, bound by address; one call at a time has it.

    Binding costs as much as running a small model, and an argument is often where the last one was.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Sequence[_Place],
        outputs: Sequence[_Place],
        kept: Sequence[Tensor | None],
        checks: Sequence[str],
    ) -> None:
        """``kept`` has a tensor for each result that stays, None for others; behind the results, ``outputs``
        has what ``checks`` are the messages of, which stays too.
        """
        self.io = session.io_binding()
        # The wrapper's own methods make a device anew for each name, which takes longer than to bind it.
        self._bare = self.io._iobinding
        self._device = onnxruntime.OrtDevice.make("cpu", 0)._get_c_device()
        self._inputs = inputs
        self._outputs = outputs
        self._like = [torch.empty(0, dtype=port.dtype, device=_CPU) for port in outputs]
        self._memory = [ResultMemory() for _ in outputs]
        self._bound: list[tuple[Any, int] | None] = [None] * len(inputs)
        flags = [lasting_flag() for _ in checks]
        self._checks = [(byte_of(flag), message) for flag, message in zip(flags, checks, strict=True)]
        self._expect()
        self._kept = [*kept, *flags]
        for port, tensor in zip(outputs, self._kept, strict=True):
            if tensor is not None:
                self._bind_output(port, tuple(tensor.shape), tensor)
            else:  # results are got in the order in which they were bound first
                self._bare.bind_output(port.name, self._device)

    def bind_inputs(self, tensors: Sequence[Tensor]) -> None:
        """Bind the inputs, which the caller keeps alive through the run.

        Raises:
            RuntimeError: a tensor has no memory.
        """
        bound = self._bound
        for i, tensor in enumerate(tensors):
            place = tensor.shape, tensor.data_ptr() or _NOWHERE
            if bound[i] != place:
                port = self._inputs[i]
                self._bare.bind_input(port.name, self._device, port.element, *place)
                bound[i] = place

    def bind_results(self, layout: _Layout) -> list[Tensor]:
        """The tensors for the results, bound, new but for those that stay; ``_NOTHING`` in place of one that
        ONNX Runtime allocates.
        """
        results: list[Tensor] = []
        rows = zip(self._outputs, layout.shapes, self._kept, strict=True)
        for i, (port, dense, kept) in enumerate(rows):
            if kept is not None:
                results.append(kept)
                continue
            if dense is None:
                self._bare.bind_output(port.name, self._device)
                results.append(_NOTHING)
                continue
            shape, strides, size = dense
            if size >= LARGE:
                tensor = self._memory[i].empty(shape, port.dtype)
            else:
                tensor = self._like[i].new_empty_strided(shape, strides)  # does less than new_empty
            self._bind_output(port, shape, tensor)
            results.append(tensor)
        return results

    def _bind_output(self, port: _Place, shape: tuple[int, ...], tensor: Tensor) -> None:
        place = tensor.data_ptr() or _NOWHERE
        self._bare.bind_output(port.name, self._device, port.element, shape, place)

    def check(self) -> None:
        """Look at what the run before has written, also where a kernel ended it.

        Raises:
            RegraftError: a check of the model failed.
        """
        for byte, message in self._checks:
            if not byte[0]:
                self._expect()
                raise RegraftError(message or "a check of the model failed")

    def _expect(self) -> None:
        """Let all checks hold that a run does not get to."""
        for byte, _ in self._checks:
            byte[0] = True

    def owned(self, results: Sequence[Tensor]) -> list[Tensor]:
        """``results``, copies of those that stay."""
        return [t if kept is None else t.clone() for t, kept in zip(results, self._kept, strict=False)]

    def completed(self, results: Sequence[Tensor]) -> list[Tensor]:
        """``results`` of the run before, with those that ONNX Runtime allocated."""
        made = self.io.get_outputs()
        return [
            _adopt(value, port.dtype) if result is _NOTHING else result
            for result, value, port in zip(results, made, self._outputs, strict=True)
        ]


class _BoundCall:
    """Calls of one caller; where ONNX Runtime allocates results, they are like all others."""

    def __init__(self, executable: OrtExecutable, keep: Sequence[bool], sizes: Mapping[str, int]) -> None:
        self._executable, self._sizes = executable, sizes
        self._layout = executable.layout(sizes)
        if self._layout.is_complete:
            self.kept = executable.kept(self._layout, keep)
            self._binding = executable.binding(self.kept)
        else:
            self.kept, self._binding = (None,) * len(keep), None

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """As ``OrtExecutable.run``."""
        executable = self._executable
        if self._binding is None:
            return executable.run(inputs, self._sizes)
        return executable.call(self._binding, self._layout, inputs)


def _joined(path: str) -> bool:
    """``joining.joined``, and what it imports where it is needed alone: most models load without."""
    from regraft.backends.ort.joining import joined

    return joined(path)


def _session(
    path: str, options: onnxruntime.SessionOptions, disabled: Sequence[str] | None = None
) -> onnxruntime.InferenceSession:
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(path, options, providers=providers, disabled_optimizers=disabled)


def register(options: Any, libraries: Mapping[str, str]) -> None:
    """Let sessions made with ``options`` use the kernels of ``libraries``.

    Raises:
        BackendError: one cannot be loaded.
    """
    for library in dict.fromkeys(libraries.values()):
        try:
            options.register_custom_ops_library(library)
        except Exception as error:
            domains = ", ".join(domain for domain, each in libraries.items() if each == library)
            raise BackendError(
                f"the library '{library}' (OnnxOp.library of {domains}) cannot be loaded: {error}",
                backend="ort",
            ) from error


def _shape(dims: tuple[int | str, ...] | None) -> Callable[[Mapping[str, int]], tuple[int, ...]] | None:
    if dims is None:
        return None
    if all(isinstance(dim, int) for dim in dims):
        static = tuple(int(dim) for dim in dims)
        return lambda sizes: static
    compiled = [compile_dim(dim) for dim in dims]
    return lambda sizes: tuple(size(sizes) for size in compiled)


def offsets(sizes: Iterable[int]) -> list[int]:
    """Where pieces of so many bytes begin that lie one after the other, each aligned."""
    found: list[int] = []
    end = 0
    for size in sizes:
        found.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return found


def plain(tensor: Tensor) -> Tensor:
    """``tensor`` with its elements in order and as they are: torch negates some views only when it reads."""
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALVES else tensor


def _adopt(value: Any, dtype: torch.dtype) -> Tensor:
    """The memory of an OrtValue as a tensor, which keeps it alive."""
    tensor = torch.from_dlpack(value)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)  # bools come as bytes from old releases


def load(record: Mapping[str, Any], reader: ArtefactReader) -> OrtExecutable:
    """The executable that ``save`` wrote.

    Raises:
        ArtefactError: this ONNX Runtime cannot load its model.
    """
    interface = Interface(
        tuple(_port(p) for p in record["inputs"]),
        tuple(_port(p) for p in record["outputs"]),
        dict(record["sizes"]),
        tuple(record["checks"]),
        tuple(record.get("blocked", ())),
        tuple(record.get("written", ())),
    )
    constants = {name: reader.tensor(name) for name in record["constants"]}
    libraries = {domain: reader.library(domain) for domain in record["domains"]}
    try:
        return OrtExecutable(reader.file(record["model"]), constants, interface, record["threads"], libraries)
    except BackendError as error:
        raise ArtefactError(str(error), path=str(record["model"])) from error


def _port(record: Mapping[str, Any]) -> Port:
    shape = record["shape"]
    return Port(record["name"], record["dtype"], None if shape is None else tuple(shape))
