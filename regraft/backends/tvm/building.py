"""From TIR functions to machine code. Imports TVM when it builds.

TVM's own pipeline spends minutes on kernels like ours: it compacts buffers of unknown size (a minute for one
allocation) and eliminates common subexpressions of unrolled tiles (and puts values where they do not dominate
their uses). Neither is needed: buffers are as large as they must be, and LLVM finds common subexpressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from regraft.backends.tvm.table import SOURCE
from regraft.errors import BackendError


def build(functions: Sequence[Any]) -> Any:
    """TVM's executable of TIR functions, each under its ``global_symbol``, for this machine's CPU.

    Raises:
        BackendError: TVM refuses to build them.
    """
    import tvm

    module = tvm.IRModule({str(function.attrs["global_symbol"]): function for function in functions})
    try:
        return tvm.compile(module, target=host_target(), tir_pipeline=_pipeline())
    except (RuntimeError, ValueError, TypeError) as error:
        names = ", ".join(name.name_hint for name in module.get_global_vars())
        raise BackendError(f"TVM cannot build {names}: {error}", backend="tvm") from error


def link(functions: Sequence[Any], path: str) -> None:
    """Write a shared object with TIR functions, built, and with what runs the steps of a program.

    Raises:
        BackendError: TVM refuses to build them, or they cannot be linked.
    """
    from tvm.support import cc

    options = ["-O2", str(SOURCE)]
    try:
        if functions:
            build(functions).export_library(path, options=options)
        else:  # a program of conditions and copies
            cc.create_shared(path, [], options)
    except RuntimeError as error:
        raise BackendError(f"kernels cannot be linked: {error}", backend="tvm") from error


@cache
def host_target() -> Any:
    """This machine's CPU as a target, by LLVM's name for it.

    The name alone stands for all that such a CPU has; what this machine lets programs use may be less.
    """
    import tvm

    name = tvm.get_global_func("target.llvm_get_system_cpu")()
    usable = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return tvm.target.Target({"kind": "llvm", "mcpu": name, "mattr": attributes(usable)})


def attributes(usable: Mapping[str, bool]) -> list[str]:
    """Features as LLVM takes them: those that are off come last, and turn off what builds on them."""
    on = sorted(f"+{feature}" for feature, is_usable in usable.items() if is_usable)
    return on + sorted(f"-{feature}" for feature, is_usable in usable.items() if not is_usable)


@cache
def _pipeline() -> str:
    """The name under which TVM finds the passes that a kernel without blocks needs, in its own order."""
    import tvm
    from tvm.tirx import compilation_pipeline as own
    from tvm.tirx import transform

    passes = (
        transform.FlattenBuffer(),
        transform.NarrowDataType(32),
        transform.VectorizeLoop(True),
        transform.StorageRewrite(),
        transform.UnrollLoop(),
        transform.StmtSimplify(),
        transform.RemoveNoOp(),
        transform.VerifyMemory(),
        transform.AnnotateEntryFunc(),
        transform.SplitHostDevice(),
        transform.MakePackedAPI(),
    )

    def factory() -> Any:
        sequence = tvm.ir.transform.Sequential(passes)
        return sequence, own.finalize_host_passes, own.finalize_device_passes

    own.register_tir_pipeline("regraft", factory)
    return "regraft"
