"""ONNX files that run anywhere ONNX does: weights inside, names of the user's choice."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime

from regraft.backends.ort.dtypes import ORT_DOMAINS
from regraft.backends.ort.emit import Target, emit_function
from regraft.backends.ort.lower import lowering_of
from regraft.backends.ort.run import register
from regraft.backends.protocol import ConstantStore
from regraft.errors import BackendError, OptionError, shown
from regraft.ir import Function, unique_name

#: The oldest and newest standard that the lowerings speak.
MIN_OPSET, MAX_OPSET = 20, 23
DEFAULT_OPSET = 23

#: Protobuf's own limit is 2 GB; a file near it loads slowly.
_SINGLE_FILE_BYTES = 1_500_000_000


def export_model(
    function: Function,
    store: ConstantStore,
    *,
    opset: int | None = None,
    contrib: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    size_names: Mapping[str, str] | None = None,
) -> ir.Model:
    """``function`` as an ONNX model that holds its weights.

    Args:
        opset: version of the standard ops, 20 to 23; None takes the newest of them.
        contrib: use ONNX Runtime's own ops too; without them any ONNX implementation will do.
        input_names: a name for each input, instead of ``in.0``...
        output_names: a name for each output, instead of ``out.0``...
        size_names: names of symbols, instead of their own.

    Raises:
        OptionError: a version or a name that cannot be.
        BackendError: an op has no lowering.
    """
    opset = DEFAULT_OPSET if opset is None else opset
    if not isinstance(opset, int) or not MIN_OPSET <= opset <= MAX_OPSET:
        raise OptionError(
            "this opset is not supported", "opset", shown(opset), f"a number from {MIN_OPSET} to {MAX_OPSET}"
        )
    _check_names("input_names", input_names, len(function.args))
    _check_names("output_names", output_names, len(function.results))
    if set(input_names or ()) & set(output_names or ()):
        raise OptionError(
            "inputs and outputs share a name", "output_names", repr(output_names), "other names"
        )
    target = Target(contrib=contrib, opset=opset, shared=False)
    return emit_function(function, lowering_of, store, target, input_names, output_names, size_names).model


def _check_names(option: str, names: Sequence[str] | None, count: int) -> None:
    if names is not None and (len(set(names)) != count or len(names) != count or not all(names)):
        raise OptionError("the names do not fit", option, repr(list(names)), f"{count} distinct names")


@dataclass(frozen=True)
class WrittenFile:
    """What ``export_onnx_file`` wrote.

    Fields:
        files: the model, and the weights beside it if they are there.
        opset: version of the standard ops.
        operators: ``op``, or ``domain::op`` outside the standard, -> nodes, those of subgraphs included.
        inputs, outputs: names in the order of the function's arguments and results.
        bytes: size of all files.
        untried: domains of operators for which there was no kernel to load the file with.
    """

    files: tuple[Path, ...]
    opset: int
    operators: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    untried: tuple[str, ...] = ()


def export_onnx_file(
    function: Function,
    store: ConstantStore,
    path: str | Path,
    *,
    opset: int | None = None,
    contrib: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    size_names: Mapping[str, str] | None = None,
    external: bool | None = None,
    metadata: Mapping[str, str] | None = None,
) -> WrittenFile:
    """``export_model`` and ``write_model`` in one; inputs are called as in the model's Python.

    ``metadata`` become properties of the model.

    Raises:
        OptionError: a version or a name that cannot be, or a path that cannot be written.
        BackendError: an op has no lowering.
    """
    model = export_model(
        function,
        store,
        opset=opset,
        contrib=contrib,
        input_names=input_names or argument_names(function),
        output_names=output_names,
        size_names=size_names,
    )
    model.metadata_props.update(metadata or {})
    libraries = libraries_of(function)
    files = write_model(model, path, external=external, libraries=libraries)
    return WrittenFile(
        tuple(files),
        model.graph.opset_imports[""],
        operator_counts(model),
        tuple(value.name or "" for value in model.graph.inputs),
        tuple(value.name or "" for value in model.graph.outputs),
        sum(file.stat().st_size for file in files),
        unknown_domains(model, libraries),
    )


def argument_names(function: Function) -> list[str]:
    """The arguments' own names, told apart from each other."""
    taken: set[str] = set()
    return [unique_name(arg.hint or f"input_{index}", taken) for index, arg in enumerate(function.args)]


def operator_counts(model: ir.Model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def libraries_of(function: Function) -> dict[str, str]:
    """Domain -> the library with its kernels, for the users' ops in ``function``."""
    custom = [op.definition.onnx for op in function.walk() if op.definition.onnx is not None]
    return {each.domain: each.library for each in custom if each.library is not None}


def unknown_domains(model: ir.Model, libraries: Mapping[str, str]) -> tuple[str, ...]:
    """The domains of ``model`` for which nobody has kernels here."""
    return tuple(d for d in model.graph.opset_imports if d not in ORT_DOMAINS and d not in libraries)


def write_model(
    model: ir.Model,
    path: str | Path,
    *,
    external: bool | None = None,
    libraries: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write ``model`` to ``path``, whole or not at all, once it has passed a check and a trial load.

    A model with operators that have no kernel here is checked and not loaded.

    Args:
        external: put the weights into ``<path>.data``; None does so when they are large.
        libraries: domain -> library with its kernels, of the users' ops.

    Returns:
        The files written.

    Raises:
        OptionError: ``path`` cannot be written.
        BackendError: the model is not valid ONNX, or ONNX Runtime cannot load it.
    """
    path = Path(path)
    if external is None:
        external = weight_bytes(model) > _SINGLE_FILE_BYTES
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OptionError(f"cannot write to '{path.parent}': {error.strerror}") from error
    try:
        data = f"{path.name}.data" if external else None
        ir.save(model, folder / path.name, external_data=data)
        _check(folder / path.name, libraries or {}, unknown_domains(model, libraries or {}))
        # The weights first: a model never appears under its name without them.
        names = [name for name in (data, path.name) if name is not None and (folder / name).exists()]
        for name in names:
            os.replace(folder / name, path.parent / name)
        return [path.parent / name for name in reversed(names)]
    except OSError as error:
        raise OptionError(f"cannot write '{path}': {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def weight_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _check(file: Path, libraries: Mapping[str, str], unknown: Sequence[str]) -> None:
    try:
        onnx.checker.check_model(str(file))
        if unknown:
            return
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 4  # what it logs as an error it raises as well
        register(options, libraries)
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"the exported model does not load: {error}", backend="ort") from error
