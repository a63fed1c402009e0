"""How loops are shared by threads and made vectors, by rule. Imports TVM.

Elementwise kernels run over the longest run of last axes that all their memory has in one piece; rows are
shared by the threads, blocks of a row where there is no other axis. Kernels of little work stay on one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tvm.script.ir_builder import tirx as T

from regraft.backends.tvm.lower.kinds import Expr, is_elementwise
from regraft.backends.tvm.neighbours import LINE, turned_axis
from regraft.ir import Dim, Value, dims

if TYPE_CHECKING:
    from regraft.backends.tvm.cluster import Cluster

#: Elements from which a second thread gains more than waking it costs (some 5 microseconds).
PARALLEL = 1 << 15
#: Elements of a row that one thread takes at a time.
BLOCK = 1 << 13


def rows(k: Any, sizes: Sequence[Dim], body: Callable[[list[Expr]], None], work: Dim, is_large: bool) -> None:
    """``body(place)`` for each place of ``sizes``: in parallel when they and ``work`` of each are enough.

    Where that depends on sizes, loops are written for both cases; those that are ``is_large`` are parallel.
    """
    count = dims.product(sizes)
    if count == 0:
        return
    if dims.eq(count, 1) is True:
        with k.scope():
            body([T.int64(0)] * len(sizes))
        return

    def loop(kind: Callable[..., Any]) -> None:
        with kind(T.int64(0), k.size(count)) as row, k.scope():
            body(k.unraveled(row, sizes))

    total = dims.product((count, work))
    enough = dims.le(PARALLEL, total)
    if enough is None and is_large:
        enough = True
    if enough is not None:
        loop(T.parallel if enough else T.serial)
        return
    with T.If(k.size(total) >= T.int64(PARALLEL)):
        with T.Then():
            loop(T.parallel)
        with T.Else():
            loop(T.serial)


def pointwise(k: Any, cluster: Cluster) -> None:
    """A kernel that computes each element by itself."""
    root = cluster.root.result
    shape = root.tensor.shape
    axis = turned_axis(cluster)
    if axis is not None:
        _turned(k, root, axis)
        return
    kept = _outer_axes(cluster)
    outer, inner = shape[:kept], dims.product(shape[kept:])
    blocks = dims.ceildiv(inner, BLOCK) if kept == 0 else 1
    before_run, after_run = _around_run(shape[kept:])

    def body(place: list[Expr]) -> None:
        *before, block = place

        def element(j: Expr) -> None:
            index = [*before, *before_run, first + j, *after_run] if shape else []
            k.store(index, k.at(root, index))

        if blocks == 1:
            first = T.int64(0)
            k.lanes(inner, element)
            return
        first = k.bind(block * T.int64(BLOCK))
        k.lanes(k.at_most(BLOCK, inner, first), element)

    k.rows((*outer, blocks), body, BLOCK if kept == 0 else inner)


def _around_run(sizes: Sequence[Dim]) -> tuple[list[Expr], list[Expr]]:
    """The places before and behind the one that runs over all of ``sizes``: it is on the last axis that is
    not known to be 1, since broadcasting reads place 0 of one that is.
    """
    runs = (axis for axis in reversed(range(len(sizes))) if dims.eq(sizes[axis], 1) is not True)
    axis = next(runs, len(sizes) - 1)
    return [T.int64(0)] * axis, [T.int64(0)] * (len(sizes) - axis - 1)


def _turned(k: Any, root: Value, axis: int) -> None:
    """A kernel that reads memory along ``axis`` and writes it along the last one, in tiles of both."""
    *outer, last = root.tensor.shape
    size = outer.pop(axis)

    def body(place: list[Expr]) -> None:
        *before, block = place
        first = k.bind(block * T.int64(LINE))
        width = k.at_most(LINE, last, first)
        with k.loops((size,)) as (along,):

            def element(j: Expr) -> None:
                index = [*before[:axis], along, *before[axis:], first + j]
                k.store(index, k.at(root, index))

            k.lanes(width, element)

    k.rows((*outer, dims.ceildiv(last, LINE)), body, dims.product((size, LINE)))


def _outer_axes(cluster: Cluster) -> int:
    """How many axes come before the run of last axes that is one row in everything that is read."""
    shape = cluster.root.result.tensor.shape
    if not all(is_elementwise(op) for op in cluster.inlined):
        return max(len(shape) - 1, 0)
    read = [v for op in cluster.inlined for v in op.operands if v.op not in cluster.inlined]
    shapes = [v.tensor.shape for v in (*read, *(op.result for op in cluster.inlined))]
    return next(kept for kept in range(len(shape) + 1) if all(_in_one_piece(s, shape, kept) for s in shapes))


def _in_one_piece(own: Sequence[Dim], shape: Sequence[Dim], kept: int) -> bool:
    """Whether the axes of ``shape`` from ``kept`` on are all there in ``own``, or none is."""
    if kept >= len(shape) - 1:
        return True
    after = len(shape) - kept
    tail = own[-after:] if after else ()
    if all(dims.eq(size, 1) is True for size in tail):
        return True
    return len(tail) == after and all(dims.eq(a, b) is True for a, b in zip(tail, shape[kept:], strict=True))
