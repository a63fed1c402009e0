"""Types of values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

from regraft.ir.dims import Dim, Expr, product
from regraft.ir.dtypes import DType


@dataclass(frozen=True)
class TensorType:
    """A dense tensor. There are no strides: layout belongs to buffers, not to values."""

    dtype: DType
    shape: tuple[Dim, ...]
    device: str = "cpu"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        return product(self.shape)

    @property
    def is_static(self) -> bool:
        return not any(isinstance(d, Expr) for d in self.shape)

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        return replace(self, shape=shape)

    def with_dtype(self, dtype: DType) -> TensorType:
        return replace(self, dtype=dtype)

    def __str__(self) -> str:
        text = f"{self.dtype.value}[{', '.join(str(d) for d in self.shape)}]"
        return text if self.device == "cpu" else f"{text}@{self.device}"


@dataclass(frozen=True)
class TokenType:
    """Orders operations that have an effect (random numbers, data checks)."""

    def __str__(self) -> str:
        return "token"


Type: TypeAlias = TensorType | TokenType
