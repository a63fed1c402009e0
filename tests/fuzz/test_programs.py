"""Random programs with conditions, loops and symbolic sizes go through the text form, the verifier, every
stage, and both back ends, and compute the same all along.

``pytest --hypothesis-seed=N`` repeats a run; a failure prints the smallest program as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, reject, settings
from torch import Tensor

from regraft.backends import LowerOptions, backend
from regraft.compiler import run_passes
from regraft.ir import (
    Constant,
    Function,
    Leaf,
    Module,
    Recipe,
    parse_module,
    print_module,
    structurally_equal,
    verify,
)
from regraft.testing import assert_close, evaluate
from tests.fuzz.programs import RUNS, arguments, programs

ORT: Any = backend("ort")
Results = Sequence[Sequence[Tensor]]
RANDOM = {"deadline": None, "suppress_health_check": list(HealthCheck)}


class Store:
    """Constants of a module that was never captured."""

    def __init__(self) -> None:
        self.names: dict[Constant, str] = {}

    def name(self, constant: Constant) -> str:
        return self.names.setdefault(constant, f"constant_{len(self.names)}")

    def tensor(self, constant: Constant) -> Tensor:
        if isinstance(constant, Recipe):
            return evaluate(Function("recipe", constant.body), ())[0]
        assert isinstance(constant, Leaf)
        return constant.storage


def reread(module: Module, dtype: str) -> Module:
    """The module that its text with ``dtype`` in place of f32 spells, with the same constants."""
    text = re.sub(r"\bf32\b", dtype, print_module(module))
    again = parse_module(text)
    assert print_module(again) == text
    weights = {leaf.name: leaf.storage for leaf in module.constants() if isinstance(leaf, Leaf)}
    for leaf in again.constants():
        assert isinstance(leaf, Leaf)
        leaf.storage = weights[leaf.name].double() if dtype == "f64" else weights[leaf.name]
    return again


def results(module: Module) -> list[list[Tensor]]:
    """What eager torch gives in each of ``RUNS``. Programs that it refuses for some size are left out."""
    found: list[list[Tensor]] = []
    for run in RUNS:
        tensors, sizes = arguments(run)
        wide = module.main.args[0].tensor.dtype.value == "f64"
        given = [t.double() if wide and t.is_floating_point() else t for t in tensors]
        try:
            found.append(evaluate(module.main, given, sizes))
        except (RuntimeError, IndexError):
            reject()  # two sizes that the IR takes as equal differ in this run
    return found


def check_ort(module: Module, expected: Results, eager: Results) -> None:
    executable = ORT.lower(module.main, Store(), LowerOptions(threads=1))
    for run, reference, own in zip(RUNS, expected, eager, strict=True):
        tensors, sizes = arguments(run)
        assert_close(executable.run(tensors, sizes), reference, own, reassociates=True)


def refusals(module: Module) -> list[str]:
    return [reason for op in module.main.body.ops if (reason := ORT.supports(op)) is not None]


def check(module: Module) -> None:
    note(print_module(module))
    verify(module, "captured")
    again = reread(module, "f32")
    assert structurally_equal(module, again)
    expected, eager = results(reread(module, "f64")), results(module)
    if all(op.definition.canonical for op in module.main.walk()):
        assert refusals(module) == []
        check_ort(module, expected, eager)
    run_passes(again)
    note(print_module(again))
    for run, reference, own in zip(RUNS, expected, eager, strict=True):
        tensors, sizes = arguments(run)
        assert_close(evaluate(again.main, tensors, sizes), reference, own, reassociates=True)
    assert refusals(again) == []
    check_ort(again, expected, eager)


@settings(max_examples=40, **RANDOM)
@given(programs())
def test_programs(module: Module) -> None:
    check(module)


@pytest.mark.conformance
@settings(max_examples=300, **RANDOM)
@given(programs())
def test_many_programs(module: Module) -> None:
    check(module)
