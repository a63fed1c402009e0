"""What stands for torch's own kernels while its tracers run."""

# The tables of an op's Python kernels and decompositions have no public names.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch._C import DispatchKey
from torch._decomp import decomposition_table

from regraft.compiler.capture.attention import ATTENTION, masks_as_given
from regraft.compiler.capture.diagonals import FILLS
from regraft.compiler.capture.lengths import set_kernels

#: Where torch has its own Python kernels of these ops.
_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


@contextmanager
def own_kernels() -> Generator[None]:
    """In the block, tracers know the type of attention without computing it, and fill diagonals.

    Only tracers look at the tables that it changes; these belong to the process: one block at a time.
    """
    own = {**ATTENTION, **FILLS}
    kept = {op: (dict(op.py_kernels), decomposition_table.get(op)) for op in own}
    for op, kernel in own.items():
        set_kernels(op, {**op.py_kernels, **dict.fromkeys(_KEYS, kernel)}, kernel)
    try:
        with masks_as_given():
            yield
    finally:
        for op, (kernels, decomposition) in kept.items():
            set_kernels(op, kernels, decomposition)
