"""Which ops make one kernel."""

from __future__ import annotations

from typing import Any

import pytest

from regraft.backends.tvm import cluster
from regraft.conformance import Case
from regraft.ir import DType, Value, parse_type


def kernels(build: Any, *types: str, constants: tuple[int, ...] = ()) -> list[str]:
    """The steps of a function: the ops of each kernel, the anchor in capitals; a check with its op."""
    formed = cluster.form(Case("", build, types, constants).function().body)
    return [_text(step) for step in formed.steps]


def _text(step: Any) -> str:
    if isinstance(step, cluster.Check):
        return f"check for {_name(step.op)}"
    names = (_name(op).upper() if op is step.anchor else _name(op) for op in step.inlined)
    return " ".join(names)


def _name(op: Any) -> str:
    return op.name.split(".")[1]


W = ("f32[B, 8]", "f32[16, 8]", "f32[16]")


def test_a_chain_is_one_kernel() -> None:
    assert kernels(lambda op, x: op.aten.exp(op.aten.neg(op.aten.abs(x))), "f32[B, 8]") == ["abs neg exp"]


def test_a_value_used_twice_in_one_kernel_is_not_stored() -> None:
    def gated(op: Any, x: Value) -> Value:
        y = op.aten.neg(x)
        return op.aten.mul.Tensor(y, op.aten.sigmoid(y))

    assert kernels(gated, "f32[B]") == ["neg sigmoid mul"]


def test_a_value_of_two_kernels_is_stored() -> None:
    def both(op: Any, x: Value) -> tuple[Value, Value]:
        y = op.aten.exp(x)
        return op.aten.neg(y), op.aten.abs(y)

    assert kernels(both, "f32[B]") == ["exp", "neg", "abs"]


def test_a_result_is_stored() -> None:
    def build(op: Any, x: Value) -> tuple[Value, Value]:
        y = op.aten.exp(x)
        return y, op.aten.neg(y)

    assert kernels(build, "f32[B]") == ["exp", "neg"]


def test_what_precedes_and_follows_a_row() -> None:
    def build(op: Any, x: Value, y: Value) -> Value:
        return op.aten.add.Tensor(op.aten.softmax.int(op.aten.mul.Scalar(x, 2.0), 1), y)

    assert kernels(build, "f32[B, 8]", "f32[8]") == ["mul SOFTMAX add"]


def test_a_second_row_op_has_a_kernel_of_its_own() -> None:
    def build(op: Any, x: Value) -> Value:
        return op.aten.softmax.int(op.aten.rms_norm(x, (8,)), 1)

    assert kernels(build, "f32[B, 8]") == ["RMS_NORM", "SOFTMAX"]


def test_what_is_broadcast_is_computed_once() -> None:
    def build(op: Any, x: Value, y: Value) -> Value:
        return op.aten.mul.Tensor(x, op.aten.exp(y))

    assert kernels(build, "f32[B, 8]", "f32[B, 1]") == ["exp", "mul"]


def test_views_of_memory_have_no_kernel() -> None:
    def build(op: Any, x: Value) -> Value:
        return op.aten.softmax.int(op.aten.view(op.aten.permute(x, (1, 0)), (32,)), 0)

    assert kernels(build, "f32[4, 8]") == ["permute", "SOFTMAX"]


def test_views_join_each_kernel_that_reads_them() -> None:
    def build(op: Any, x: Value) -> tuple[Value, Value]:
        y = op.aten.slice.Tensor(x, 1, 0, 4, 1)
        return op.aten.neg(y), op.aten.abs(y)

    assert kernels(build, "f32[B, 8]") == ["slice neg", "slice abs"]


def test_a_product_reads_through_moves_of_rows() -> None:
    def build(op: Any, x: Value, y: Value) -> Value:
        heads = op.aten.permute(op.aten.view(op.aten.slice.Tensor(x, 1, 0, 8), (4, 2, 4)), (1, 0, 2))
        return op.aten.matmul(heads, y)

    assert kernels(build, "f32[4, 24]", "f32[2, 4, 3]") == ["slice view permute MATMUL"]


@pytest.mark.parametrize(
    ("move", "text"),
    [
        (lambda op, x: op.aten.permute(x, (0, 2, 1)), "permute"),
        (lambda op, x: op.aten.slice.Tensor(x, 2, 0, 16, 2), "slice"),
        (lambda op, x: op.aten.permute(op.aten.relu(x), (1, 0, 2)), "relu"),
    ],
)
def test_what_a_product_would_read_one_by_one_or_compute_often_is_stored(move: Any, text: str) -> None:
    def build(op: Any, x: Value) -> Value:
        moved = move(op, x)
        return op.aten.matmul(moved, op.aten.full((moved.tensor.shape[-1], 3), 1.0, dtype=DType.F32))

    assert text in kernels(build, "f32[4, 4, 16]")


def test_a_product_stores_its_rows_where_a_permutation_moves_them() -> None:
    def build(op: Any, x: Value, y: Value) -> Value:
        return op.aten.permute(op.aten.relu(op.aten.matmul(x, y)), (1, 0, 2))

    assert kernels(build, "f32[2, 4, 8]", "f32[2, 8, 3]") == ["MATMUL relu permute"]


def test_a_product_stores_no_columns_apart() -> None:
    def build(op: Any, x: Value, y: Value) -> Value:
        return op.aten.permute(op.aten.matmul(x, y), (0, 2, 1))

    assert kernels(build, "f32[2, 4, 8]", "f32[2, 8, 3]") == ["MATMUL", "permute"]


def test_what_follows_a_product_is_its_epilogue() -> None:
    def build(op: Any, x: Value, w: Value, b: Value, residual: Value) -> Value:
        return op.aten.add.Tensor(residual, op.aten.gelu(op.aten.linear(x, w, b)))

    types = (*W, "f32[B, 16]")
    assert kernels(build, *types, constants=(1, 2)) == ["LINEAR gelu add"]


GATE = ("f32[B, 8]", "f32[16, 8]", "f32[16, 8]")


def test_two_products_of_one_input_that_are_joined_are_one_kernel() -> None:
    def gate(op: Any, x: Value, w: Value, v: Value) -> Value:
        gated = op.aten.silu(op.aten.linear(x, w, None))
        return op.aten.mul.Tensor(gated, op.aten.linear(x, v, None))

    assert kernels(gate, *GATE, constants=(1, 2)) == ["linear silu LINEAR mul"]
    (step,) = cluster.form(Case("", gate, GATE, (1, 2)).function().body).steps
    assert isinstance(step, cluster.Cluster)
    assert {op.name for op in step.products} == {"aten.linear"}
    assert len(step.products) == 2


@pytest.mark.parametrize(
    ("types", "constants", "other"),
    [
        (GATE, (1,), "the second weight is not constant"),
        (("f32[B, 8]", "f32[16, 8]", "f32[1, 8]"), (1, 2), "the second product has one column"),
    ],
)
def test_other_products_have_kernels_of_their_own(
    types: tuple[str, ...], constants: tuple[int, ...], other: str
) -> None:
    def build(op: Any, x: Value, w: Value, v: Value) -> Value:
        return op.aten.mul.Tensor(op.aten.linear(x, w, None), op.aten.linear(x, v, None))

    assert sorted(kernels(build, *types, constants=constants)) == ["LINEAR", "LINEAR mul"], other


def test_products_that_are_used_elsewhere_are_not_joined() -> None:
    def build(op: Any, x: Value, w: Value, v: Value) -> tuple[Value, Value]:
        first = op.aten.linear(x, w, None)
        return op.aten.mul.Tensor(first, op.aten.linear(x, v, None)), first

    assert sorted(kernels(build, *GATE, constants=(1, 2))) == ["LINEAR", "LINEAR mul"]


def test_what_follows_a_network_is_its_epilogue() -> None:
    def build(op: Any, x: Value, up: Value, down: Value, residual: Value) -> Value:
        return op.aten.add.Tensor(op.rg.ffn(x, up, down, activation="gelu"), residual)

    types = ("f32[B, 8]", "f32[16, 8]", "f32[8, 16]", "f32[B, 8]")
    assert kernels(build, *types, constants=(1, 2)) == ["FFN add"]


@pytest.mark.parametrize(
    ("follow", "other"),
    [
        (lambda op, y, z: op.aten.add.Tensor(y, z), "f32[B, 1, 16]"),  # broadcast over the rows in part
        (lambda op, y, z: op.aten.add.Tensor(op.aten._to_copy(z, dtype=y.tensor.dtype), y), "i64[16]"),
        (lambda op, y, z: op.aten.add.Tensor(y, op.aten.permute(z, (0, 2, 1))), "f32[B, 16, 4]"),
    ],
)
def test_an_epilogue_reads_whole_rows_and_columns_of_f32(follow: Any, other: str) -> None:
    """What is not so is computed before the product, or the product has a kernel of its own."""

    def build(op: Any, x: Value, w: Value, z: Value) -> Value:
        return follow(op, op.aten.linear(x, w, None), z)

    steps = kernels(build, "f32[B, 4, 8]", "f32[16, 8]", other, constants=(1,))
    assert len(steps) == 2
    assert any("LINEAR" in step for step in steps)


def test_indices_are_checked_once_and_first() -> None:
    def build(op: Any, w: Value, i: Value) -> Value:
        places = op.aten.add.Scalar(i, 1)
        return op.aten.add.Tensor(op.aten.embedding(w, places), op.aten.embedding(w, places))

    assert kernels(build, "f32[5, 4]", "i64[B]") == [
        "add",
        "check for embedding",
        "embedding embedding add",
    ]


def test_an_epilogue_ends_in_f32_and_knows_no_sizes() -> None:
    """What templates store is f32, and nothing has a place in their epilogue, or a size of the function."""

    def after(follow: Any) -> list[str]:
        def build(op: Any, x: Value, w: Value) -> Value:
            return follow(op, op.aten.linear(x, w, None))

        return kernels(build, *W[:2], constants=(1,))

    rows = parse_type("f32[B]").shape[0]
    assert after(lambda op, y: op.aten.gt.Scalar(y, 0)) == ["LINEAR", "gt"]
    assert after(lambda op, y: op.aten._to_copy(y, dtype=DType.F64)) == ["LINEAR", "_to_copy"]
    assert after(lambda op, y: op.aten.mul.Scalar(y, rows)) == ["LINEAR", "mul"]
    for number, steps in ((rows, ["LINEAR", "full add"]), (2.0, ["LINEAR full add"])):

        def added(op: Any, y: Value, number: Any = number) -> Value:
            return op.aten.add.Tensor(y, op.aten.full((), number, dtype=DType.F32))

        assert after(added) == steps

    def chosen(op: Any, y: Value) -> Value:
        return op.aten.where.self(op.aten.gt.Scalar(y, 0), y, op.aten.neg(y))

    assert after(chosen) == ["LINEAR gt neg where"]


@pytest.mark.parametrize("name", ["softplus", "log1p"])
def test_long_functions_have_a_kernel_of_their_own(name: str) -> None:
    def build(op: Any, x: Value, w: Value) -> Value:
        return op.call(f"aten.{name}", (op.aten.linear(x, w, None),), {})

    assert kernels(build, *W[:2], constants=(1,)) == ["LINEAR", name]


def test_what_has_places_is_computed_before_a_product() -> None:
    def build(op: Any, x: Value, w: Value) -> Value:
        places = op.aten.arange.start_step(0, 16, 1, dtype=DType.F32)
        return op.aten.add.Tensor(op.aten.linear(x, w, None), places)

    steps = kernels(build, *W[:2], constants=(1,))
    assert sorted(steps) == ["LINEAR add", "arange"]
