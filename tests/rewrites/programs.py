"""Random index programs: hypothesis draws ops over integer and bool tensors with symbolic sizes."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import reject
from hypothesis import strategies as st

from regraft.ir import OPS, Builder, DType, Function, Region, Symbol, TensorType, Value, dims
from regraft.testing import evaluate

SYMBOLS = (Symbol("B", lo=1), Symbol("S"))
"""B is never 0, S may be."""
SIZES = (*(dims.as_expr(symbol) for symbol in SYMBOLS), 1, 3, 4)
DTYPES = (DType.I64, DType.I64, DType.I32, DType.U8, DType.BOOL)
COMPARISONS = ("eq", "ne", "le", "lt", "ge", "gt")

Draw = Callable[[st.SearchStrategy[Any]], Any]


def together(*values: Value) -> None:
    """Leave out sizes that may be equal: where B meets 3 the IR takes them as equal, torch may broadcast."""
    for a, b in itertools.combinations((value.tensor.shape for value in values), 2):
        assert all(x == y or 1 in (x, y) for x, y in zip(reversed(a), reversed(b), strict=False))


def _arange(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    start, step, size = (
        draw(st.integers(-3, 3)),
        draw(st.sampled_from([1, 1, 2, -1])),
        draw(st.sampled_from(SIZES)),
    )
    return op.aten.arange.start_step(start, size * step + start, step, dtype=DType.I64)


def _full(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    shape = draw(st.lists(st.sampled_from(SIZES), max_size=3))
    if draw(st.booleans()):
        return op.aten.full(shape, draw(st.booleans()), dtype=DType.BOOL)
    return op.aten.full(shape, draw(st.integers(-2, 2)), dtype=DType.I64)


def _unsqueeze(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    x = pick()
    shape = list(x.tensor.shape)
    shape.insert(draw(st.integers(0, len(shape))), 1)
    return op.aten.view(x, shape)


def _squeeze(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    x = pick()
    return op.aten.view(x, [size for size in x.tensor.shape if size != 1])


def _flatten(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    x = pick()
    return op.aten.view(x, [x.tensor.numel])


def _expand(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    x = pick()
    grown = [draw(st.sampled_from(SIZES)) if size == 1 else size for size in x.tensor.shape]
    return op.aten.expand(x, [*draw(st.lists(st.sampled_from(SIZES), max_size=1)), *grown])


def _permute(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    x = pick()
    return op.aten.permute(x, draw(st.permutations(range(x.tensor.rank))))


def _slice(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    x = pick()
    axis = draw(st.integers(0, x.tensor.rank - 1))
    size = x.tensor.shape[axis]
    start = draw(st.integers(0, 2))
    end = draw(st.sampled_from([size, size - 1 if isinstance(size, int) else size, 1]))
    low, high = dims.minimum(start, size), dims.minimum(end, size)
    return op.aten.slice.Tensor(x, axis, low, dims.maximum(low, high), draw(st.integers(1, 2)))


def _binary(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    names = ["add.Tensor", "sub.Tensor", "mul.Tensor", "maximum", "minimum"]
    names += [f"{name}.Tensor" for name in COMPARISONS]
    x, name = pick(), draw(st.sampled_from(names))
    assert x.tensor.dtype is not DType.BOOL or name != "sub.Tensor"  # torch refuses it
    y = pick()
    together(x, y)
    return op.call(f"aten.{name}", (x, y), {})


def _with_scalar(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    names = ["add.Scalar", "mul.Scalar", *(f"{name}.Scalar" for name in COMPARISONS)]
    return op.call(f"aten.{draw(st.sampled_from(names))}", (pick(), draw(st.integers(-3, 4))), {})


def _unary(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    x = pick()
    assert x.tensor.dtype is not DType.BOOL  # torch refuses them
    return op.call(f"aten.{draw(st.sampled_from(['neg', 'abs']))}", (x,), {})


def _logic(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    name = draw(st.sampled_from(["bitwise_and.Tensor", "bitwise_or.Tensor", "bitwise_not"]))
    a = pick()
    assert a.tensor.dtype is DType.BOOL
    b = pick()
    together(a, b)
    return op.aten.bitwise_not(a) if name == "bitwise_not" else op.call(f"aten.{name}", (a, b), {})


def _triangle(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    return op.call(f"aten.{draw(st.sampled_from(['tril', 'triu']))}", (pick(), draw(st.integers(-1, 1))), {})


def _where(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    values = [pick() for _ in range(3)]
    together(*values)
    return op.aten.where.self(*values)


def _cast(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    return op.aten._to_copy(pick(), dtype=draw(st.sampled_from(DTYPES)))


def _cat(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    x = pick()
    axis = draw(st.integers(0, x.tensor.rank - 1))
    return op.aten.cat([x, pick(), *([pick()] if draw(st.booleans()) else [])], axis)


def _continued(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    """The slice before the first, then the tensor: as ``diff`` with ``prepend`` has it."""
    x = pick()
    axis = draw(st.integers(0, x.tensor.rank - 1))
    assert x.tensor.shape[axis] != SIZES[1]  # S may be 0
    first = op.aten.slice.Tensor(x, axis, 0, 1)
    return op.aten.cat([op.aten.add.Scalar(first, draw(st.integers(-2, 1))), x], axis)


def _cumsum(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    x = pick()
    return op.aten.cumsum(x, draw(st.integers(0, x.tensor.rank - 1)))


def _index(op: Builder, draw: Draw, pick: Callable[[], Value]) -> Value:
    x = pick()
    rank = x.tensor.rank
    axes = [draw(st.integers(0, 2)) for _ in range(rank)]
    indices: list[Value] = []
    for axis, size in zip(axes, x.tensor.shape, strict=True):
        start = draw(st.sampled_from([0, 0, -1]))  # x[-1] is the last element
        counted = op.aten.arange.start_step(start, size + start, 1, dtype=DType.I64)
        indices.append(op.aten.view(counted, [size if a == axis else 1 for a in range(3)]))
    together(*indices)
    return op.aten.index.Tensor(x, indices)


STEPS = (
    _arange, _arange, _full, _unsqueeze, _unsqueeze, _squeeze, _flatten, _expand, _permute, _slice, _binary,
    _binary, _binary, _with_scalar, _with_scalar, _unary, _logic, _triangle, _where, _cast, _cat, _continued,
    _cumsum, _index,
)  # fmt: skip

#: Steps that move elements of any type and compute none.
SHAPE_STEPS = (_unsqueeze, _squeeze, _flatten, _expand, _permute, _slice, _cat)


@st.composite
def index_programs(draw: Draw) -> Function:
    """A function of one i64[B, S] whose results are all the values of a random program."""
    region = Region([TensorType(DType.I64, SIZES[:2])])
    builder = Builder(OPS, region)
    values: list[Value] = [_arange(builder, draw, lambda: region.args[0]), region.args[0]]
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=3, max_size=14)):
        # A call that has no type is left out; what was built on the way to it stays, unused.
        try:
            values.append(step(builder, draw, lambda: values[draw(st.integers(0, len(values) - 1))]))
        except (TypeError, AssertionError, ValueError):
            continue
    builder.create("cf.yield", (values,))
    return Function("program", region, SYMBOLS)


def program_input(sizes: dict[str, int]) -> torch.Tensor:
    return torch.randint(-2, 3, (sizes["B"], sizes["S"]), generator=torch.Generator().manual_seed(0))


def run_program(program: Function, sizes: dict[str, int]) -> list[torch.Tensor]:
    """The program's results. Runs in which B met S, and they differ, are left out."""
    try:
        return evaluate(program, [program_input(sizes)], sizes)
    except RuntimeError:
        reject()
