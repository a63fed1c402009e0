"""Products of matrices as they lie in memory. Those of constant weights have templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.backends.tvm.lower.kinds import Expr, Loops, Lowering, Templated
from regraft.ir import Dim, DType, Op, Value, dims

#: Rows and columns of a tile of sums, which LLVM keeps in registers.
ROWS, WIDTH, LANES = 4, 64, 16
#: Rows that a task takes: its columns are read from cache for each of them.
CHUNK = 128


@dataclass(frozen=True)
class Product:
    """``batch`` products of ``[rows, depth]`` and ``[depth, columns]``.

    Fields:
        left: ``left(batch place, row, k)``, an element of the first matrix.
        right: ``right(batch place, k, column)``, of the second; a vector of columns where ``column`` is one.
        finish: ``finish(batch place, row, column, sum)``.
    """

    batch: tuple[Dim, ...]
    rows: Dim
    columns: Dim
    depth: Dim
    dtype: DType
    left: Callable[[list[Expr], Expr, Expr], Expr]
    right: Callable[[list[Expr], Expr, Expr], Expr]
    finish: Callable[[list[Expr], Expr, Expr, Expr], None]


def write(k: Any, product: Product) -> None:
    """The loops of ``product``: tasks are blocks of columns of a chunk of rows."""
    blocks = dims.ceildiv(product.columns, WIDTH)
    chunks = dims.ceildiv(product.rows, CHUNK)

    def task(place: list[Expr]) -> None:
        *batch, block, chunk = place
        row, column = k.bind(k.place(chunk) * CHUNK), k.bind(k.place(block) * WIDTH)
        rows, columns = k.at_most(CHUNK, product.rows, row), k.at_most(WIDTH, product.columns, column)
        k.tiles(
            columns,
            (WIDTH, LANES, 1),
            lambda j, width: k.tiles(
                rows, (ROWS, 1), lambda i, count: _tile(k, product, batch, row + i, count, column + j, width)
            ),
        )

    work = dims.product((dims.minimum(product.rows, CHUNK), WIDTH, product.depth))
    k.rows((*product.batch, blocks, chunks), task, work, is_large=True)


def write_tiles(k: Any, product: Product, batch: list[Expr], rows: int) -> None:
    """The sums of the first ``rows`` rows, at most ``ROWS``, and all columns, on one thread."""
    k.tiles(
        product.columns,
        (WIDTH, LANES, 1),
        lambda j, width: _tile(k, product, batch, 0, rows, j, width),
    )


def _tile(
    k: Any, product: Product, batch: list[Expr], row: Expr, count: int, column: Expr, width: int
) -> None:
    """The sums of ``count`` rows and ``width`` columns."""
    lanes = min(width, LANES)
    vectors = width // lanes
    sums = k.sums(count * vectors, lanes, product.dtype)
    with k.loops((product.depth,)) as (depth,):
        rows = [k.splat(product.left(batch, row + i, depth), lanes) for i in range(count)]
        for j in range(vectors):
            panel = k.bind(product.right(batch, depth, k.vector(column + j * lanes, lanes)))
            for i in range(count):
                sums.add(i * vectors + j, k.math.times(rows[i], panel))
    for i in range(count):
        for j in range(vectors):
            place = k.vector(column + j * lanes, lanes)
            product.finish(batch, row + i, place, sums[i * vectors + j])


def _matmul(k: Any, op: Op) -> None:
    left, right = op.operand("self"), op.operand("other")
    out = op.result.tensor
    merges = right.tensor.rank == 2
    batch = () if merges else out.shape[:-2]
    lead = out.shape[:-1] if merges else out.shape[-2:-1]
    write(
        k,
        Product(
            batch,
            dims.product(lead),
            out.shape[-1],
            left.tensor.shape[-1],
            out.dtype,
            lambda b, row, depth: k.at(left, _left_place(k, left, b, row, depth, merges)),
            lambda b, depth, column: k.at(right, [*batch_place(right, b), depth, column]),
            lambda b, row, column, value: k.finish([*b, *k.unraveled(row, lead), column], value),
        ),
    )


def _reads_through(op: Op, value: Value) -> bool:
    """The second matrix is read again for every few rows: for many, a copy lies better in caches."""
    if value is not op.operand("other"):
        return True
    lead = op.result.tensor.shape[:-1] if value.tensor.rank == 2 else op.result.tensor.shape[-2:-1]
    rows = dims.product(lead)
    return isinstance(rows, int) and rows <= CHUNK


def factors(op: Op, index: Sequence[Expr], depth: Expr) -> tuple[list[Expr], list[Expr]]:
    """The places in both operands of the factors of number ``depth`` in element ``index`` of the product."""
    left, right = op.operands
    batch = list(index)
    column = [batch.pop()] if right.tensor.rank > 1 else []
    row = [batch.pop()] if left.tensor.rank > 1 else []
    return [*batch_place(left, batch), *row, depth], [*batch_place(right, batch), depth, *column]


def _left_place(k: Any, value: Value, batch: list[Expr], row: Expr, depth: Expr, merges: bool) -> list[Expr]:
    if merges and k.is_computed(value):
        return [*k.unraveled(row, value.tensor.shape[:-1]), depth]
    if merges:  # the row runs over all leading axes, as memory does
        return [*[0] * (value.tensor.rank - 2), row, depth]
    return [*batch_place(value, batch), row, depth]


def batch_place(value: Value, batch: list[Expr]) -> list[Expr]:
    """The place among the leading axes of ``value`` that is multiplied at ``batch`` of the result."""
    own = max(value.tensor.rank - 2, 0)
    place = list(batch[len(batch) - own :]) if own else []
    return [0 if dims.eq(size, 1) is True else p for p, size in zip(place, value.tensor.shape, strict=False)]


LOWERINGS: dict[str, Lowering] = {
    "aten.matmul": Loops(_matmul, in_memory=lambda op: op.operands, through=_reads_through),
    "aten.linear": Templated(),
    "rg.ffn": Templated(),
}
