"""What the lowering tables hold.

A lowering is written against ``Kernel`` (``kernel.py``) and never imports TVM: the tables say what is
supported in a process that has no TVM loaded, and write kernels in the one that has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from regraft.ir import DType, Op, TensorType, Trait, Value, dims

Expr = Any
"""A TIR expression."""
Index = Sequence[Expr]
"""One expression for each axis."""
Check = Callable[[Op], str | None]


def accept(op: Op) -> str | None:
    """Every use of the op that has a type can be lowered."""
    return None


@dataclass(frozen=True)
class Pointwise:
    """One element of the result is an expression over elements of the operands.

    Fields:
        emit: ``emit(kernel, op, index)`` gives the element at ``index``.
        check: why this use of the op cannot be lowered, or None.
        is_free: computing an element twice costs no more than keeping it.
        indices: operands that say where to read. They are in memory before the kernel runs, and checked:
            ``(operand, least, size)`` for each, where values go from ``least`` up to ``size - 1``.
    """

    emit: Callable[[Any, Op, Index], Expr]
    check: Check = accept
    is_free: bool = False
    indices: Callable[[Op], Sequence[tuple[Value, Any, Any]]] = lambda op: ()


@dataclass(frozen=True)
class Loops:
    """An op that writes loops of its own and hands each element of its result to ``kernel.finish``.

    Fields:
        emit: ``emit(kernel, op)`` writes the loops.
        check: why this use of the op cannot be lowered, or None.
        in_memory: operands that are read from memory, as they are read many times; others may be computed
            where they are read.
        through: whether such an operand is sooner read through ops that only move whole rows
            (``views.keeps_rows``) than copied.
        chooses: elements are chosen by their places (``kernel.only_if``), which TVM does one by one.
    """

    emit: Callable[[Any, Op], None]
    check: Check = accept
    in_memory: Callable[[Op], Sequence[Value]] = lambda op: ()
    through: Callable[[Op, Value], bool] = lambda op, value: False
    chooses: bool = False


@dataclass(frozen=True)
class Templated:
    """A product whose loops are those of a template, which may do what follows it as its epilogue.

    Fields:
        check: why this use of the op cannot be lowered, or None.
    """

    check: Check = accept

    def in_memory(self, op: Op) -> Sequence[Value]:
        """Templates read matrices from memory."""
        return op.operands


@dataclass(frozen=True)
class Swept:
    """A loop over steps whose trips are all one kernel, which computes every result (``sweep.py``).

    Fields:
        check: why this use of the op cannot be lowered, or None.
    """

    check: Check = accept

    def in_memory(self, op: Op) -> Sequence[Value]:
        """Trips read slices, and what they start with, from memory."""
        return op.operands


@dataclass(frozen=True)
class Branching:
    """A condition: the program calls the kernels of the arm that the predicate chooses.

    Fields:
        check: why this use of the op cannot be lowered, or None; the ops of its arms apart.
    """

    check: Check = accept

    def in_memory(self, op: Op) -> Sequence[Value]:
        """The predicate is read by the program, operands by kernels of the arms."""
        return op.operands


Lowering = Pointwise | Loops | Templated | Swept | Branching

_INTEGERS = (DType.I64, DType.I32, DType.I16, DType.I8, DType.U8, DType.BOOL)
#: Element types of what kernels read and write; those of bf16 are computed in f32.
DTYPES = frozenset({DType.F32, DType.F64, DType.BF16, *_INTEGERS})


def untyped(op: Op) -> str | None:
    """Why kernels cannot hold the operands or results of ``op``; None when they can."""
    for value in (*op.operands, *op.results):
        if not isinstance(value.type, TensorType):
            return "it is ordered by a token"
        if value.tensor.dtype not in DTYPES:
            return f"no kernels for {value.tensor.dtype} tensors"
        if value.tensor.device != "cpu":
            return f"it runs on {value.tensor.device}, this back end on cpu"
    return None


def is_elementwise(op: Op) -> bool:
    """Whether an element depends on the operands' elements at the same place, broadcast."""
    return op.has(Trait.ELEMENTWISE)


def broadcast(index: Index, value: Value, rank: int) -> list[Expr]:
    """The place in ``value`` that broadcasting reads for ``index`` in a result of ``rank`` axes."""
    shape = value.tensor.shape
    own = list(index[rank - len(shape) :])
    return [0 if dims.eq(size, 1) is True else place for place, size in zip(own, shape, strict=True)]


def lowest(dtype: DType) -> Any:
    """The least number of ``dtype``."""
    if dtype.is_float:
        return float("-inf")
    return False if dtype == DType.BOOL else 0 if dtype.kind == "uint" else -(1 << (dtype.bits - 1))


def highest(dtype: DType) -> Any:
    """The greatest number of ``dtype``."""
    if dtype.is_float:
        return float("inf")
    return True if dtype == DType.BOOL else (1 << (dtype.bits - (dtype.kind == "int"))) - 1
