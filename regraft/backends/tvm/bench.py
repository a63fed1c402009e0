"""Built kernels on data of their own: what the tuner measures and checks. Imports TVM when it builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft.backends.tvm.building import build
from regraft.backends.tvm.packing import Packing
from regraft.backends.tvm.space import Config
from regraft.backends.tvm.templates import Argument, Problem, Template
from regraft.backends.tvm.templates.reference import example_values, reference
from regraft.errors import NumericsMismatch
from regraft.numerics import assert_close

Call = Callable[[], None]
Kernel = Callable[..., Call]
"""A built kernel: from the tensors of the template's ``arguments``, in order, a call on just these."""
Compile = Callable[[Any, str], Kernel]
"""``compile(function, symbol)``: a TIR function as a kernel."""


def compiled(function: Any, symbol: str) -> Kernel:
    """The kernel of a TIR function called ``symbol``, built in this process.

    Raises:
        BackendError: TVM refuses to build it.
    """
    import tvm_ffi

    kernel = build([function])[symbol]

    def bind(*tensors: Tensor) -> Call:
        arguments = [tvm_ffi.from_dlpack(tensor) for tensor in tensors]
        return lambda: kernel(*arguments)

    return bind


@dataclass(frozen=True)
class Trial:
    """A kernel with arguments.

    Fields:
        run: one call.
        fault: what is wrong with the values of a call; None when they are right.
    """

    run: Call
    fault: Callable[[], str | None]


class KernelBench:
    """Builds the configs of one problem and tries them on random values, against torch in fp64."""

    def __init__(self, problem: Problem, template: Template, compile: Compile = compiled) -> None:
        self.problem = problem
        self.template = template
        self._compile = compile
        self._cases: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}
        self._weights: dict[tuple[str, Packing], Tensor] = {}

    def build(self, config: Config) -> Kernel:
        """The kernel of ``config``.

        Raises:
            BackendError: it does not build.
        """
        function = self.template.build(self.problem, config, "kernel")
        return self._compile(function, "kernel")

    def trial(self, kernel: Kernel, config: Config, rows: int) -> Trial:
        """``kernel``, which is that of ``config``, on ``rows`` rows."""
        arguments = self.template.arguments(self.problem, config)
        values, expected = self._case(arguments, rows)
        packing = self.template.packing(self.problem, config)
        given = {
            a.name: self._packed(a.name, packing[a.name], values[a.name])
            if a.name in packing
            else values[a.name].view(getattr(torch, a.dtype))
            for a in arguments
            if a.role != "output"
        }
        outputs = {
            a.name: torch.empty(
                [rows if size is None else size for size in a.shape],
                dtype=getattr(torch, a.viewed_from or a.dtype),
            )
            for a in arguments
            if a.role == "output"
        }
        seen = [outputs[a.name].view(getattr(torch, a.dtype)) for a in arguments if a.role == "output"]
        call = kernel(*given.values(), *seen)

        def fault() -> str | None:
            for output in outputs.values():
                output.fill_(torch.nan)
            call()
            return _fault(outputs, expected)

        return Trial(call, fault)

    def _packed(self, name: str, packing: Packing, weight: Tensor) -> Tensor:
        """A weight as ``packing`` lays it out; it has the same values at every number of rows."""
        if (name, packing) not in self._weights:
            self._weights[name, packing] = packing.apply(weight)
        return self._weights[name, packing]

    def _case(self, arguments: Sequence[Argument], rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Arguments before packing, and the right results: the same for every config."""
        if rows not in self._cases:
            values = example_values(self.problem, arguments, rows)
            self._cases[rows] = values, reference(self.problem, values)
        return self._cases[rows]


def _fault(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    if "row_squares" in found:
        found = {**found, "row_squares": found["row_squares"].sum(-1)}
    try:
        assert_close([found[name] for name in expected], list(expected.values()))
    except NumericsMismatch as error:
        return str(error)
    return None
