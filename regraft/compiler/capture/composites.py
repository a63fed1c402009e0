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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram, default_decompositions
from torch.fx import GraphModule

from regraft.compiler.capture.arguments import overload_name
from regraft.ir import OpTable
from regraft.runtime import is_random

#: Ops of packed sequences and of complex numbers, but for those of ``torch.fft``.
_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_SPECTRA = ("stft", "istft")


def functional(program: ExportedProgram, table: OpTable) -> ExportedProgram:
    """``program`` in functional form: its mutations resolved, ops outside ``table`` taken apart.

    Random ops stay whole, since what torch makes of them draws other numbers.

    An op of the table stays as it is; so does one that torch has no decomposition for.
    """
    return program.run_decompositions(_decompositions(table) if _has_others(program, table) else {})


def _has_others(program: ExportedProgram, table: OpTable) -> bool:
    """Whether an op of ``program`` is outside ``table``; in-place ops count, whatever they become."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    targets = {node.target for graph in graphs for node in graph.nodes if node.op == "call_function"}
    return any(isinstance(t, OpOverload) and _may_go(t, table) for t in targets)


def _decompositions(table: OpTable) -> dict[Any, Callable[..., Any]]:
    return {
        op: rule
        for op, rule in {**default_decompositions(), **_OWN}.items()
        if isinstance(op, OpOverload) and _may_go(op, table) and not is_random(op)
    }


def _eye(n: int, *, dtype: torch.dtype | None = None, **place: Any) -> Tensor:
    return _eye_m(n, n, dtype=dtype, **place)


def _eye_m(n: int, m: int, *, dtype: torch.dtype | None = None, **place: Any) -> Tensor:
    device = place.get("device")
    rows, columns = torch.arange(n, device=device), torch.arange(m, device=device)
    return (rows.unsqueeze(1) == columns).to(dtype or torch.get_default_dtype())


#: In place of torch's decompositions: of 256 rows and more, torch counts in 16 bits without a sign.
_OWN: dict[Any, Callable[..., Any]] = {
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
