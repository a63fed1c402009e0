"""Ops that the op table lacks and torch can take apart: ``tensordot``, ``cross_entropy_loss``, ``quantile``.

The table holds what rewrites and back ends want to see whole. Everything else that torch itself
decomposes into core ATen ops is decomposed by torch, at capture, where its sizes may be symbolic.
"""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# An overload's schema and name have no public names.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor

# What run_decompositions of torch 2.13 is made of, which the package asks for.
from torch._decomp import _core_aten_decompositions_post_autograd
from torch._export.utils import (
    _collect_all_valid_cia_ops_for_aten_namespace,
    _is_preservable_cia_op,
    _special_op_to_preserve_cia,
)
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.decomp_utils import PRESERVED_ATEN_CIA_OPS
from torch.export.exported_program import _decompose_exported_program
from torch.fx import GraphModule

from regraft.compiler.capture.arguments import overload_name
from regraft.ir import OpTable
from regraft.runtime import is_random, torch_op

#: Ops of packed sequences and of complex numbers, but for those of ``torch.fft``.
_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_SPECTRA = ("stft", "istft")

Rules = dict[Any, Callable[..., Any]]


def functional(program: ExportedProgram, table: OpTable) -> ExportedProgram:
    """``program`` in functional form: its mutations resolved, ops outside ``table`` taken apart.

    Random ops stay whole, since what torch makes of them draws other numbers.

    An op of the table stays as it is; so does one that torch has no decomposition for.

    This is ``program.run_decompositions``, which looks through all of torch's ops in each call and gives
    each of its 500 composites 21 kernels for the time of it: most of what a small model took to be captured.
    Here kernels go to those composites alone that stay whole or have a rule of their own: the others are
    taken apart by the dispatcher, as in eager.
    """
    met = _overloads(program)
    rules = _rules(table) if any(_may_go(op, table) for op in met) else {}
    # Rules bring in further ops; without any, there are those of the program.
    composites = [op for op in _aten_composites() if rules or op in met]
    kept = [op for op in composites if op not in rules and _stays(op, table)]
    whole = (*kept, *_others_composites(met, table))
    of_composites: Rules = dict.fromkeys(whole, _special_op_to_preserve_cia)
    of_composites.update({op: rules.pop(op) for op in composites if op in rules})
    return _decompose_exported_program(
        program,
        cia_to_decomp=of_composites,
        python_decomp_table=rules,
        joint_loss_index=None,
        decompose_custom_triton_ops=False,
    )


def _overloads(program: ExportedProgram) -> set[OpOverload]:
    """The ops of ``program``; in-place ops count, whatever they become."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    targets = {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}
    return {target for target in targets if isinstance(target, OpOverload)}


@functools.cache
def _aten_composites() -> Collection[OpOverload]:
    """Functional ops for which torch has a decomposition into others that no autograd knows of."""
    return tuple(op for op in _collect_all_valid_cia_ops_for_aten_namespace() if isinstance(op, OpOverload))


def _others_composites(met: Iterable[OpOverload], table: OpTable) -> set[OpOverload]:
    """Composites of others than torch, which stay whole: those ``met``, and those that ``table`` names."""
    named = (torch_op(name) for name in table if name.partition(".")[0] not in ("aten", "rg", "cf"))
    own = (op for op in (*met, *named) if op is not None and op.namespace != "aten")
    return {op for op in own if _is_preservable_cia_op(op)}


def _rules(table: OpTable) -> Rules:
    return {
        op: rule
        for op, rule in {**_core_aten_decompositions_post_autograd(), **_OWN}.items()
        if isinstance(op, OpOverload) and _may_go(op, table) and not is_random(op)
    }


def _stays(op: OpOverload, table: OpTable) -> bool:
    return not _may_go(op, table) or op in PRESERVED_ATEN_CIA_OPS or is_random(op)


def _eye(n: int, *, dtype: torch.dtype | None = None, **place: Any) -> Tensor:
    return _eye_m(n, n, dtype=dtype, **place)


def _eye_m(n: int, m: int, *, dtype: torch.dtype | None = None, **place: Any) -> Tensor:
    device = place.get("device")
    rows, columns = torch.arange(n, device=device), torch.arange(m, device=device)
    return (rows.unsqueeze(1) == columns).to(dtype or torch.get_default_dtype())


#: In place of torch's decompositions: of 256 rows and more, torch counts in 16 bits without a sign.
_OWN: Rules = {
    torch.ops.aten.eye.default: _eye,
    torch.ops.aten.eye.m: _eye_m,
}


def _may_go(op: OpOverload, table: OpTable) -> bool:
    return op.namespace == "aten" and overload_name(op) not in table and not _is_whole(op)


def _is_whole(op: OpOverload) -> bool:
    """Whether torch would take ``op`` apart into less that can be said about.

    These are questions, which have no tensor among their results, packed sequences and complex numbers: they
    are refused by the name that the user wrote.
    """
    name, overload = op._schema.name.removeprefix("aten::"), op._overloadname
    if not any("Tensor" in str(result.type) for result in op._schema.returns):
        return True
    is_packed = name in _LAYERS and overload == "data"
    return is_packed or name in _SPECTRA or name.startswith("fft_")
