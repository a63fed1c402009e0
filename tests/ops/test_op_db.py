"""torch's own samples of the typed ops, captured and run by eager and by ONNX Runtime.

The samples of an op are the calls of one model, so that many are captured at once. Where that model is
refused or wrong, its halves are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

import regraft
from regraft.errors import CaptureError, RegraftError
from regraft.testing import assert_close
from tests.ops.op_db import CALLED_BY, LIMITS, NOT_IN_OP_DB, PACKETS, UNDEFINED, Call, calls_of, infos

#: The most samples of an op and a type, in a plain run and in the full one.
FEW, MANY = 4, 16
#: Samples of one model.
TOGETHER = 64


class Slot(int):
    """The place of a tensor among the arguments."""


class Calls(nn.Module):
    """One result for each call, from all the calls' tensors as arguments."""

    def __init__(self, calls: Sequence[Call]) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.calls: list[tuple[Callable[..., Any], list[Any], pytree.TreeSpec]] = []
        for call in calls:
            sample = call.sample
            leaves, structure = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
            self.calls.append((call.op, [self._slot(leaf) for leaf in leaves], structure))

    def _slot(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        self.tensors.append(leaf.detach().clone())
        return Slot(len(self.tensors) - 1)

    def forward(self, *tensors: Tensor) -> list[Any]:
        results: list[Any] = []
        for op, leaves, structure in self.calls:
            given = [tensors[leaf] if isinstance(leaf, Slot) else leaf for leaf in leaves]
            first, args, kwargs = pytree.tree_unflatten(given, structure)
            results.append(op(first, *args, **kwargs))
        return results


def reasons_of(calls: Sequence[Call]) -> set[str]:
    """Compare both back ends with torch; why ONNX Runtime left ops to eager, or which errors there were."""
    if len(calls) > TOGETHER:
        return _of_halves(calls)
    try:
        return _reasons(Calls(calls).eval())
    except RegraftError as error:
        if len(calls) > 1:
            return _of_halves(calls)
        return {f"{type(error).__name__}: {error.message}"}


def _of_halves(calls: Sequence[Call]) -> set[str]:
    middle = len(calls) // 2
    return reasons_of(calls[:middle]) | reasons_of(calls[middle:])


def _reasons(model: Calls) -> set[str]:
    program = _exported(model)
    with torch.no_grad():
        eager = model(*model.tensors)
        wide = model(*(_wide(tensor) for tensor in model.tensors))
    # A decision, such as an index, is eager's; a float is compared in fp64.
    expected = pytree.tree_map(lambda w, e: _wide(w) if e.is_floating_point() else e, wide, eager)
    reasons: set[str] = set()
    for back_end in ("eager", "ort"):
        compiled = regraft.compile(program, backends=(back_end,), fallback="eager")
        assert_close(compiled(*model.tensors), expected, eager, reassociates=True)
        fallbacks = compiled.report.to_dict()["fallbacks"]
        reasons |= {f"{each['op']}: {each['reason']}" for each in fallbacks}
    return reasons


def _exported(model: Calls) -> ExportedProgram:
    """The program of ``model``; where torch.export fails, what capture makes of that.

    Raises:
        CaptureError: it cannot be captured.
    """
    try:
        return torch.export.export(model, tuple(model.tensors), strict=False)
    except Exception as error:
        with pytest.raises(CaptureError) as caught:
            regraft.capture(model, tuple(model.tensors))
        raise caught.value from error


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@pytest.mark.conformance
@pytest.mark.filterwarnings("ignore")  # Samples of deprecated and odd uses are samples too.
@pytest.mark.parametrize("packet", [p for p in PACKETS if p not in NOT_IN_OP_DB and p not in UNDEFINED])
def test_samples(packet: str, full_run: bool) -> None:
    calls = calls_of(packet, MANY if full_run else FEW)
    assert calls
    reasons, limits = reasons_of(calls), LIMITS.get(packet, ())
    assert [reason for reason in reasons if not any(words in reason for words in limits)] == []
    if full_run:
        assert [words for words in limits if not any(words in reason for reason in reasons)] == []


@pytest.mark.conformance
def test_the_tables_are_about_typed_ops() -> None:
    assert {packet for packet in PACKETS if not list(infos(packet))} == set(NOT_IN_OP_DB)
    assert set(LIMITS) <= set(PACKETS) - set(NOT_IN_OP_DB) - set(UNDEFINED)
    assert set(UNDEFINED) | set(CALLED_BY) <= set(PACKETS)
