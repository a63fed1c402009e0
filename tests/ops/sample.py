"""What a sample is: a call of an op, with the types of its operands.

``T(S, 4)`` stands for a tensor operand; its sizes may hold the symbols ``S`` and ``N``. Everything else
in a call is an attribute. ``SIZES`` are the values at which symbolic calls are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from regraft.ir import OPS, Dim, DType, Expr, OpDef, TensorType, dims
from regraft.runtime import TORCH_DTYPES

S = dims.symbol("s", 1)
N = dims.symbol("n", 1)
SIZES: tuple[Mapping[str, int], ...] = (
    {"s": 1, "n": 1},
    {"s": 2, "n": 3},
    {"s": 7, "n": 2},
    {"s": 13, "n": 5},
)

F16, BF16, F32, F64 = DType.F16, DType.BF16, DType.F32, DType.F64
I32, I64, BOOL = DType.I32, DType.I64, DType.BOOL


@dataclass(frozen=True)
class Operand:
    """A tensor operand: its type, and the least and greatest value of its elements."""

    dtype: DType
    shape: tuple[Dim, ...]
    low: float = -2.0
    high: Dim | float = 2.0

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.shape)

    def tensor(self, sizes: Mapping[str, int], generator: torch.Generator) -> torch.Tensor:
        shape = [at(d, sizes) for d in self.shape]
        if self.dtype == BOOL:
            return torch.rand(shape, generator=generator) > 0.5
        if self.dtype.is_integer:
            high = at(self.high, sizes) if isinstance(self.high, (int, Expr)) else 10
            low = 0 if isinstance(self.high, (int, Expr)) else -10
            return torch.randint(low, high, shape, generator=generator, dtype=TORCH_DTYPES[self.dtype.value])
        high = float(self.high) if isinstance(self.high, (int, float)) else 2.0
        values = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - self.low) + self.low
        return values.to(TORCH_DTYPES[self.dtype.value])


def T(*shape: Dim, dtype: DType = F32) -> Operand:
    return Operand(dtype, shape)


def positive(*shape: Dim) -> Operand:
    """Values in [0.1, 3]."""
    return Operand(F32, shape, 0.1, 3.0)


def index(*shape: Dim, below: Dim, dtype: DType = I64) -> Operand:
    return Operand(dtype, shape, 0, below)


@dataclass(frozen=True)
class Sample:
    """One call of the op ``name``."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def definition(self) -> OpDef:
        return OPS[self.name]

    @property
    def operands(self) -> tuple[Operand, ...]:
        return tuple(operands_in((*self.args, *self.kwargs.values())))

    @property
    def is_float(self) -> bool:
        return any(o.dtype == F32 for o in self.operands)

    def at_dtype(self, dtype: DType) -> Sample:
        """The same call with operands of ``dtype`` where they were f32."""

        def retyped(operand: Operand) -> Operand:
            return replace(operand, dtype=dtype) if operand.dtype == F32 else operand

        return self.mapped(retyped)

    def mapped(self, change: Callable[[Operand], Any]) -> Sample:
        """The same call with ``change`` applied to each operand, in order."""
        args = tuple(mapped(a, change) for a in self.args)
        return Sample(self.name, args, {name: mapped(v, change) for name, v in self.kwargs.items()})

    def __str__(self) -> str:
        shown = [show(a) for a in self.args] + [f"{k}={show(v)}" for k, v in self.kwargs.items()]
        return f"{self.name}({', '.join(shown)})"


def operands_in(values: Any) -> Iterator[Operand]:
    for value in values:
        if isinstance(value, Operand):
            yield value
        elif isinstance(value, tuple):
            yield from operands_in(value)


def mapped(value: Any, change: Callable[[Operand], Any]) -> Any:
    if isinstance(value, Operand):
        return change(value)
    return tuple(mapped(v, change) for v in value) if isinstance(value, tuple) else value


def show(value: Any) -> str:
    if isinstance(value, Operand):
        return str(value.type)
    return f"({', '.join(map(show, value))})" if isinstance(value, tuple) else str(value)


def at(dim: Any, sizes: Mapping[str, int]) -> Any:
    """``dim`` with its symbols replaced; a number or another attribute is left as it is."""
    if not isinstance(dim, Expr):
        return dim
    return dims.substitute(dim, {s: sizes[s.name] for s in dims.symbols_of(dim)})


def call(name: str, *args: Any, **kwargs: Any) -> Sample:
    return Sample(name, args, kwargs)
