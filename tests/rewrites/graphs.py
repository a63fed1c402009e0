"""Small graphs for tests."""

from collections.abc import Callable, Sequence
from typing import Any

from regraft.ir import OPS, Example, Function, Module, OpTable, Pass, PassContext, Region, in_order
from regraft.testing import build_example


def graph(
    build: Callable[..., Any], *inputs: str, constants: Sequence[int] = (), table: OpTable = OPS
) -> Module:
    """The module of ``build(op, *inputs)``."""
    return build_example(Example(build, inputs, tuple(constants)), table)


def names(module: Module) -> list[str]:
    """The ops in order, without constants and the terminator."""
    return [op.name for op in module.main.body.ops if op.name not in ("rg.const", "cf.yield")]


def run(passes: Sequence[Pass] | Pass, module: Module) -> PassContext:
    context = PassContext(OPS)
    for each in in_order(passes) if isinstance(passes, Sequence) else (passes,):
        each.run(module, context)
    return context


def function(region: Region) -> Function:
    return Function("forward", region)
