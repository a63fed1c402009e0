"""The back end ``acme-numpy``: NumPy for the few ops that it is good at, the rest is for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.errors import BackendError
from regraft.ir import DType, Function, Op, TensorType, Trait, Value

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "acme.soft_cap": lambda x, cap: cap * np.tanh(x / x.dtype.type(cap)),
    "aten.add.Tensor": lambda a, b: a + b,
    "aten.tanh": np.tanh,
}
"""Op -> its NumPy function of the operands, and of the attributes that ``_numbers`` keeps."""


class NumpyBackend:
    """Takes f32 ops of ``FUNCTIONS``. What it takes, it runs as a list of calls over numbered slots."""

    name = "acme-numpy"

    def supports(self, op: Op) -> str | None:
        """None when ``op`` can be lowered, else the reason why not, for the user."""
        for value in (*op.operands, *op.results):
            type = value.type
            if not isinstance(type, TensorType) or type.dtype is not DType.F32 or type.device != "cpu":
                return f"it runs on f32 tensors in memory, not on {type}"
        if op.has(Trait.TERMINATOR) or op.has(Trait.CONSTANT_LIKE):
            return None
        if op.name not in FUNCTIONS:
            return f"there is no NumPy function for {op.name}"
        return None if op.attrs.get("alpha", 1) == 1 else "alpha is not 1"

    def lower(self, function: Function, store: Any, options: Any) -> NumpyExecutable:
        """The program of ``function``, whose ops are all supported."""
        slots: dict[Value, int] = {value: i for i, value in enumerate(function.args)}
        constants: dict[str, Tensor] = {}
        filled: list[list[Any]] = []
        steps: list[dict[str, Any]] = []
        for op in function.body.ops:
            if op.has(Trait.TERMINATOR):
                continue
            if op.has(Trait.CONSTANT_LIKE):
                name = store.name(op.attr("value"))
                constants[name] = store.tensor(op.attr("value"))
                filled.append([len(slots), name])
            else:
                reason = self.supports(op)
                if reason is not None:
                    raise BackendError(reason, self.name, op.name)
                steps.append(
                    {"op": op.name, "inputs": [slots[v] for v in op.operands], "numbers": _numbers(op)}
                )
                steps[-1]["output"] = len(slots)
            slots[op.result] = len(slots)
        results = [slots[value] for value in function.results]
        return NumpyExecutable({"filled": filled, "steps": steps, "results": results}, constants)


def _numbers(op: Op) -> list[Any]:
    return [value for name, value in op.attrs.items() if name != "alpha"]


class NumpyExecutable:
    """A program and its constants; ``program`` is JSON, for it is what ``save`` writes."""

    backend = NumpyBackend.name

    def __init__(self, program: Mapping[str, Any], constants: Mapping[str, Tensor]) -> None:
        self.program = program
        self.constants = dict(constants)

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """The results, copied: a slot may hold an argument or a constant."""
        slots: dict[int, Any] = {i: tensor.detach().numpy() for i, tensor in enumerate(inputs)}
        for slot, name in self.program["filled"]:
            slots[slot] = self.constants[name].detach().numpy()
        with np.errstate(all="ignore"):  # torch computes infinities and NaNs without a word
            for step in self.program["steps"]:
                arguments = [slots[i] for i in step["inputs"]]
                slots[step["output"]] = FUNCTIONS[step["op"]](*arguments, *step["numbers"])
        return [torch.from_numpy(np.array(slots[i], order="C")) for i in self.program["results"]]

    def save(self, writer: Any) -> dict[str, Any]:
        for name, tensor in self.constants.items():
            writer.add_tensor(name, tensor)
        return {"program": self.program, "constants": list(self.constants)}


def load(record: Mapping[str, Any], reader: Any) -> NumpyExecutable:
    """The executable that ``save`` wrote."""
    return NumpyExecutable(record["program"], {name: reader.tensor(name) for name in record["constants"]})
