"""Element types. Names follow the text form: ``f32``, ``bf16``, ``i64``, ``bool``..."""

from __future__ import annotations

from enum import Enum
from typing import Literal

Kind = Literal["bool", "uint", "int", "float", "complex"]


class DType(Enum):
    """An element type; ``value`` is its name in the text form."""

    BOOL = "bool"
    U4 = "u4"
    U8 = "u8"
    I8 = "i8"
    I16 = "i16"
    I32 = "i32"
    I64 = "i64"
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"
    F64 = "f64"
    C64 = "c64"
    C128 = "c128"

    @property
    def bits(self) -> int:
        """Storage bits of one element (a torch bool takes a byte)."""
        return _BITS[self][1]

    @property
    def kind(self) -> Kind:
        return _BITS[self][0]

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    def __repr__(self) -> str:
        return self.value

    def __str__(self) -> str:
        return self.value


_BITS: dict[DType, tuple[Kind, int]] = {
    DType.BOOL: ("bool", 8),
    DType.U4: ("uint", 4),
    DType.U8: ("uint", 8),
    DType.I8: ("int", 8),
    DType.I16: ("int", 16),
    DType.I32: ("int", 32),
    DType.I64: ("int", 64),
    DType.F16: ("float", 16),
    DType.BF16: ("float", 16),
    DType.F32: ("float", 32),
    DType.F64: ("float", 64),
    DType.C64: ("complex", 64),
    DType.C128: ("complex", 128),
}

_LATTICE: dict[Kind, int] = {"bool": 0, "uint": 1, "int": 1, "float": 2, "complex": 3}


def promote(a: DType, b: DType) -> DType:
    """The common dtype of two tensors of rank > 0, as ``torch.promote_types`` gives it.

    The IR never promotes by itself: capture inserts the casts this function asks for.
    """
    if a == b:
        return a
    if _LATTICE[a.kind] != _LATTICE[b.kind]:
        high, low = (a, b) if _LATTICE[a.kind] > _LATTICE[b.kind] else (b, a)
        if high.kind == "complex" and low == DType.F64:
            return DType.C128
        return high
    if {a, b} == {DType.F16, DType.BF16}:
        return DType.F32
    if a.is_integer and a.kind != b.kind:
        unsigned, signed = (a, b) if a.kind == "uint" else (b, a)
        wider = (t for t in (DType.I16, DType.I32, DType.I64) if t.bits > unsigned.bits)
        return signed if signed.bits > unsigned.bits else next(wider)
    return a if a.bits >= b.bits else b
