"""Runs ONNX models on ONNX Runtime, without copying weights, arguments or results.

A model is protobuf bytes whose large initializers are EXTERNAL: they are bound to torch's own
storage here, so that weights exist once beside ONNX Runtime's packed form of them. (Of the two ways
to bind, ``add_initializer`` shares and ``add_external_initializers`` copies.)
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from regraft.errors import ArtefactError, BackendError, RegraftError
from regraft.runtime import TORCH_DTYPES, ArtefactReader, ArtefactWriter, compile_dim

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

#: Types that no kernel computes in: such constants are widened to f32.
_HALVES = frozenset({torch.float16, torch.bfloat16})

# Binding asks for an address even where there are no elements.
_NOTHING = torch.zeros(1, dtype=torch.int64, device="cpu")


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
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sizes: Mapping[str, str]
    checks: tuple[str, ...] = ()


class OrtExecutable:
    """A session and how to call it."""

    backend = "ort"

    def __init__(
        self, model: bytes, constants: Mapping[str, Tensor], interface: Interface, threads: int | None = None
    ) -> None:
        """Load ``model``; ``constants`` are the tensors of its external initializers.

        Raises:
            BackendError: ONNX Runtime refuses the model.
        """
        self.interface = interface
        self._model = model
        self._constants = {name: plain(tensor.detach()) for name, tensor in constants.items()}
        self._threads = threads
        # ONNX Runtime only borrows the memory: values and tensors live as long as the session.
        self._shared = {
            name: onnxruntime.OrtValue.from_dlpack(tensor)
            for name, tensor in self._constants.items()
            if tensor.dtype not in _HALVES
        }
        try:
            self._session = self._open()
        except Exception as error:
            raise BackendError(f"ONNX Runtime refuses the model: {error}", backend=self.backend) from error
        self._inputs = [(p.name, TORCH_DTYPES[p.dtype], ELEMENT_TYPES[p.dtype]) for p in interface.inputs]
        self._outputs = [_Output.of(p) for p in interface.outputs]
        self._sizes = tuple(interface.sizes.items())

    def _open(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        # No optimiser: it would read the stand-in below. The graph has been optimised before, by us.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = self._threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Workers spin within a call and sleep after it: spinning on would starve torch, or the next
        # back end of a plan, of cores.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for name, value in self._shared.items():
            options.add_initializer(name, value)
        widened = {name: _widened(t) for name, t in self._constants.items() if name not in self._shared}
        if widened:  # these ONNX Runtime copies, and frees what it packs
            values = [onnxruntime.OrtValue.from_dlpack(t) for t in widened.values()]
            options.add_external_initializers(list(widened), values)
        with tempfile.TemporaryDirectory() as folder:
            # A shared initializer needs a file of its size at its place, which nobody reads: a sparse one.
            with open(os.path.join(folder, STAND_IN), "wb") as file:
                file.truncate(max((2 * t.nbytes for t in self._constants.values()), default=1))
            path = os.path.join(folder, "model.onnx")
            with open(path, "wb") as file:
                file.write(self._model)
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """The results for ``inputs``. Calls share the session and nothing else.

        Raises:
            BackendError: a kernel failed, for example on an index out of range.
            RegraftError: a check of the model's failed.
        """
        binding = self._session.io_binding()
        held: list[Tensor] = []  # what the binding has only addresses of
        for tensor, (name, dtype, element) in zip(inputs, self._inputs, strict=True):
            assert tensor.dtype == dtype, f"{name} is {tensor.dtype}, expected {dtype}"
            assert tensor.is_cpu, f"{name} is on {tensor.device}, expected the cpu"
            tensor = plain(tensor)
            held.append(tensor)
            binding.bind_input(name, "cpu", 0, element, tensor.shape, _address(tensor))
        for symbol, name in self._sizes:
            value = torch.tensor([sizes[symbol]], dtype=torch.int64, device="cpu")
            held.append(value)
            binding.bind_input(name, "cpu", 0, 7, (1,), value.data_ptr())
        results: list[Tensor | None] = [output.bind(binding, sizes) for output in self._outputs]
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed: {error}", backend=self.backend) from error
        return self._checked(self._filled(binding, results))

    def _filled(self, binding: Any, results: Sequence[Tensor | None]) -> list[Tensor]:
        """``results`` with those that ONNX Runtime allocated taken from the binding."""
        if all(result is not None for result in results):
            return [result for result in results if result is not None]
        made = binding.get_outputs()
        return [
            _adopt(made[i], output.dtype) if result is None else result
            for i, (result, output) in enumerate(zip(results, self._outputs, strict=True))
        ]

    def _checked(self, results: list[Tensor]) -> list[Tensor]:
        count = len(self.interface.checks)
        if not count:
            return results
        for passed, message in zip(results[-count:], self.interface.checks, strict=True):
            if not passed:
                raise RegraftError(message or "a check of the model failed")
        return results[:-count]

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
        }


@dataclass(frozen=True)
class _Output:
    """A result: its type, and its shape as a function of the sizes where that is known before the run."""

    name: str
    dtype: torch.dtype
    element: int
    shape: Callable[[Mapping[str, int]], tuple[int, ...]] | None

    @staticmethod
    def of(port: Port) -> _Output:
        return _Output(port.name, TORCH_DTYPES[port.dtype], ELEMENT_TYPES[port.dtype], _shape(port.shape))

    def bind(self, binding: Any, sizes: Mapping[str, int]) -> Tensor | None:
        """A new tensor for the result, bound; None when ONNX Runtime has to allocate it."""
        if self.shape is None:
            binding.bind_output(self.name, "cpu")
            return None
        shape = self.shape(sizes)
        tensor = torch.empty(shape, dtype=self.dtype, device="cpu")
        binding.bind_output(self.name, "cpu", 0, self.element, shape, _address(tensor))
        return tensor


def _shape(dims: tuple[int | str, ...] | None) -> Callable[[Mapping[str, int]], tuple[int, ...]] | None:
    if dims is None:
        return None
    if all(isinstance(dim, int) for dim in dims):
        static = tuple(int(dim) for dim in dims)
        return lambda sizes: static
    compiled = [compile_dim(dim) for dim in dims]
    return lambda sizes: tuple(size(sizes) for size in compiled)


def plain(tensor: Tensor) -> Tensor:
    """``tensor`` with its elements in order and as they are: torch negates some views only when it reads."""
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous()


def _address(tensor: Tensor) -> int:
    return (tensor if tensor.numel() else _NOTHING).data_ptr()


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
    )
    constants = {name: reader.tensor(name) for name in record["constants"]}
    try:
        return OrtExecutable(reader.file(record["model"]), constants, interface, record["threads"])
    except BackendError as error:
        raise ArtefactError(str(error), path=str(record["model"])) from error


def _port(record: Mapping[str, Any]) -> Port:
    shape = record["shape"]
    return Port(record["name"], record["dtype"], None if shape is None else tuple(shape))
