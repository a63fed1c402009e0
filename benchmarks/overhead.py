"""What a call costs beside the work: models of almost no work, against ONNX Runtime's own ``run``.

The session runs the file that ``export_onnx`` writes of the same model: the same graph. The targets: a call
takes at most 10 microseconds more with a tensor as the result, at most 25 with a transformers ModelOutput.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.modeling_outputs import BaseModelOutputWithPooling

import regraft
from benchmarks import machine
from benchmarks.peers import open_session
from regraft.timing import Call, Interval, race
from tests.models import FAMILIES

#: Calls a sample: one alone is too short for the clock.
INNER = 200
#: Microseconds that a call may take beyond ``session.run``, by kind of result.
TARGETS = {"tensor": 10, "ModelOutput": 25}


class Pooled(nn.Module):
    """A linear whose result comes as a ModelOutput of two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, input: Tensor) -> BaseModelOutputWithPooling:
        hidden = self.linear(input)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=torch.tanh(hidden))


def run(rounds: int = 30) -> None:
    """Race compiled models with sessions of the same graphs; writes ``overhead.json``."""
    torch.set_num_threads(machine.THREADS)
    where = machine.describe()
    bert = FAMILIES["bert"]
    x = {"input": torch.randn(1, 8)}
    rows = {"input": {0: Dim.AUTO}}
    deep = nn.Sequential(*[nn.Linear(8, 8) for _ in range(100)])
    cases = {
        "linear 8x8": _case("tensor", nn.Linear(8, 8), x, None, rounds, INNER),
        "linear 8x8, dynamic batch": _case("tensor", nn.Linear(8, 8), x, rows, rounds, INNER),
        "100 linears 8x8, 200 weights": _case("tensor", deep, x, None, rounds, INNER),
        "linear 8x8, ModelOutput": _case("ModelOutput", Pooled(), x, None, rounds, INNER),
        "linear 8x8, ModelOutput, dynamic batch": _case("ModelOutput", Pooled(), x, rows, rounds, INNER),
        "BERT of 2 layers, 128 wide, ids [1, 16]": _case(
            "ModelOutput", bert.make("small"), bert.inputs(1, 16), None, rounds, 20
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
        print(
            f"{name}: {case['overhead_us']['median']:.1f} us beyond session.run, target {case['target_us']}"
        )
        for entrant, row in case["entrants"].items():
            print(f"  {entrant:24} {1e3 * row['median_ms']:9.1f} us")
    print(path.name)


def _case(
    result: str, model: nn.Module, inputs: dict[str, Tensor], dynamic: Any, rounds: int, inner: int
) -> dict[str, Any]:
    model.eval()
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
        "eager": eager,
    }
    found = race(entrants, rounds=rounds, inner=inner)
    pairs = zip(found.times["regraft"], found.times["session.run"], strict=True)
    overhead = Interval.of([1e3 * (ours - theirs) for ours, theirs in pairs])
    return {"target_us": TARGETS[result], "overhead_us": overhead.to_dict(), **found.to_dict()}
