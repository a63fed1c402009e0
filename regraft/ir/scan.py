"""The parts of a ``cf.scan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.core import Op, Region, Value
from regraft.ir.dims import Dim


@dataclass(frozen=True)
class Scan:
    """The parts of a ``cf.scan``.

    The arguments of its body are the carried values, the slices and the fixed values; it yields the carried
    values after a trip, then the rows that are stacked.

    Fields:
        carried, slices, fixed: arguments of the body.
        after: what it yields for the carried values.
        rows: what it yields to be stacked.
    """

    op: Op
    body: Region
    carried: Sequence[Value]
    slices: Sequence[Value]
    fixed: Sequence[Value]
    after: Sequence[Value]
    rows: Sequence[Value]

    @staticmethod
    def of(op: Op) -> Scan:
        (body,) = op.regions
        first = len(op.variadic("carried"))
        second = first + len(op.variadic("scanned"))
        args, results = body.args, body.results
        return Scan(
            op, body, args[:first], args[first:second], args[second:], results[:first], results[first:]
        )

    @property
    def length(self) -> Dim:
        """The number of trips."""
        return self.op.variadic("scanned")[0].tensor.shape[0]

    def operand(self, argument: Value) -> Value:
        """What the body's ``argument`` is, or is a slice of."""
        return self.op.operands[argument.index]

    def stacked(self, row: int) -> Value:
        """The result that holds the row for each trip."""
        return self.op.results[len(self.carried) + row]
