"""What a call costs beside the work: a model of almost no work, against ONNX Runtime's own ``run``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import regraft
from benchmarks import machine
from benchmarks.peers import open_session
from benchmarks.timing import Call, race
from tests.models import FAMILIES

#: Calls a sample: one alone is too short for the clock.
INNER = 200


def run(rounds: int = 30) -> None:
    """Race a compiled model with the session of the same graph; writes ``overhead.json``."""
    torch.set_num_threads(machine.THREADS)
    where = machine.describe()
    bert = FAMILIES["bert"]
    tiny = nn.Linear(8, 8).eval()
    x = {"input": torch.randn(1, 8)}
    cases = {
        "linear 8x8": _case(tiny, x, None, rounds, INNER),
        "linear 8x8, dynamic batch": _case(tiny, x, {"input": {0: torch.export.Dim.AUTO}}, rounds, INNER),
        "BERT of 2 layers, 128 wide, ids [1, 16]": _case(
            bert.make("small"), bert.inputs(1, 16), None, rounds, 20
        ),
    }
    result = {
        "benchmark": "overhead",
        "ratio": "time of the entrant over time of regraft: above 1, regraft is faster",
        "settings": {"threads": machine.THREADS, "dtype": "f32"},
        "machine": where,
        "cases": cases,
    }
    path = machine.save("overhead", result)
    for name, case in cases.items():
        print(name)
        for entrant, row in case["entrants"].items():
            print(f"  {entrant:24} {1e3 * row['median_ms']:9.1f} us")
    print(path.name)


def _case(
    model: nn.Module, inputs: dict[str, torch.Tensor], dynamic: Any, rounds: int, inner: int
) -> dict[str, Any]:
    compiled = regraft.compile(model, kwargs=inputs, dynamic_shapes=dynamic, threads=machine.THREADS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        regraft.export_onnx(model, (), path, kwargs=inputs, dynamic_shapes=dynamic)
        session = open_session(path, basic=True)
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}

    def eager() -> object:
        with torch.inference_mode():
            return model(**inputs)

    entrants: dict[str, Call] = {
        "regraft": lambda: compiled(**inputs),
        "session.run": lambda: session.run(None, feed),
        "session, all bound": _bound(session, feed),
        "eager": eager,
    }
    return race(entrants, rounds=rounds, inner=inner).to_dict()


def _bound(session: Any, feed: dict[str, np.ndarray]) -> Call:
    """Inputs and outputs bound once: the least that a call through Python can cost."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    return lambda: session.run_with_iobinding(binding)
