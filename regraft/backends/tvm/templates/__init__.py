"""Schedule templates: kernels with a few parameters, one file each. Nothing here imports TVM before a build.

A template says whether it takes a problem, which configs there are, what each should cost, how weights are
packed for it, and builds the kernel. ``space`` has the solver of its constraints, ``tune`` the measuring.
"""

from __future__ import annotations

from typing import Any, Protocol

from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.packing import Packing
from regraft.backends.tvm.space import Config, Space
from regraft.backends.tvm.templates.ffn import FeedForwardTemplate
from regraft.backends.tvm.templates.gemm import TYPICAL_ROWS, GemmTemplate
from regraft.backends.tvm.templates.problem import Argument, Extra, FeedForward, Gemm, Problem, Step
from regraft.backends.tvm.templates.steps import ACTIVATIONS, activation, bias, gate, residual, row_scale

__all__ = [
    "ACTIVATIONS",
    "TEMPLATES",
    "TYPICAL_ROWS",
    "Argument",
    "Extra",
    "FeedForward",
    "Gemm",
    "Problem",
    "Step",
    "Template",
    "activation",
    "bias",
    "gate",
    "residual",
    "row_scale",
    "template_for",
]


class Template(Protocol):
    """One kind of kernel. See ``GemmTemplate`` for what each method promises."""

    name: str

    def takes(self, problem: Problem, cpu: Cpu | None = None) -> str | None: ...

    def space(self, problem: Any, cpu: Cpu) -> Space: ...

    def estimate(self, problem: Any, config: Config, cpu: Cpu, rows: int | None = None) -> float: ...

    def ranked(self, problem: Any, cpu: Cpu, count: int) -> list[Config]: ...

    def default(self, problem: Any, cpu: Cpu) -> Config: ...

    def packing(self, problem: Any, config: Config) -> dict[str, Packing]: ...

    def arguments(self, problem: Any, config: Config) -> tuple[Argument, ...]: ...

    def build(self, problem: Any, config: Config, symbol: str) -> Any: ...


TEMPLATES: tuple[Template, ...] = (GemmTemplate(), FeedForwardTemplate())


def template_for(problem: Problem, cpu: Cpu | None = None) -> Template | None:
    """The first template that takes ``problem``, on ``cpu`` if one is given; None when none does."""
    return next((template for template in TEMPLATES if template.takes(problem, cpu) is None), None)
