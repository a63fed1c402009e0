"""Small graphs that stand alone: how tests and checks build them, feed them and run them by eager torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    OpTable,
    Recipe,
    Region,
    TensorType,
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
