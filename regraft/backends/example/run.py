"""Runs example programs. An artefact needs this file and ``functions.py``, and no compiler.

A program is JSON: a list of steps over numbered slots. An argument is a template: a JSON value stands
for itself, a list for a list of templates, and an object with one key for what JSON lacks:
``{"slot": 3}``, ``{"dim": "2*s0"}``, ``{"dtype": "f32"}``, ``{"float": "inf"}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.backends.example.functions import DTYPES, FUNCTIONS, Array
from regraft.runtime import ArtefactReader, ArtefactWriter, compile_dim

Record = Mapping[str, Any]
Slots = dict[int, Array]
Getter = Callable[[Slots, Mapping[str, int]], Any]


class ExampleExecutable:
    """A program and its constants."""

    backend = "example"

    def __init__(self, program: Record, constants: Mapping[str, Tensor]) -> None:
        self._record = program
        self._constants = dict(constants)
        # A tensor and its array share memory: a weight exists once, whoever uses it.
        arrays = {name: tensor.detach().numpy() for name, tensor in self._constants.items()}
        self._filled = [(slot, arrays[name]) for slot, name in program["constants"]]
        self._steps = [_step(step) for step in program["steps"]]

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """The results. Nothing of a call is kept in ``self``: other threads may be in here too."""
        slots: Slots = {i: tensor.detach().numpy() for i, tensor in enumerate(inputs)}
        for slot, array in self._filled:
            slots[slot] = array
        with np.errstate(all="ignore"):  # torch computes infinities and NaNs without a word
            for step in self._steps:
                step(slots, sizes)
        # Copies, because a slot may hold a view of an argument or of a constant, or be returned twice.
        return [torch.from_numpy(np.array(slots[i], order="C")) for i in self._record["results"]]

    def save(self, writer: ArtefactWriter) -> dict[str, Any]:
        """The program; its constants go to ``writer`` under their names."""
        for name, tensor in self._constants.items():
            writer.add_tensor(name, tensor)
        return {"program": self._record, "constants": list(self._constants)}


def load(record: Record, reader: ArtefactReader) -> ExampleExecutable:
    """The executable that ``save`` wrote."""
    constants = {name: reader.tensor(name) for name in record["constants"]}
    return ExampleExecutable(record["program"], constants)


def _step(record: Record) -> Callable[[Slots, Mapping[str, int]], None]:
    """One op as a function that fills its result's slot."""
    function = FUNCTIONS[record["op"]]
    arguments = [_getter(template) for template in record["args"]]
    output, dtype = record["output"], DTYPES[record["dtype"]]

    def execute(slots: Slots, sizes: Mapping[str, int]) -> None:
        result = function(*[get(slots, sizes) for get in arguments])
        slots[output] = np.asarray(result).astype(dtype, copy=False)

    return execute


def _getter(template: Any) -> Getter:
    """A function from slots and sizes to the argument that ``template`` describes."""
    if isinstance(template, list):
        parts = [_getter(part) for part in template]
        return lambda slots, sizes: [get(slots, sizes) for get in parts]
    if not isinstance(template, dict):
        return lambda slots, sizes: template
    ((kind, content),) = template.items()
    if kind == "slot":
        return lambda slots, sizes: slots[content]
    if kind == "dim":
        size = compile_dim(content)
        return lambda slots, sizes: size(sizes)
    value = DTYPES[content] if kind == "dtype" else float(content)
    return lambda slots, sizes: value
