"""Which elements of a result are neighbours in the memory that they are computed from.

A kernel that computes each element by itself goes along the last axis of its result. Of what lies along
another one it reads a line of the cache for each element.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regraft.backends.tvm.lower.indexing import ravel
from regraft.backends.tvm.lower.inside import POINTWISE, is_free
from regraft.backends.tvm.lower.kinds import broadcast, is_elementwise
from regraft.ir import Dim, Op, Value, dims

if TYPE_CHECKING:
    from regraft.backends.tvm.cluster import Cluster

#: Neighbours that are read from far apart, for one line of the cache each: as many as stay in it until the
#: others of these lines (of f32) are read.
LINE = 16


def turned_axis(cluster: Cluster) -> int | None:
    """The axis of the result that most values are read along that do not lie along the last one.

    None where there is no such value. ``cluster`` computes each element by itself; where an op chooses by
    values or places what it reads, nothing is said.
    """
    last = cluster.root.result.tensor.rank - 1
    reads = _Reads(cluster)

    def turned(axis: int) -> int:
        return sum(axis in r.near and last not in r.near and last in r.axes for r in reads.found)

    best = max(range(last), key=turned, default=None)
    return best if best is not None and turned(best) and not reads.is_partial else None


@dataclass(frozen=True)
class _Place:
    """A place, or an offset, as lowerings compute with it.

    Fields:
        near: the axes of the result of which neighbours are neighbours here.
        axes: all that it depends on.
    """

    near: frozenset[int] = frozenset()
    axes: frozenset[int] = frozenset()

    def __add__(self, other: Any) -> _Place:
        if isinstance(other, int):
            return self
        return _Place(self.near | other.near, self.axes | other.axes)

    def __mul__(self, other: Any) -> _Place:
        if isinstance(other, int):
            return self if other == 1 else _Place(axes=self.axes)
        return _Place(axes=self.axes | other.axes)

    def __floordiv__(self, other: Any) -> _Place:
        return self * 0 if isinstance(other, int) else self * other

    def __mod__(self, other: Any) -> _Place:
        """Neighbours stay neighbours within one turn."""
        return self + other

    __radd__ = __sub__ = __rsub__ = __add__
    __rmul__ = __mul__
    __rfloordiv__ = __rmod__ = __floordiv__


@dataclass
class _Reads:
    """Stands for a kernel where lowerings say which elements they read.

    Fields:
        found: the offsets at which memory is read.
        is_partial: whether an op chooses by values or places what it reads, which is not followed.
    """

    cluster: Cluster
    found: list[_Place] = field(default_factory=list[_Place])
    is_partial: bool = False
    _seen: set[Any] = field(default_factory=set[Any])

    def __post_init__(self) -> None:
        root = self.cluster.root.result
        axes = [frozenset({axis}) for axis in range(root.tensor.rank)]
        one = [dims.eq(size, 1) is True for size in root.tensor.shape]
        self.at(root, [0 if is_one else _Place(a, a) for a, is_one in zip(axes, one, strict=True)])

    def at(self, value: Value, index: Sequence[Any]) -> None:
        op = value.op
        if op is None or op not in self.cluster.inlined:
            offset = ravel(index, value.tensor.shape, self.size)
            self.found.append(offset if isinstance(offset, _Place) else _Place())
        elif (op, *index) not in self._seen:
            self._seen.add((op, *index))
            self._computed(op, index)

    def _computed(self, op: Op, index: Sequence[Any]) -> None:
        if is_elementwise(op):
            for operand in op.operands:
                self.at(operand, broadcast(index, operand, len(index)))
        elif not is_free(op):
            self.is_partial = True
        elif op.operands:
            POINTWISE[op.name].emit(self, op, index)

    def size(self, dim: Dim) -> Any:
        return dim if isinstance(dim, int) else _Place()
