"""Estimates: a roofline over the machine's profile. Heuristics about speed live here and nowhere else.

Williams, Waterman, Patterson 2009: an op takes as long as the slower of its arithmetic and its traffic.
Nothing here is needed for correctness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regraft.compiler.choose.machine import MachineProfile
from regraft.ir import Cost, Op, Region, Scan, Symbol, TensorType, Trait, Value, evaluate, flops_of

#: Ops that ONNX Runtime answers with another shape over the same memory.
_FREE_OF_TRAFFIC = ("aten.view",)
#: Ops that read of a table what they give, and no more.
_LOOKUPS = ("aten.embedding",)
_PRODUCTS = ("aten.linear", "aten.matmul", "rg.ffn")
#: Microseconds that are saved at least where a part of a function pays that another library runs: a call of
#: each, and what one leaves in the caches.
WORTH_A_CUT = 100.0


@dataclass(frozen=True)
class RooflineModel:
    """A ``CostModel`` for one machine."""

    machine: MachineProfile

    def estimate(self, op: Op, device: str, sizes: Mapping[Symbol, int]) -> Cost:
        """The cost of ``op`` when constants come from memory and other values from the cache."""
        if op.has(Trait.CONSTANT_LIKE) or op.has(Trait.TERMINATOR):
            return Cost()
        if op.name == "cf.scan":
            return self._trips(Scan.of(op), sizes)
        flops = flops_of(op, sizes)
        constants, values = _traffic(op, sizes)
        if op.name in _FREE_OF_TRAFFIC:
            values = 0
        seconds = constants / self.machine.memory_bandwidth + values / self.machine.cache_bandwidth
        if op.name in _PRODUCTS:
            speed = self.machine.peak * self.machine.efficiency_at(_rows(op, sizes))
            seconds = max(seconds, flops / speed)
        launches = _launches(op)
        seconds += launches * self.machine.op_overhead
        return Cost(flops, constants + values, launches, seconds * 1e6)

    def region(self, region: Region, sizes: Mapping[Symbol, int]) -> Cost:
        """The sum over the ops of ``region``."""
        return sum((self.estimate(op, "cpu", sizes) for op in region.ops), Cost())

    def is_worth_a_cut(self, op: Op, sizes: Mapping[Symbol, int]) -> bool:
        """Whether ``op`` as one kernel pays, where that is another back end's than the ops around it.

        Elsewhere a scan costs a kernel for each op of each trip. One of an open number of trips pays: little
        is lost where they are few, and a multiple would be where they are many.
        """
        if op.name != "cf.scan" or not isinstance(Scan.of(op).length, int):
            return True
        return self.estimate(op, "cpu", sizes).us >= WORTH_A_CUT

    def _trips(self, scan: Scan, sizes: Mapping[Symbol, int]) -> Cost:
        """All trips of ``scan``, each op of a trip a kernel."""
        trip, count = self.region(scan.body, sizes), evaluate(scan.length, sizes)
        return Cost(count * trip.flops, count * trip.bytes, count * trip.launches, count * trip.us)


def _launches(op: Op) -> int:
    """Kernels that a back end runs for ``op``: two products and the activation of a feed-forward block."""
    if op.name != "rg.ffn":
        return 1
    return 3 if op.optional("gate_weight") is None else 5


def _traffic(op: Op, sizes: Mapping[Symbol, int]) -> tuple[int, int]:
    """Bytes of the constants and of the other values that ``op`` reads and writes."""
    read = dict.fromkeys((*op.operands, *op.results))
    constants = sum(_bytes(v, sizes) for v in read if v.is_const)
    if op.name in _LOOKUPS:
        constants = min(constants, _bytes(op.results[0], sizes))
    return constants, sum(_bytes(v, sizes) for v in read if not v.is_const)


def _bytes(value: Value, sizes: Mapping[Symbol, int]) -> int:
    if not isinstance(value.type, TensorType):
        return 0
    return evaluate(value.type.numel, sizes) * value.type.dtype.bits // 8


def _rows(op: Op, sizes: Mapping[Symbol, int]) -> int:
    """The rows that share one read of the matrix."""
    x, result = op.operands[0].tensor, op.results[0].tensor
    if op.name in ("aten.linear", "rg.ffn"):
        return max(1, evaluate(x.numel, sizes) // max(1, evaluate(x.shape[-1], sizes)))
    return max(1, evaluate(result.shape[-2], sizes)) if result.rank > 1 else 1
