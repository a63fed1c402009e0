"""Small graphs that stand alone: how tests and checks build, feed, widen and run them by eager torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.backends import LowerOptions, backend
from regraft.ir import (
    OPS,
    Builder,
    Constant,
    Dim,
    DType,
    Example,
    Function,
    Leaf,
    Module,
    Op,
    OpTable,
    Recipe,
    Region,
    TensorType,
    Type,
    Value,
    dims,
    input_symbols,
)
from regraft.runtime import TORCH_DTYPES


class GraphConstants:
    """The constants of a graph that stands alone, for back ends: a leaf has its value."""

    def __init__(self) -> None:
        self._names: dict[Constant, str] = {}

    def name(self, constant: Constant) -> str:
        return self._names.setdefault(constant, f"constant_{len(self._names)}")

    def tensor(self, constant: Constant) -> Tensor:
        if isinstance(constant, Recipe):
            return evaluate(Function("recipe", constant.body), ())[0]
        assert isinstance(constant, Leaf), f"{constant} has no value"
        return constant.storage


def evaluate(
    function: Function, inputs: Sequence[Tensor], sizes: Mapping[str, int] | None = None
) -> list[Tensor]:
    """The results of ``function``, each op run by eager torch; ``sizes`` are its symbols' values."""
    executable = backend("eager").lower(function, GraphConstants(), LowerOptions())
    return executable.run(inputs, sizes or {})


def build_example(example: Example, table: OpTable = OPS, seed: int = 0) -> Module:
    """The example's graph, with random values for its constants."""
    region = Region()
    builder = Builder(table, region)
    generator = torch.Generator().manual_seed(seed)
    values: list[Value] = []
    for index, type in enumerate(example.types):
        if index in example.constants:
            leaf = Leaf(f"w{index}", type, random_tensor(type, {}, generator))
            values.append(builder.constant(leaf))
        else:
            values.append(region.add_arg(type, f"x{index}"))
    built = example.build(builder, *values)
    builder.create("cf.yield", ([built] if isinstance(built, Value) else list(built),))
    function = Function("forward", region, input_symbols(region.args))
    return Module({"forward": function})


def random_tensor(type: TensorType, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """Normally distributed numbers, or integers from 0 to 2; ``sizes`` are the values of symbols."""
    shape = [_size(dim, sizes) for dim in type.shape]
    dtype = TORCH_DTYPES[type.dtype.value]
    if type.dtype.is_float:
        return torch.randn(shape, generator=generator).to(dtype)
    high = 2 if type.dtype is DType.BOOL else 3
    return torch.randint(0, high, shape, generator=generator).to(dtype)


def _size(dim: Dim, sizes: Mapping[str, int]) -> int:
    value = dims.substitute(dim, {s: sizes[s.name] for s in dims.symbols_of(dim) if s.name in sizes})
    assert isinstance(value, int), f"the size {dim} is not given"
    return value


# -- in fp64 -----------------------------------------------------------------------------------


def region_in_double(region: Region) -> Region:
    """A copy in which every float type is f64, casts between float types and constants included."""
    copy = Region([type_in_double(t) for t in region.arg_types], region.symbols)
    mapping = dict(zip(region.args, copy.args, strict=True))
    for op in region.ops:
        copy.append(op_in_double(op, mapping))
    return copy


def op_in_double(op: Op, mapping: dict[Value, Value]) -> Op:
    """The copy of one op, in no region yet; ``mapping`` knows its operands and learns its results."""
    copy = Op(
        op.definition,
        [mapping[v] for v in op.operands],
        op.segments,
        {name: _attr_in_double(value) for name, value in op.attrs.items()},
        [type_in_double(r.type) for r in op.results],
        regions=[region_in_double(r) for r in op.regions],
        symbols=op.symbols,
        loc=op.loc,
    )
    mapping |= dict(zip(op.results, copy.results, strict=True))
    return copy


def _attr_in_double(value: Any) -> Any:
    if isinstance(value, DType):
        return DType.F64 if value.is_float else value
    if isinstance(value, Leaf) and value.type.dtype.is_float:
        return Leaf(value.name, value.type.with_dtype(DType.F64), value.storage.double())
    if isinstance(value, Recipe):
        return Recipe(region_in_double(value.body), value.name)
    return value


def type_in_double(type: Type) -> Type:
    """``type``, a float one as f64."""
    return type.with_dtype(DType.F64) if isinstance(type, TensorType) and type.dtype.is_float else type
