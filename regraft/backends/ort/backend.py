"""The back end: functions of the IR as sessions of ONNX Runtime, or as files."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from regraft.backends.ort.dtypes import KERNELS
from regraft.backends.ort.emit import Emission, Target, emit_function
from regraft.backends.ort.export import DEFAULT_OPSET, argument_names, export_onnx_file, libraries_of
from regraft.backends.ort.files import OpenFile, open_file
from regraft.backends.ort.lower import LOWERINGS, can_write, lowering_of, supports
from regraft.backends.ort.run import Interface, OrtExecutable, Port
from regraft.backends.protocol import ConstantStore, LowerOptions
from regraft.ir import Function, Op, Value
from regraft.ir import dims as algebra


class OrtBackend:
    """Runs whole functions, with their conditions and loops, as one ONNX Runtime session."""

    name = "ort"
    #: Op name -> its lowering; what the support matrix is made from.
    lowerings = LOWERINGS
    #: ONNX op -> the element types that it is given.
    kernels = KERNELS

    def supports(self, op: Op) -> str | None:
        """None when ``op`` can be lowered, else the reason why not."""
        return supports(op)

    def can_write(self, op: Op) -> str | None:
        """None when ``op`` can be written to a file, whether or not a session of ours could run it."""
        return can_write(op)

    def lower(self, function: Function, store: ConstantStore, options: LowerOptions) -> OrtExecutable:
        """A session for ``function``, its weights shared with torch.

        Raises:
            BackendError: ONNX Runtime refused the model.
        """
        emission = to_onnx(function, store)
        constants = {name: store.tensor(constant) for name, constant in emission.shared.items()}
        model = ir.to_proto(emission.model).SerializeToString()
        return OrtExecutable(
            model, constants, _interface(function, emission), options.threads, libraries_of(function)
        )

    def emit(
        self, function: Function, store: ConstantStore, *, contrib: bool = True, opset: int = DEFAULT_OPSET
    ) -> ir.Model:
        """``function`` as the graph of a session, its large constants left outside."""
        return to_onnx(function, store, Target(contrib, opset)).model

    #: Writes a function as an ONNX file.
    export_file = staticmethod(export_onnx_file)
    argument_names = staticmethod(argument_names)

    def plan_runner(self) -> str:
        """The source of ``plan_runner.py``, which imports nothing of regraft."""
        return Path(__file__).with_name("plan_runner.py").read_text(encoding="utf-8")

    def open_file(self, path: Path, options: LowerOptions) -> OpenFile:
        """The file at ``path`` in a session with ONNX Runtime's own optimisations.

        Raises:
            BackendError: ONNX Runtime refuses it.
        """
        return open_file(path, options.threads)


def to_onnx(function: Function, store: ConstantStore, target: Target | None = None) -> Emission:
    """``function`` as an ONNX model for ``target`` (by default: this back end's own sessions).

    Raises:
        BackendError: an op has no lowering.
    """
    return emit_function(function, lowering_of, store, target or Target())


def _interface(function: Function, emission: Emission) -> Interface:
    inputs = [
        Port(name, arg.tensor.dtype.value) for name, arg in zip(emission.inputs, function.args, strict=True)
    ]
    count = len(function.results)
    outputs = [
        _result_port(function, name, result)
        for name, result in zip(emission.outputs[:count], function.results, strict=True)
    ]
    checks = [Port(name, "bool", ()) for name in emission.outputs[count:]]
    return Interface(
        tuple(inputs),
        (*outputs, *checks),
        dict(emission.size_inputs),
        emission.checks,
        emission.blocked,
        emission.written,
    )


def _result_port(function: Function, name: str, result: Value) -> Port:
    """A result's shape is known before the run when all its symbols are the function's own."""
    known = set(function.symbols)
    shape = result.tensor.shape
    if not all(symbol in known for dim in shape for symbol in algebra.symbols_of(dim)):
        return Port(name, result.tensor.dtype.value)
    dims = tuple(dim if isinstance(dim, int) else str(dim) for dim in shape)
    return Port(name, result.tensor.dtype.value, dims)
