"""The TVM back end: kernels of our own, called from a flat program.

``backend`` takes ops apart (``expand``) and sends a function to ``worker``, a process in which TVM is loaded.
There ``cluster`` says which ops make one kernel, ``lower/`` and ``kernel`` write it as TIR, ``schedule`` says
how its loops run, by what ``neighbours`` finds out about memory, and ``program`` puts calls and conditions
together. Products have ``templates``, whose parameters are in ``space``; ``packing`` is what becomes of
weights at load, ``tune`` and ``bench`` choose, measure and check. ``run`` runs what comes back (``loaded``)
over memory (``binding``), as a ``table`` of words that ``steps.c`` reads, and knows nothing of the compiler.
``problems`` and ``following`` say what a template's kernel has to compute, ``choices`` which config it gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.backends.tvm.run import TvmExecutable
from regraft.runtime import lazy_names

if TYPE_CHECKING:
    # Modules, imported when they are asked for: a saved artefact runs without most of them.
    from regraft.backends.tvm import (
        arena,
        attention,
        bench,
        building,
        built,
        cluster,
        cpu,
        library,
        neighbours,
        packing,
        space,
        table,
        templates,
        tune,
        worker,
    )
    from regraft.backends.tvm.backend import TvmBackend
    from regraft.backends.tvm.lower import LOWERINGS

__all__ = [
    "LOWERINGS",
    "TvmBackend",
    "TvmExecutable",
    "arena",
    "attention",
    "bench",
    "building",
    "built",
    "cluster",
    "cpu",
    "library",
    "neighbours",
    "packing",
    "space",
    "table",
    "templates",
    "tune",
    "worker",
]

# Lowering needs the IR, which a saved artefact runs without.
__getattr__ = lazy_names(
    __name__, {"TvmBackend": "regraft.backends.tvm.backend", "LOWERINGS": "regraft.backends.tvm.lower"}
)
