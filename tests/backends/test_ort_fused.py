"""What the ONNX Runtime back end emits as one node: biases before GELUs, scales and sums behind products."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn

import regraft
from regraft.ir import DType, Value
from regraft.testing import assert_close
from tests.backends.ort_graphs import BF16, F32, F64, E, S, function, leaf, tensor
from tests.backends.test_ort import close, eager, lower, operators

BIAS, GAIN = leaf("b", torch.linspace(-1, 1, 6)), leaf("w", torch.linspace(-1, 1, 24).reshape(6, 4))


@pytest.mark.parametrize(
    ("build", "shape", "adds"),
    [
        (lambda op, x: op.aten.add.Tensor(x, op.constant(BIAS)), (2, 3, 6), 0),
        (lambda op, x: op.aten.add.Tensor(op.constant(BIAS), x), (S, 6), 0),
        (lambda op, x: op.aten.linear(x, op.constant(GAIN), op.constant(BIAS)), (2, S, 4), 0),
        (lambda op, x: op.aten.linear(x, op.constant(GAIN), op.constant(BIAS)), (S, 4), 0),  # Gemm adds it
        (lambda op, x: op.aten.add.Tensor(x, op.constant(BIAS), alpha=2), (2, 6), 1),
        (lambda op, x: op.aten.add.Tensor(x, op.constant(BIAS)), (2, 1), 1),
        (lambda op, x: op.aten.add.Tensor(x, x), (2, 6), 1),
    ],
)
def test_a_bias_before_a_gelu_is_part_of_it(
    build: Callable[..., Value], shape: tuple[Any, ...], adds: int
) -> None:
    made = function([tensor(*shape)], lambda op, x: op.aten.gelu(build(op, x), approximate="tanh"))
    assert operators(made)["Add"] == adds
    x, sizes = torch.randn([3 if d is S else d for d in shape]), {"s": 3}
    (found,), (expected,) = lower(made).run([x], sizes), eager(made, [x], sizes)
    assert close(found, expected)


def test_a_bias_that_others_read_is_added_once() -> None:
    def build(op: Any, x: Value) -> tuple[Value, Value]:
        biased = op.aten.linear(x, op.constant(GAIN), op.constant(BIAS))
        return biased, op.aten.gelu(biased, approximate="tanh")

    counts = operators(function([tensor(2, 3, 4)], build))
    assert (counts["Add"], counts["FusedMatMul"]) == (1, 1)


@pytest.mark.parametrize(
    ("build", "nodes"),
    [
        (lambda op, x: op.aten.add.Tensor(x, op.aten.matmul(x, x)), {"Gemm": 1}),
        (lambda op, x: op.aten.sub.Tensor(op.aten.mul.Scalar(x, 2), op.aten.matmul(x, x)), {"Gemm": 1}),
        (lambda op, x: op.aten.sub.Tensor(op.aten.matmul(x, x), x, alpha=3), {"Gemm": 1}),
        (
            lambda op, x: op.aten.sub.Tensor(op.aten.mul.Scalar(op.aten.matmul(x, x), 5), x, alpha=3),
            {"Gemm": 1},
        ),
        (lambda op, x: op.aten.mul.Scalar(op.aten.matmul(x, x), 0.5), {"FusedMatMul": 1}),
        (  # the sum is of other sizes than the product
            lambda op, x: op.aten.add.Tensor(op.aten.matmul(x, x), op.aten.sum.dim_IntList(x, (-1,), True)),
            {"MatMul": 1, "ReduceSum": 1, "Add": 1},
        ),
        (lambda op, x: _twice(op, op.aten.matmul(x, x)), {"MatMul": 1, "Add": 1}),
    ],
)
@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4, 4), (1, S, S), (2, 4, 4)])
def test_a_product_takes_in_what_stands_behind_it(
    build: Callable[..., Value], nodes: dict[str, int], shape: tuple[Any, ...]
) -> None:
    made = function([tensor(*shape)], build)
    found = operators(made)
    if shape[0] == 1 or len(shape) == 2 or "Gemm" not in nodes:
        assert {name: count for name, count in found.items() if name != "Reshape"} == nodes
    else:
        assert "Gemm" not in found, "there are several matrices"
    x, sizes = torch.randn([3 if d is S else d for d in shape]), {"s": 3}
    assert close(lower(made).run([x], sizes)[0], eager(made, [x], sizes)[0])


def test_a_chain_of_products_and_sums_is_reshaped_at_its_ends() -> None:
    """Newton's iteration for the inverse, as SOFT has it."""

    def build(op: Any, p: Value) -> Value:
        v = op.aten.mul.Scalar(p, 0.1)
        for _ in range(5):
            change = op.aten.matmul(op.aten.matmul(v, p), v)
            v = op.aten.sub.Tensor(op.aten.mul.Scalar(v, 2), change)
        return v

    made = function([tensor(1, 1, 4, 4)], build)
    counts = operators(made)
    assert (counts["Gemm"], counts["MatMul"], counts["Mul"]) == (5, 5, 1)
    assert counts["Reshape"] <= 4
    x = torch.eye(4)[None, None] + 0.1 * torch.randn(1, 1, 4, 4)
    assert close(lower(made).run([x], {})[0], eager(made, [x], {})[0])


@pytest.mark.parametrize("shape", [(3, 4), (2, S, 4), (1, 2, 3, 4)])
def test_a_product_with_a_transpose_reads_it_as_it_was(shape: tuple[Any, ...]) -> None:
    rank = len(shape)

    def build(op: Any, x: Value, y: Value) -> Value:
        return op.aten.matmul(x, op.aten.permute(y, (*range(rank - 2), rank - 1, rank - 2)))

    made = function([tensor(*shape), tensor(*shape)], build)
    assert operators(made) == {"FusedMatMul": 1}
    inputs = [torch.randn([3 if d is S else d for d in shape]) for _ in range(2)]
    assert close(lower(made).run(inputs, {"s": 3})[0], eager(made, inputs, {"s": 3})[0])


def test_other_permutations_before_a_product_are_made() -> None:
    made = function(
        [tensor(2, 3, 4), tensor(4, 5, 2)],
        lambda op, x, y: op.aten.matmul(x, op.aten.permute(y, (2, 0, 1))),
    )
    assert operators(made) == {"Transpose": 1, "MatMul": 1}
    inputs = [torch.randn(2, 3, 4), torch.randn(4, 5, 2)]
    assert close(lower(made).run(inputs, {})[0], eager(made, inputs, {})[0])


@pytest.mark.parametrize(
    ("dtype", "beta", "threshold", "nodes"),
    [
        (DType.F32, 1.0, 20.0, {"Softplus": 1}),
        (DType.F32, 1.0, 10.0, {"Softplus": 1, "Greater": 1, "Where": 1}),
        (DType.F32, 2.0, 20.0, {"Softplus": 1, "Greater": 1, "Where": 1, "Mul": 2}),
    ],
)
def test_a_softplus_has_a_threshold_only_where_it_shows(
    dtype: DType, beta: float, threshold: float, nodes: dict[str, int]
) -> None:
    made = function(
        [tensor(12, dtype=dtype)], lambda op, x: op.aten.softplus(x, beta=beta, threshold=threshold)
    )
    assert operators(made) == nodes
    inf = float("inf")
    x = torch.tensor([-inf, -90.0, -20.0, -1.0, 0.0, 5.0, 10.5, 17.0, 19.99, 20.01, 100.0, inf])
    (found,) = lower(made).run([x], {})
    expected = torch.nn.functional.softplus(x.double(), beta, threshold)
    torch.testing.assert_close(found[:-1].double(), expected[:-1], rtol=2e-7, atol=1e-9)
    assert found[-1] == inf
    (lost,) = lower(made).run([torch.full((12,), torch.nan)], {})
    assert lost.isnan().all()


def _twice(op: Any, x: Value) -> Value:
    return op.aten.add.Tensor(x, x)


@pytest.mark.parametrize(
    "build",
    [
        lambda op, x, z: op.aten.add.Tensor(op.aten.matmul(x, x), op.aten.mul.Scalar(z, 0.0)),
        lambda op, x, z: op.aten.sub.Tensor(op.aten.matmul(x, x), z, alpha=0),
        lambda op, x, z: op.aten.mul.Scalar(op.aten.matmul(x, z), 0.0),
    ],
)
def test_a_factor_of_nothing_keeps_nan(build: Callable[..., Value]) -> None:
    """``Gemm`` does not read what it multiplies by 0."""
    made = function([tensor(2, 2), tensor(2, 2)], build)
    inputs = [torch.ones(2, 2), torch.full((2, 2), torch.nan)]
    (found,), (expected,) = lower(made).run(inputs, {}), eager(made, inputs, {})
    torch.testing.assert_close(found, expected, equal_nan=True)


BLOCKS = leaf("blocks", torch.linspace(-1, 1, 48).reshape(3, 4, 4))


@pytest.mark.parametrize(
    ("build", "shape", "nodes"),
    [
        (lambda op, x: op.aten.matmul(_turned(op, x), op.constant(BLOCKS)), (E, 3, 4), {"FusedMatMul": 1}),
        (lambda op, x: op.aten.matmul(op.constant(BLOCKS), _turned(op, x)), (4, 3, E), {"FusedMatMul": 1}),
        (lambda op, x: op.aten.matmul(_turned(op, x), _turned(op, x)), (4, 3, 4), {"FusedMatMul": 1}),
        (lambda op, x: _read_twice(op, _turned(op, x)), (E, 3, 4), {"Transpose": 1, "MatMul": 1, "Relu": 1}),
        (  # the batch of one operand alone has an axis that the kernel would move
            lambda op, x: op.aten.matmul(_turned(op, x), op.aten.slice.Tensor(op.constant(GAIN), 0, 0, 4, 1)),
            (E, 3, 4),
            {"Transpose": 1, "Slice": 1, "MatMul": 1},
        ),
        (  # another turn
            lambda op, x: op.aten.matmul(op.aten.permute(x, (1, 2, 0)), op.constant(BLOCKS)),
            (4, 3, E),
            {"Transpose": 1, "MatMul": 1},
        ),
    ],
)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_product_reads_rows_that_stand_before_its_batch(
    build: Callable[..., Any], shape: tuple[Any, ...], nodes: dict[str, int], rows: int
) -> None:
    made = function([tensor(*shape)], build)
    assert operators(made) == nodes
    x, sizes = torch.randn([rows if d is E else d for d in shape]), {"e": rows}
    for found, expected in zip(lower(made).run([x], sizes), eager(made, [x], sizes), strict=True):
        assert close(found, expected)


def _turned(op: Any, x: Value) -> Value:
    return op.aten.permute(x, (1, 0, 2))


def _read_twice(op: Any, turned: Value) -> tuple[Value, Value]:
    return op.aten.matmul(turned, op.constant(BLOCKS)), op.aten.relu(turned)


def _parts(op: Any, x: Value, bounds: Sequence[tuple[Any, Any]], axis: int = 1) -> list[Value]:
    return [op.aten.relu(op.aten.slice.Tensor(x, axis, start, end, 1)) for start, end in bounds]


@pytest.mark.parametrize(
    ("build", "dtype", "nodes"),
    [
        (lambda op, x: _parts(op, x, [(0, 2), (2, 5), (5, 6)]), F32, {"Split": 1}),
        (lambda op, x: _parts(op, x, [(3, 6), (0, 3)]), F32, {"Split": 1}),
        (lambda op, x: [*_parts(op, x, [(0, 2), (2, 6)]), op.aten.exp(x)], F32, {"Split": 1, "Exp": 1}),
        (lambda op, x: _parts(op, x, [(0, 2), (3, 6)]), F32, {"Slice": 2}),
        (lambda op, x: _parts(op, x, [(0, 4), (2, 6)]), F32, {"Slice": 2}),
        (lambda op, x: _parts(op, x, [(0, 2), (2, 5)]), F32, {"Slice": 2}),
        (lambda op, x: _parts(op, x, [(0, 6)]), F32, {}),
        (lambda op, x: [*_parts(op, x, [(0, 2)]), *_parts(op, x, [(0, 2)], 0)], F32, {"Slice": 2}),
        (lambda op, x: _parts(op, x, [(0, 3), (3, 6)]), F64, {"Slice": 2}),
        (lambda op, x: _parts(op, x, [(0, 3), (3, 6)]), BF16, {"Slice": 2}),
    ],
)
def test_parts_that_make_up_the_whole_are_one_node(
    build: Callable[..., Any], dtype: DType, nodes: dict[str, int]
) -> None:
    made = function([tensor(3, 6, dtype=dtype)], build)
    found = {name: count for name, count in operators(made).items() if name not in ("Relu", "Cast")}
    assert found == nodes
    x = torch.randn(3, 6).to({F32: torch.float32, F64: torch.float64, BF16: torch.bfloat16}[dtype])
    for result, expected in zip(lower(made).run([x], {}), eager(made, [x], {}), strict=True):
        assert close(result, expected)


def test_parts_of_rows_of_any_number_are_taken_one_by_one() -> None:
    made = function([tensor(E, 6)], lambda op, x: [*_parts(op, x, [(0, 0), (0, E)], 0)])
    for rows in (0, 3):
        x = torch.randn(rows, 6)
        for result, expected in zip(
            lower(made).run([x], {"e": rows}), eager(made, [x], {"e": rows}), strict=True
        ):
            assert close(result, expected)


class CutTwice(nn.Module):
    """In halves by the arms' condition, in other parts by an arm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.inner(x))
        first, second, third = h.chunk(3, -1)
        kept = torch.softmax(first * second, -1) + torch.softmax(third, -1)
        if kept.amax() > 1:
            return kept
        wide, narrow = h.split((8, 4), -1)
        return torch.softmax(wide, -1)[:, :4] * narrow.cumsum(-1)


def test_a_value_cut_in_other_parts_in_an_arm(tmp_path: Path) -> None:
    model, x = CutTwice().eval(), torch.rand(5, 8)
    compiled = regraft.compile(model, (x,))
    regraft.export_onnx(model, (x,), tmp_path / "cut.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "cut.onnx", providers=["CPUExecutionProvider"])
    exact = copy.deepcopy(model).double()
    for given in (x, 100 * x):
        assert_close([compiled(given)], [exact(given.double())])
        (found,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
        assert_close([torch.from_numpy(found)], [exact(given.double())])
