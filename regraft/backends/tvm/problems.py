"""Products and networks of constant weights as problems of the templates. Nothing here imports TVM."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.backends.tvm.cpu import Cpu
from regraft.backends.tvm.templates import (
    FeedForward,
    Gemm,
    Problem,
    Step,
    Template,
    activation,
    bias,
    gate,
    template_for,
)
from regraft.ir import Dim, DType, Op, Value, dims

#: Element types of weights that templates take, by their names.
_TYPES = {DType.F32: "float32", DType.BF16: "bfloat16"}


def template_of(op: Op, cpu: Cpu) -> Template | None:
    """The template that has kernels for ``op`` on ``cpu``; None when none has."""
    problem = problem_of(op)
    return None if problem is None else template_for(problem, cpu)


def problem_of(
    op: Op, epilogue: Sequence[Step] = (), *, products: int = 1, out: DType | None = None
) -> Problem | None:
    """What ``op``, a product or a network of constant matrices, asks of a template; None if it is neither.

    ``epilogue`` is what becomes of its last sums (its own last bias is left to it), ``products`` how many
    products of its input it joins, and ``out`` the type of what is stored, by default its result's.
    """
    weights = _weights(op)
    x = op.operands[0].tensor if op.operands else None
    if x is None or not weights or not all(_is_matrix(w) and w.tensor.dtype == x.dtype for w in weights):
        return None
    if x.dtype not in _TYPES:
        return None
    rows = rows_of(op)
    known = rows if isinstance(rows, int) and rows else None
    last = _gemm(
        known, weights[-1], tuple(epilogue), products, _TYPES[op.result.tensor.dtype if out is None else out]
    )
    return last if op.name == "aten.linear" else FeedForward(_first(op, known, weights), last)


def rows_of(op: Op) -> Dim:
    """The rows of the input of ``op``."""
    return dims.product(op.operands[0].tensor.shape[:-1])


def inputs_of(op: Op, twin: Op | None = None) -> dict[str, Value]:
    """What the kernel of ``op`` and its ``twin`` reads besides its epilogue, by the template's names."""
    if op.name == "aten.linear":
        found = {"x": op.operand("input"), "w": op.operand("weight")}
        return found if twin is None else {**found, "w1": twin.operand("weight")}
    named = {
        "x": op.operand("x"),
        "first_w": op.operand("up_weight"),
        "first_w1": op.optional("gate_weight"),
        "first_bias": op.optional("up_bias"),
        "first_gate_bias": op.optional("gate_bias"),
        "second_w": op.operand("down_weight"),
    }
    return {name: value for name, value in named.items() if value is not None}


def last_bias(op: Op) -> Value | None:
    """What is added to the last sums of ``op``."""
    return op.optional("bias" if op.name == "aten.linear" else "down_bias")


def _weights(op: Op) -> list[Value]:
    """The matrices of ``op``, the last product's last; none where it is no product of one input."""
    if op.name == "aten.linear":
        return [op.operand("weight")]
    if op.name != "rg.ffn" or op.optional("gate_input") is not None:
        return []
    up, gated, down = op.operand("up_weight"), op.optional("gate_weight"), op.operand("down_weight")
    if gated is None:
        return [up, down]
    return [up, gated, down] if gated.tensor.shape == up.tensor.shape else []  # else one is broadcast


def _is_matrix(value: Value) -> bool:
    return value.is_const and value.tensor.rank == 2 and 0 not in value.tensor.shape


def _gemm(rows: int | None, weight: Value, epilogue: tuple[Step, ...], products: int, out: str) -> Gemm:
    columns, depth = weight.tensor.shape
    assert isinstance(columns, int)
    assert isinstance(depth, int)
    dtype = _TYPES[weight.tensor.dtype]
    return Gemm(rows, columns, depth, products=products, epilogue=epilogue, dtype=dtype, out_dtype=out)


def _first(op: Op, rows: int | None, weights: Sequence[Value]) -> Gemm:
    """The product, or the two joined ones, that give the hidden features."""
    name: str = op.attr("activation")
    up = "bias" if op.optional("up_bias") is not None else None
    gated = "gate_bias" if op.optional("gate_bias") is not None else None
    if len(weights) == 3:
        steps: tuple[Step, ...] = (gate(name, up, gated),)
    else:
        steps = (*(() if up is None else (bias(up),)), activation(name))
    hidden = _TYPES[weights[-1].tensor.dtype]
    return _gemm(rows, weights[0], steps, len(weights) - 1, hidden)
