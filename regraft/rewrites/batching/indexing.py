"""Batching of ops that pick and write elements by index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from regraft.ir import DType, Op, Value
from regraft.rewrites.batching.call import Call, Rule


def _embedding(call: Call) -> Sequence[Value]:
    return call.again({})


def _same_table(op: Op, varying: Set[Value]) -> str | None:
    return (
        "the table of an embedding differs from sample to sample" if op.operand("weight") in varying else None
    )


def _along(*names: str) -> Rule:
    """``gather`` and ``scatter``: operands ``names`` of one rank, and an axis."""

    def build(call: Call) -> Sequence[Value]:
        axis = call.op.attr("dim") % call.op.operand("self").tensor.rank + 1
        return call.again({"dim": axis, **{name: call.lifted(call.op.operand(name)) for name in names}})

    def check(op: Op, _: Set[Value]) -> str | None:
        ranks = {op.operand(name).tensor.rank for name in names}
        return None if len(ranks) == 1 and 0 not in ranks else f"{op.name} of a single number"

    return Rule(build, check)


def _axes(op: Op) -> list[int]:
    return [axis for axis, index in enumerate(op.optional_list("indices")) if index is not None]


def _are_neighbours(axes: Sequence[int]) -> bool:
    return list(axes) == list(range(axes[0], axes[-1] + 1))


def _indices(call: Call, rank: int) -> list[Value | None]:
    """What stands for the indices, those that vary with the leading axis before ``rank`` others."""
    given = call.op.optional_list("indices")
    return [None if index is None else call.padded(index, rank) for index in given]


def _rank(op: Op) -> int:
    """The number of axes that the indices give the result."""
    return max(index.tensor.rank for index in op.optional_list("indices") if index is not None)


def _samples(call: Call, rank: int) -> Value:
    """The number of each sample, before ``rank`` axes of size 1."""
    numbers = call.b.aten.arange.start_step(0, call.size, 1, dtype=DType.I64)
    return call.view(numbers, (call.size, *(1,) * rank))


def _index(call: Call) -> Sequence[Value]:
    op, axes, rank = call.op, _axes(call.op), _rank(call.op)
    x, indices = call.of("self"), _indices(call, rank)
    neighbours = _are_neighbours(axes)
    at = axes[0] if neighbours else 0
    count = op.result.tensor.rank
    if not any(index in call.varying for index in op.optional_list("indices")):
        made = call.b.aten.index.Tensor(x, (None, *indices))
        # Indices that are no neighbours come first, before the samples.
        front = (rank, *range(rank), *range(rank + 1, count + 1))
        return [made if neighbours else call.b.aten.permute(made, front)]
    if op.operand("self") not in call.varying:
        made = call.b.aten.index.Tensor(x, tuple(indices))
        order = (at, *range(at), *range(at + 1, count + 1))
        return [made if at == 0 else call.b.aten.permute(made, order)]
    made = call.b.aten.index.Tensor(x, (_samples(call, rank), *indices))
    order = (0, *range(rank + 1, rank + 1 + at), *range(1, rank + 1), *range(rank + 1 + at, count + 1))
    return [made if at == 0 else call.b.aten.permute(made, order)]


def _put(call: Call) -> Sequence[Value]:
    op, rank = call.op, _rank(call.op)
    kept = op.operand("self").tensor.rank - len(_axes(op))
    indices = _indices(call, rank)
    differ = any(index in call.varying for index in op.optional_list("indices"))
    first = _samples(call, rank) if differ else None
    values = call.padded(op.operand("values"), rank + kept)
    return [
        call.b.aten.index_put(
            call.lifted(op.operand("self")), (first, *indices), values, op.attr("accumulate")
        )
    ]


def _may_put(op: Op, varying: Set[Value]) -> str | None:
    axes, given = _axes(op), op.optional_list("indices")
    if any(index is not None and index.tensor.dtype == DType.BOOL for index in given):
        return "a write by a mask"
    if not _are_neighbours(axes):
        return "a write at indices along axes that are not neighbours"
    if axes[0] and any(index in varying for index in given):
        return "a write at indices of its own for each sample, along another axis than the first"
    return None


INDEXING: Mapping[str, Rule] = {
    "aten.embedding": Rule(_embedding, _same_table),
    "aten.gather": _along("self", "index"),
    "aten.scatter.src": _along("self", "index", "src"),
    "aten.scatter_reduce.two": _along("self", "index", "src"),
    "aten.index.Tensor": Rule(_index),
    "aten.index_put": Rule(_put, _may_put),
}
