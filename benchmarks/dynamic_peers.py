"""How many of the dynamic networks each tool takes whole, and how many it gets right on every path.

    python -m benchmarks dynamic-peers

Each tool and network has a process of its own with a time limit. A tool *takes* a network when it compiles or
exports it without an error from one example input; it is *right* when the result is eager's, by the numerics
rule, on the inputs for all paths of the table. Tracers take a network and are wrong on the paths that the
example does not take.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks import machine
from regraft.errors import NumericsMismatch
from regraft.testing import assert_close
from tests.models import in_double
from tests.zoo.dynamic.networks import DYNAMIC

Call = Callable[[tuple[Tensor, ...]], Sequence[Any]]

TIMEOUT = 60.0


def run(tools: Sequence[str] = (), networks: Sequence[str] = (), timeout: float = TIMEOUT) -> None:
    """Writes ``dynamic_peers.json``."""
    where = machine.describe()
    rows: dict[str, dict[str, Any]] = {}
    for name in networks or tuple(DYNAMIC):
        rows[name] = {tool: _in_process(tool, name, timeout) for tool in tools or tuple(TOOLS)}
        print(name, {tool: found["outcome"] for tool, found in rows[name].items()}, flush=True)
        result = {
            "benchmark": "dynamic_peers",
            "settings": {"timeout_s": timeout, "dtype": "f32", "size": "small"},
            "machine": where,
            "counts": _counts(rows),
            "networks": rows,
        }
        machine.save("dynamic_peers", result)
    print(json.dumps(_counts(rows), indent=1))


def _counts(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for row in rows.values():
        for tool, found in row.items():
            outcomes = counts.setdefault(tool, {})
            outcomes[found["outcome"]] = outcomes.get(found["outcome"], 0) + 1
    return counts


def _in_process(tool: str, network: str, timeout: float) -> dict[str, Any]:
    """``right``, ``wrong`` (on how many of the paths), ``refused`` (with the error) or ``timeout``."""
    command = [sys.executable, "-m", "benchmarks.dynamic_peers", tool, network]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, cwd=machine.ROOT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"outcome": "timeout"}
    last = done.stdout.strip().splitlines()[-1:]
    if done.returncode or not last:
        return {"outcome": "refused", "error": f"the process ended with {done.returncode}"}
    return json.loads(last[0])


def attempt(tool: str, name: str) -> dict[str, Any]:
    """What ``tool`` makes of the network ``name``, in this process."""
    network = DYNAMIC[name]
    model = network.make()
    inputs = [network.inputs(seed) for seed in network.small.paths.values()]
    torch.set_num_threads(machine.THREADS)
    try:
        with torch.no_grad():
            call = TOOLS[tool](model, inputs[0])
    except Exception as error:  # whatever a tool raises is its answer
        return {"outcome": "refused", "error": f"{type(error).__name__}: {str(error).strip()[:300]}"}
    right = sum(_is_right(call, model, given) for given in inputs)
    return {"outcome": "right" if right == len(inputs) else "wrong", "paths": len(inputs), "right": right}


def _is_right(call: Call, model: nn.Module, given: tuple[Tensor, ...]) -> bool:
    with torch.no_grad():
        eager = _values(model(*given))
        precise = _values(in_double(model, *given))
    try:
        with torch.no_grad():
            found = _values(call(given))
        assert_close(found, precise, eager=eager, reassociates=True)
    except NumericsMismatch:
        return False
    except Exception:  # a call that raises, or gives other results, is none that counts
        return False
    return True


def _values(result: Any) -> list[Tensor]:
    return [torch.as_tensor(leaf) for leaf in pytree.tree_leaves(result)]


# -- the tools ---------------------------------------------------------------------------------


def _regraft(model: nn.Module, given: tuple[Tensor, ...]) -> Call:
    import regraft

    compiled = regraft.compile(model, given, cache=False)
    return lambda inputs: compiled(*inputs)


def _torch_compile(model: nn.Module, given: tuple[Tensor, ...]) -> Call:
    compiled = torch.compile(model, fullgraph=True)
    compiled(*given)
    return lambda inputs: compiled(*inputs)


def _torch_onnx(model: nn.Module, given: tuple[Tensor, ...]) -> Call:
    import onnxruntime

    folder = tempfile.mkdtemp()
    path = str(Path(folder) / "model.onnx")
    torch.onnx.export(model, given, path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]

    def call(inputs: tuple[Tensor, ...]) -> Sequence[Any]:
        return session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})

    return call


def _openvino(model: nn.Module, given: tuple[Tensor, ...]) -> Call:
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    compiled = core.compile_model(openvino.convert_model(model, example_input=given), "CPU")

    def call(inputs: tuple[Tensor, ...]) -> Sequence[Any]:
        found = compiled([tensor.numpy() for tensor in inputs])
        return [found[port] for port in compiled.outputs]

    return call


def _tvm(model: nn.Module, given: tuple[Tensor, ...]) -> Call:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    module = from_exported_program(torch.export.export(model, given))
    built = tvm.compile(module, target="llvm")
    machine_ = relax.VirtualMachine(built, tvm.cpu())

    def call(inputs: tuple[Tensor, ...]) -> Sequence[Any]:
        found = machine_["main"](*(tvm.runtime.tensor(tensor.numpy()) for tensor in inputs))
        return [each.numpy() for each in (found if hasattr(found, "__len__") else [found])]

    return call


TOOLS: Mapping[str, Callable[[nn.Module, tuple[Tensor, ...]], Call]] = {
    "regraft": _regraft,
    "torch_compile": _torch_compile,
    "torch_onnx": _torch_onnx,
    "openvino": _openvino,
    "tvm": _tvm,
}


if __name__ == "__main__":
    print(json.dumps(attempt(*sys.argv[1:3])))
