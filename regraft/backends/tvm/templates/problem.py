"""What a kernel template is asked for, as plain data: nothing here imports TVM.

A product is described by its sizes and by two chains of steps: the prologue works on each element of ``x``
before it is multiplied, the epilogue on each accumulator before it is stored. A step is any elementwise
expression over the running value and further buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Axis = Literal["batch", "rows", "columns", "depth"]
Role = Literal["input", "weight", "extra", "output"]
Dims = tuple[int | None, ...]
"""Sizes of a buffer; None is the number of rows where that is known only at call time."""

Emit = Callable[..., Any]
"""``emit(math, *values)``: a TIR expression. ``math`` is ``templates.functions``, handed in so that a step
can be described without importing TVM. ``values`` are the running value (the first step of an epilogue: one
accumulator for each product), then an element of each extra buffer. It must be elementwise, use each value
as f32 and work on scalars and on vectors alike; give intermediates that are used often to ``math.bound``."""


@dataclass(frozen=True)
class Extra:
    """A further buffer that a step reads: its shape is that of ``axes``, and (1,) without axes."""

    name: str
    axes: tuple[Axis, ...] = ()
    dtype: str = "float32"


@dataclass(frozen=True)
class Step:
    """One elementwise step.

    Fields:
        name: stands for ``emit`` wherever problems are compared or looked up: equal names, equal meaning.
        emit: see ``Emit``.
        extras: the buffers whose elements ``emit`` takes after the running value.
    """

    name: str
    emit: Emit = field(compare=False, repr=False)
    extras: tuple[Extra, ...] = ()


@dataclass(frozen=True)
class Argument:
    """A parameter of a built kernel. The kernel's parameters are the problem's ``arguments``, in order.

    Fields:
        role: ``input`` (x), ``weight`` (to be packed if the problem says that it is constant), ``extra``
            (of a step) or ``output``.
        viewed_from: the type of the tensor, where the kernel sees it viewed as ``dtype``.
    """

    name: str
    shape: Dims
    dtype: str
    role: Role
    viewed_from: str | None = None


@dataclass(frozen=True)
class Gemm:
    """``out = epilogue(prologue(x) @ w)`` over ``batch`` products side by side; sums are f32.

    Fields:
        rows: rows of each product; None when known only at call time.
        columns, depth: N and K.
        batch: how many products, each with a weight of its own.
        is_block_diagonal: the products' rows of ``x`` and of ``out`` are parts of one row: ``x`` is
            [rows, batch, depth] and ``out`` [rows, batch, columns], not [batch, rows, ...].
        is_constant: the weight is known at load time, where it is packed.
        is_transposed: a weight is [columns, depth] as in torch's linear, not [depth, columns].
        products: weights that multiply the same ``x``; the first step joins their accumulators (a gate).
        prologue, epilogue: see ``Step``. Extras of a prologue may have the axes batch, rows and depth, those
            of an epilogue batch, rows and columns.
        has_row_squares: also give, for each row, the sum of squares of what was stored, as one number for
            each block of columns ([batch, rows, blocks]; their sum is what a norm needs).
        dtype: of ``x`` and the weights: float32, or bfloat16, of which pairs along k are multiplied at once.
        out_dtype: of ``out``.
    """

    rows: int | None
    columns: int
    depth: int
    batch: int = 1
    is_block_diagonal: bool = False
    is_constant: bool = True
    is_transposed: bool = True
    products: int = 1
    prologue: tuple[Step, ...] = ()
    epilogue: tuple[Step, ...] = ()
    has_row_squares: bool = False
    dtype: str = "float32"
    out_dtype: str = "float32"

    def __post_init__(self) -> None:
        assert min(self.columns, self.depth, self.batch, self.products) > 0, "an empty product has no kernel"
        assert self.products == 1 or self.epilogue, "the first step joins several products"
        names = [extra.name for extra in self.extras]
        assert len(set(names)) == len(names), f"two extra buffers have one name: {names}"

    @property
    def extras(self) -> tuple[Extra, ...]:
        """The buffers of all steps, in the order in which the kernel takes them."""
        return tuple(extra for step in (*self.prologue, *self.epilogue) for extra in step.extras)

    @property
    def signature(self) -> str:
        """The computation without its number of rows: what measured times are kept under."""
        traits = [
            f"{self.dtype}->{self.out_dtype}",
            f"n{self.columns} k{self.depth} b{self.batch} p{self.products}",
            "block diagonal" if self.is_block_diagonal else "",
            "constant" if self.is_constant else "",
            "transposed" if self.is_transposed else "",
            _steps_text(self.prologue),
            _steps_text(self.epilogue),
            "row squares" if self.has_row_squares else "",
        ]
        return f"gemm {'|'.join(traits)}"

    @property
    def group(self) -> int:
        """How many elements along k one instruction multiplies and adds up."""
        return 2 if self.dtype == "bfloat16" else 1

    @property
    def turns(self) -> int:
        """Groups along k."""
        return self.depth // self.group

    @property
    def weight_names(self) -> tuple[str, ...]:
        """What the kernel's arguments call the weights."""
        return ("w", *(f"w{number}" for number in range(1, self.products)))

    def size(self, axis: Axis) -> int | None:
        sizes = {"batch": self.batch, "rows": self.rows, "columns": self.columns, "depth": self.depth}
        return sizes[axis]

    def x_axes(self) -> tuple[Axis, ...]:
        return ("rows", "batch", "depth") if self.is_block_diagonal else ("batch", "rows", "depth")

    def out_axes(self) -> tuple[Axis, ...]:
        return ("rows", "batch", "columns") if self.is_block_diagonal else ("batch", "rows", "columns")

    def shape(self, axes: tuple[Axis, ...]) -> Dims:
        """Sizes along ``axes``. A batch of one has no axis."""
        return tuple(self.size(axis) for axis in axes if axis != "batch" or self.batch > 1)

    def weight_shape(self) -> tuple[int, ...]:
        """The shape of a weight before it is packed."""
        matrix = (self.columns, self.depth) if self.is_transposed else (self.depth, self.columns)
        return (self.batch, *matrix) if self.batch > 1 else matrix


@dataclass(frozen=True)
class FeedForward:
    """``second(first(x))``, the hidden values kept in cache and never seen from outside.

    ``first`` has two products for a gated network. Both have the same rows and one batch.
    """

    first: Gemm
    second: Gemm

    def __post_init__(self) -> None:
        first, second = self.first, self.second
        assert first.columns == second.depth, "the hidden widths differ"
        assert first.rows == second.rows, "the rows differ"
        assert first.batch == second.batch == 1, "a feed-forward network has no batch of weights"
        assert first.out_dtype == second.dtype, "the hidden types differ"

    @property
    def rows(self) -> int | None:
        return self.first.rows

    @property
    def signature(self) -> str:
        return f"ffn {self.first.signature} then {self.second.signature}"


Problem = Gemm | FeedForward


def _steps_text(steps: tuple[Step, ...]) -> str:
    """Steps by name, with what they read."""

    def read(step: Step) -> str:
        return ",".join(f"{'/'.join(extra.axes)}:{extra.dtype}" for extra in step.extras)

    return "+".join(f"{step.name}({read(step)})" for step in steps)
