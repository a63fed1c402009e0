"""The dense form of a row map, as recipes: its matrix is the map of the identity, its bias that of zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regraft.ir import Builder, Dim, Op, OpTable, Recipe, Region, Value, backward_slice, clone_op
from regraft.rewrites.linear.layout import Row, rows_of, sizes
from regraft.rewrites.linear.row_map import RowMap, bias_of


def dense_weight(found: RowMap, table: OpTable) -> Recipe:
    """The matrix ``W[m, n]`` with ``map(x) = x @ W.T + bias``."""
    width, dtype = found.source.tensor.shape[-1], found.source.tensor.dtype
    assert isinstance(width, int)
    writer = _Writer(found, table, rows=width, keep_bias=False)
    b = writer.builder
    index = b.aten.arange(width)
    ones = b.aten.eq.Tensor(b.aten.view(index, (width, 1)), index)
    image = writer.write(b.aten._to_copy(ones, dtype=dtype))
    return writer.recipe(b.aten.permute(image, (1, 0)), "merged_weight")


def dense_bias(found: RowMap, table: OpTable) -> Recipe:
    """What the map makes of a row of zeros, ``[m]``."""
    width, dtype = found.source.tensor.shape[-1], found.source.tensor.dtype
    writer = _Writer(found, table, rows=1, keep_bias=True)
    image = writer.write(writer.builder.aten.full((1, width), 0, dtype=dtype))
    return writer.recipe(writer.builder.aten.view(image, (found.width,)), "merged_bias")


class _Writer:
    """Writes the map once more, over another number of rows and constants alone."""

    def __init__(self, found: RowMap, table: OpTable, *, rows: int, keep_bias: bool) -> None:
        self.found = found
        self.rows = rows
        self.keep_bias = keep_bias
        self.region = Region()
        self.builder = Builder(table, self.region)
        self._constants: dict[Value, Value] = {}
        self._first = rows_of(found.layouts[found.source])[0]

    def write(self, image: Value) -> Value:
        """What the map makes of ``image[rows, n]``, as ``[rows, m]``."""
        found, b = self.found, self.builder
        values = {found.source: b.aten.view(image, self._shape(found.source))}
        for op in found.ops:
            values[op.result] = self._write(op, values)
        return b.aten.view(values[found.result], (self.rows, found.width))

    def recipe(self, result: Value, name: str) -> Recipe:
        self.builder.create("cf.yield", ((result,),))
        return Recipe(self.region, name)

    def _shape(self, value: Value) -> tuple[Dim, ...]:
        """The shape of ``value`` when the first row axis has all the rows and the others one."""

        def size_of(row: Row) -> Dim:
            return self.rows if row == self._first else 1

        return sizes(self.found.layouts[value], size_of)

    def _write(self, op: Op, values: Mapping[Value, Value]) -> Value:
        if op.name == "aten.view":
            return self.builder.aten.view(values[op.operand("self")], self._shape(op.result))
        bias = bias_of(op, self.found.layouts)
        if op.name == "aten.add.Scalar" and not self.keep_bias:
            return values[op.operand("self")]
        if bias is not None and not self.keep_bias and op.name != "aten.linear":
            return self._without_addend(op, values)
        arguments: dict[str, Any] = {n: self._argument(a, values) for n, a in op.arguments().items()}
        if bias is not None and not self.keep_bias:
            arguments["bias"] = None
        return self.builder.create(op.name, (), arguments).result

    def _without_addend(self, op: Op, values: Mapping[Value, Value]) -> Value:
        a, b = op.operand("self"), op.operand("other")
        if a in values:
            return values[a]
        return self.builder.aten.neg(values[b]) if op.name == "aten.sub.Tensor" else values[b]

    def _argument(self, argument: Any, values: Mapping[Value, Value]) -> Any:
        if isinstance(argument, tuple):
            return tuple(self._argument(each, values) for each in argument)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if not isinstance(argument, Value):
            return argument
        return values[argument] if argument in values else self._constant(argument)

    def _constant(self, value: Value) -> Value:
        """The constant ``value`` in this region, with what it is computed from."""
        if value not in self._constants:
            for op in backward_slice([value]):
                if not all(result in self._constants for result in op.results):
                    self.region.append(clone_op(op, self._constants))
        return self._constants[value]
