"""What an op costs: the protocol that choosers and reports read. Models live in the compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from regraft.errors import ShapeError
from regraft.ir.builder import Builder
from regraft.ir.core import Op, Region, Value, clone_op
from regraft.ir.dims import Dim, Symbol, substitute, symbols_of
from regraft.ir.ops import OPS
from regraft.ir.types import TensorType


@dataclass(frozen=True)
class Cost:
    """Estimated cost of one execution.

    Fields:
        flops: floating-point operations, a multiply-add counted as 2.
        bytes: bytes read and written, each operand and result once.
        launches: kernel calls.
        us: microseconds.
        measured: whether ``us`` was timed on this machine, not modelled.
    """

    flops: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    us: float = 0.0
    measured: bool = False

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.launches + other.launches,
            self.us + other.us,
            self.measured and other.measured,
        )


class CostModel(Protocol):
    """Estimates what an op costs on a device. Never needed for correctness."""

    def estimate(self, op: Op, device: str, sizes: Mapping[Symbol, int]) -> Cost:
        """Cost of ``op`` on ``device`` with its symbols at ``sizes``."""
        ...


def evaluate(dim: Dim, sizes: Mapping[Symbol, int]) -> int:
    """``dim`` as a number; a symbol that ``sizes`` lacks counts as its lower bound."""
    value = substitute(dim, dict(sizes))
    if not isinstance(value, int):
        try:
            value = substitute(value, {s: s.lo for s in symbols_of(value)})
        except ShapeError:  # it is divided by a size that may be 0
            value = substitute(value, {s: max(s.lo, 1) for s in symbols_of(value)})
    assert isinstance(value, int)
    return value


def flops_of(op: Op, sizes: Mapping[Symbol, int]) -> int:
    """Floating-point operations of one call of ``op``; of a spelling those of what it stands for."""
    parts = _parts(op)
    if parts is not None:
        return sum(flops_of(part, sizes) for part in parts)
    return evaluate(op.definition.flops(op.site), sizes)


def _parts(op: Op) -> Sequence[Op] | None:
    """The ops that a spelling stands for, in a region of their own; None for an op of the normal form."""
    definition = op.definition
    if definition.canonical or definition.decompose is None:
        return None
    region = Region()
    mapping: dict[Value, Value] = {}
    for value in dict.fromkeys(op.operands):
        if value.is_const and value.op is not None:
            region.append(clone_op(value.op, mapping))
        else:
            mapping[value] = region.add_arg(value.type)
    copy = clone_op(op, mapping)
    region.append(copy)
    builder = Builder(OPS, region, copy)
    return None if definition.decompose(builder, copy) is None else builder.made


def bytes_of(op: Op, sizes: Mapping[Symbol, int]) -> int:
    """Bytes of the op's operands and results, each distinct value once."""
    values = dict.fromkeys((*op.operands, *op.results))
    types = [v.type for v in values if isinstance(v.type, TensorType)]
    return sum(evaluate(t.numel, sizes) * t.dtype.bits // 8 for t in types)
