"""What regraft is compared with. The only file of peers.

Each runs with ``THREADS`` threads, in the model's own dtype, without gradients, warm. ONNX Runtime's sessions
have its default optimisations; their workers stop spinning at the end of a call, as regraft's do, so that
nobody's idle workers take a core from the next entrant. A peer whose results are off by more than the
numerics rule allows does not count.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import regraft
from benchmarks.machine import THREADS
from regraft.errors import NumericsMismatch
from regraft.testing import assert_close

Inputs = Mapping[str, Tensor]

Run = Callable[[Inputs], list[Tensor]]

EXPORTED = "regraft, exported"

_OPENVINO = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": THREADS,
    "NUM_STREAMS": 1,
    "PERFORMANCE_HINT": "LATENCY",
}


class NoPeer(Exception):
    """A peer cannot run a model at all; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A peer made ready for one model and one shape; ``call`` runs it on the inputs it was built for."""

    name: str
    call: Callable[[], object]
    run: Run
    build_seconds: float


def eager(model: nn.Module, inputs: Inputs) -> Peer:
    """Eager torch."""

    def run(given: Inputs) -> list[Tensor]:
        with torch.inference_mode():
            return tensors(model(**given))

    def call() -> object:
        with torch.inference_mode():
            return model(**inputs)

    return Peer("eager", call, run, 0.0)


@dataclass(frozen=True)
class DynamicPeer:
    """A peer made ready for all paths of a model."""

    call: Callable[[Inputs], object]
    build_seconds: float


def inductor(model: nn.Module, inputs: Sequence[Inputs]) -> DynamicPeer:
    """``torch.compile`` with frozen weights, called on each of ``inputs`` twice: it builds what a path needs
    when the path is first taken, and cuts a model at each branch on data.
    """
    from torch._inductor import config

    start = time.perf_counter()
    torch._dynamo.reset()
    compiled = torch.compile(model)

    def call(given: Inputs) -> object:
        with torch.no_grad():
            return compiled(**given)

    with _quiet(), config.patch(freezing=True):
        for given in (*inputs, *inputs):
            call(given)
    return DynamicPeer(call, time.perf_counter() - start)


def torch_onnx(model: nn.Module, inputs: Inputs) -> Peer:
    """``torch.onnx.export(dynamo=True)`` on ONNX Runtime."""

    return _session_peer("torch.onnx", lambda path: _export_torch_onnx(model, inputs, path), inputs)


def exported(model: nn.Module, inputs: Inputs) -> Peer:
    """What ``regraft.export_onnx`` writes, run as the peers' files are.

    Raises:
        NoPeer: an input is in bf16, which NumPy has not.
    """
    if any(tensor.dtype == torch.bfloat16 for tensor in inputs.values()):
        raise NoPeer("NumPy, by which files are run here, has no bf16")

    def export(path: Path) -> None:
        regraft.export_onnx(model, (), path, kwargs=dict(inputs))

    return _session_peer(EXPORTED, export, inputs)


def _export_torch_onnx(model: nn.Module, inputs: Inputs, path: Path) -> None:
    program = torch.onnx.export(model, (), kwargs=dict(inputs), dynamo=True, verbose=False, optimize=True)
    assert program is not None
    program.save(str(path), external_data=True)


_ASKING = (
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__array__,
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
)


class _Tested(TorchFunctionMode):
    """Keeps the tensors that decide, in order: those whose values Python or NumPy ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _ASKING:
            self.asked.append(args[0])
        return func(*args, **(kwargs or {}))


class _Values(nn.Module):
    """A model whose results are all tensors, as tracing wants them; behind them, what decides its path.

    A trace drops what no result is made of: without the tests, the classifiers of all exits but the last
    would be left out, although the path cannot be known without them.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], tests: bool) -> None:
        super().__init__()
        self.model = model
        self.names = list(names)
        self.tests = tests

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        with _Tested() as tested:
            results = values(self.model(**dict(zip(self.names, given, strict=True))))
        # Copies: no output may be another one, or an input.
        return (*results, *(each.clone() for each in tested.asked if self.tests))


def traced_onnx(model: nn.Module, inputs: Inputs, threads: int = THREADS) -> Peer:
    """The ops that ``model`` runs for ``inputs``, those that decide its path too, on ONNX Runtime.

    Traced by TorchScript: right for inputs that take the same path, and what anybody gets who knows the path.
    """
    return _traced_onnx("traced onnx", model, inputs, threads, tests=True)


def traced_onnx_untested(model: nn.Module, inputs: Inputs, threads: int = THREADS) -> Peer:
    """The same without what decides the path: only for who knows it beforehand."""
    return _traced_onnx("traced onnx, no tests", model, inputs, threads, tests=False)


def _traced_onnx(name: str, model: nn.Module, inputs: Inputs, threads: int, tests: bool) -> Peer:
    def export(path: Path) -> None:
        wrapped = _Values(model, list(inputs), tests).eval()
        names = list(inputs)
        with _without_fast_path():  # which has no ONNX
            torch.onnx.export(wrapped, tuple(inputs.values()), str(path), dynamo=False, input_names=names)

    count = len(values(eager(model, inputs).call()))
    peer = _session_peer(name, export, inputs, threads)
    return replace(peer, run=lambda given: peer.run(given)[:count])


def traced_openvino(model: nn.Module, inputs: Inputs, threads: int = THREADS) -> Peer:
    """``traced_onnx`` on OpenVINO, in f32."""
    import openvino as ov

    start = time.perf_counter()
    wrapped = _Values(model, list(inputs), tests=True).eval()
    count = len(values(eager(model, inputs).call()))
    with _quiet(), _without_fast_path():
        converted = ov.convert_model(wrapped, example_input=tuple(inputs.values()))
    settings = {**_OPENVINO, "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(converted, "CPU", settings)
    request = compiled.create_infer_request()
    seconds = time.perf_counter() - start

    def run(given: Inputs) -> list[Tensor]:
        found = request.infer([tensor.numpy() for tensor in given.values()])
        return [torch.from_numpy(np.array(found[port])) for port in compiled.outputs[:count]]

    feed = [tensor.numpy() for tensor in inputs.values()]
    return Peer("traced openvino", lambda: request.infer(feed, share_inputs=True), run, seconds)


STATIC_PEERS: tuple[Callable[[nn.Module, Inputs, int], Peer], ...] = (
    traced_onnx,
    traced_onnx_untested,
    traced_openvino,
)
"""Those that are given one path; the second is given the knowledge of it too."""


def torch_onnx_in_f32(model: nn.Module, inputs: Inputs) -> Peer:
    """``torch.onnx`` on the model in f32: what is left to who has bf16 weights and ONNX Runtime on a CPU."""
    dtype = next(model.parameters()).dtype

    def to(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def wide(given: Inputs) -> Inputs:
        return {name: to(tensor, torch.float32) for name, tensor in given.items()}

    peer = torch_onnx(copy.deepcopy(model).float(), wide(inputs))
    return replace(
        peer,
        name="torch.onnx in f32",
        run=lambda given: [to(result, dtype) for result in peer.run(wide(given))],
    )


def transformers_onnx(model: nn.Module, inputs: Inputs) -> Peer:
    """transformers' own exporter with its fusions for ONNX Runtime on CPU."""
    import onnx_ir
    from transformers.exporters import OnnxConfig, OnnxExporter

    def export(path: Path) -> None:
        config = OnnxConfig(dynamic=False, ort_fusions="cpu")
        exported = OnnxExporter().export(model, dict(inputs), config)
        graph = getattr(exported.program, "model", exported.program)
        graph.ir_version = min(graph.ir_version or 10, 10)
        onnx_ir.save(graph, path, external_data=f"{path.name}.data")

    return _session_peer("transformers exporter", export, inputs)


def openvino(model: nn.Module, inputs: Inputs, threads: int = THREADS) -> Peer:
    """OpenVINO's CPU plug-in on the file of ``torch.onnx``, in f32: its default here is bf16.

    Its own converter does not take every model.
    """
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder, _quiet():
        start = time.perf_counter()
        path = Path(folder) / "model.onnx"
        _export_torch_onnx(model, inputs, path)
        core = ov.Core()
        settings = {**_OPENVINO, "INFERENCE_NUM_THREADS": threads}
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        request = compiled.create_infer_request()
        seconds = time.perf_counter() - start
    names = [port.get_any_name() for port in compiled.inputs]

    def run(given: Inputs) -> list[Tensor]:
        found = request.infer(_feed(names, given))
        return [torch.from_numpy(np.array(found[port])) for port in compiled.outputs]

    feed = _feed(names, inputs)
    return Peer("openvino", lambda: request.infer(feed), run, seconds)


PEERS: tuple[Callable[[nn.Module, Inputs], Peer], ...] = (eager, torch_onnx, transformers_onnx)


def _session_peer(name: str, export: Callable[[Path], None], inputs: Inputs, threads: int = THREADS) -> Peer:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        start = time.perf_counter()
        path = Path(folder) / "model.onnx"
        export(path)
        session = _opened(path, threads)
        seconds = time.perf_counter() - start
    names = [port.name for port in session.get_inputs()]
    feed = _feed(names, inputs)

    def run(given: Inputs) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(y)) for y in session.run(None, _feed(names, given))]

    return Peer(name, lambda: session.run(None, feed), run, seconds)


def _opened(path: Path, threads: int) -> Any:
    """A session for a peer's file.

    Raises:
        NoPeer: ONNX Runtime has no kernels for it, or an operator of its opset does not take its types.
    """
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidGraph
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

    try:
        return open_session(path, threads=threads)
    except (InvalidGraph, NoKernel) as error:
        raise NoPeer(str(error)) from error


def open_session(path: Path, basic: bool = False, threads: int = THREADS) -> Any:
    """A session of ONNX Runtime for a file; ``basic`` leaves out its fusions, as regraft's sessions do."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class BoundPeer:
    """A peer that reads inputs where they are; ``result`` is that of the last call."""

    call: Callable[[], object]
    result: Callable[[], Tensor]
    inputs: Inputs
    """Kept, since what is bound is their addresses."""


def ort_bound(model: bytes, inputs: Inputs) -> BoundPeer:
    """A small ONNX model with one output, on ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        session = open_session(path)
    binding = session.io_binding()
    for name, tensor in inputs.items():
        binding.bind_input(name, "cpu", 0, np.float32, tuple(tensor.shape), tensor.data_ptr())
    session_out = session.get_outputs()[0]
    out = torch.empty([int(size) for size in session_out.shape])
    binding.bind_output(session_out.name, "cpu", 0, np.float32, tuple(out.shape), out.data_ptr())
    return BoundPeer(lambda: session.run_with_iobinding(binding), lambda: out, inputs)


def openvino_bound(model: bytes, inputs: Inputs) -> BoundPeer:
    """The same on OpenVINO, in f32: its default here is bf16."""
    import openvino as ov

    core = ov.Core()
    request = core.compile_model(core.read_model(model), "CPU", _OPENVINO).create_infer_request()
    for name, tensor in inputs.items():
        request.set_tensor(name, ov.Tensor(tensor.numpy(), shared_memory=True))
    return BoundPeer(request.infer, lambda: torch.from_numpy(request.get_output_tensor().data), inputs)


def _feed(names: list[str], inputs: Inputs) -> dict[str, np.ndarray]:
    """Inputs by the session's names: the exporters keep the model's, or there is only one."""
    values = [tensor.numpy() for tensor in inputs.values()]
    if len(names) == len(values) == 1:
        return {names[0]: values[0]}
    return {name: inputs[name].numpy() for name in names}


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """torch's encoder layers as single ops, not as one."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk on both streams and through warnings; what they say is not a result."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def error_of(
    run: Run, reference: Callable[[Inputs], list[Tensor]], own: Run, inputs: Inputs
) -> dict[str, Any]:
    """The error on fresh inputs by the numerics rule, and whether it is within it."""
    try:
        error = assert_close(run(inputs), reference(inputs), own(inputs), reassociates=True)
    except NumericsMismatch as mismatch:
        return {"error": mismatch.error, "counts": False, "why": str(mismatch)}
    return {"error": error, "counts": True}


def values(result: Any) -> list[Tensor]:
    """The values of a result; a number that the data decide, such as an exit, may come as a tensor."""
    from torch.utils import _pytree as pytree

    return [torch.as_tensor(leaf) for leaf in pytree.tree_leaves(result)]


def tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    from torch.utils import _pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
