"""Built kernels against torch in fp64: sizes at the edges, every step, every config of a small space."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from regraft.backends.tvm import bench, building, cpu, space, templates
from regraft.errors import BackendError

HOST = cpu.host_cpu(threads=2)
GEMM = next(t for t in templates.TEMPLATES if t.name == "gemm")
FFN = next(t for t in templates.TEMPLATES if t.name == "ffn")


def check(
    problem: templates.Problem, config: space.Config | None = None, rows: Sequence[int] | None = None
) -> None:
    """The kernel is right at ``rows``, by default those of the problem."""
    template = templates.template_for(problem)
    assert template is not None
    config = config or template.default(problem, HOST)
    own = bench.KernelBench(problem, template)
    kernel = own.build(config)
    for count in rows if rows is not None else [problem.rows or 0]:
        fault = own.trial(kernel, config, count).fault()
        assert fault is None, f"{config} at {count} rows: {fault}"


@pytest.mark.parametrize(
    ("rows", "columns", "depth"),
    [(1, 1, 1), (1, 16, 1), (2, 3, 5), (7, 17, 13), (13, 31, 1), (3, 64, 64), (37, 101, 53), (1, 127, 300)],
)
@pytest.mark.parametrize("is_transposed", [True, False])
def test_sizes_at_the_edges(rows: int, columns: int, depth: int, is_transposed: bool) -> None:
    check(templates.Gemm(rows, columns, depth, is_transposed=is_transposed))


def test_no_rows() -> None:
    check(templates.Gemm(0, 8, 8))


def test_any_number_of_rows() -> None:
    check(templates.Gemm(None, 70, 33, epilogue=(templates.bias(),)), rows=(0, 1, 2, 5, 8, 13, 64, 101))


@pytest.mark.parametrize("is_transposed", [True, False])
@pytest.mark.parametrize("columns", [64, 75])
def test_a_weight_that_comes_with_the_call(is_transposed: bool, columns: int) -> None:
    problem = templates.Gemm(None, columns, 50, batch=3, is_constant=False, is_transposed=is_transposed)
    check(problem, rows=(1, 17))


@pytest.mark.parametrize("is_block_diagonal", [True, False])
@pytest.mark.parametrize("rows", [1, 19])
def test_a_batch(is_block_diagonal: bool, rows: int) -> None:
    steps = (
        templates.residual(),
        templates.Step("by block", _plus, (templates.Extra("b", ("batch", "columns")),)),
    )
    check(templates.Gemm(rows, 37, 20, batch=4, is_block_diagonal=is_block_diagonal, epilogue=steps))


@pytest.mark.parametrize("function", templates.ACTIVATIONS)
def test_activations(function: str) -> None:
    check(templates.Gemm(5, 35, 24, epilogue=(templates.activation(function),)))


@pytest.mark.parametrize("function", ["silu", "gelu", "gelu_tanh"])
def test_gates(function: str) -> None:
    gate = templates.gate(function)
    check(templates.Gemm(None, 50, 40, products=2, epilogue=(gate, templates.residual())), rows=(1, 9, 24))


@pytest.mark.parametrize("biases", [("b", None), (None, "c"), ("b", "c")])
def test_gates_with_biases(biases: tuple[str | None, str | None]) -> None:
    gate = templates.gate("silu", *biases)
    check(templates.Gemm(None, 50, 40, products=2, epilogue=(gate,)), rows=(1, 9))


def test_gates_of_unlike_biases_are_unlike() -> None:
    names = {templates.gate("silu", *given).name for given in [(), ("b",), (None, "b"), ("b", "c")]}
    assert len(names) == 4


def test_all_steps_at_once() -> None:
    steps = (templates.row_scale(), templates.bias(), templates.activation("gelu"), templates.residual())
    for columns in (64, 75):
        check(templates.Gemm(9, columns, 40, epilogue=steps, has_row_squares=True))


def test_a_step_of_ones_own() -> None:
    scale = templates.Extra("factor", (), "float32")
    step = templates.Step("tanh of a scaled sum", _scaled_tanh, (scale,))
    check(templates.Gemm(None, 40, 12, epilogue=(step, templates.bias())), rows=(1, 8))


def test_a_prologue() -> None:
    steps = (
        templates.Step("scale", _times, (templates.Extra("s", ("rows",)),)),
        templates.Step("weight", _times, (templates.Extra("g", ("depth",)),)),
    )
    check(templates.Gemm(11, 40, 37, prologue=steps, epilogue=(templates.bias(),)))
    check(templates.Gemm(None, 40, 48, prologue=steps), rows=(0, 1, 20))


def test_row_squares_of_blocks() -> None:
    check(templates.Gemm(None, 150, 16, has_row_squares=True), rows=(1, 14))
    check(templates.Gemm(5, 150, 16, batch=2, has_row_squares=True))


def test_sums_over_parts_of_k() -> None:
    problem = templates.Gemm(None, 75, 768, epilogue=(templates.bias(), templates.activation("relu")))
    configs = [c for c in GEMM.space(problem, HOST) if c["depth"] < 768 and c["rows"] == 4]
    assert configs
    check(problem, configs[0], rows=(1, 4, 11))


needs_bf16_dot = pytest.mark.skipif(not HOST.has_bf16_dot, reason="this CPU has no dot product of bf16 pairs")


@needs_bf16_dot
@pytest.mark.parametrize("is_transposed", [True, False])
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
def test_bf16(is_transposed: bool, out_dtype: str) -> None:
    steps = (templates.bias(), templates.activation("gelu"), templates.residual())
    problem = templates.Gemm(
        None, 75, 54, is_transposed=is_transposed, epilogue=steps, dtype="bfloat16", out_dtype=out_dtype
    )
    check(problem, rows=(0, 1, 8, 21))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=needs_bf16_dot)])
def test_epilogues_read_and_store_bf16(dtype: str) -> None:
    extras = (
        templates.Extra("b", ("columns",), "bfloat16"),
        templates.Extra("r", ("rows", "columns"), "bfloat16"),
    )
    step = templates.Step("two of them", _sum, extras)
    problem = templates.Gemm(None, 75, 54, epilogue=(step,), dtype=dtype, out_dtype="bfloat16")
    check(problem, rows=(0, 1, 8, 21))


@needs_bf16_dot
def test_a_batch_and_a_gate_of_bf16() -> None:
    gate = (templates.gate("silu"),)
    for is_block_diagonal in (True, False):
        check(
            templates.Gemm(
                13,
                40,
                64,
                batch=3,
                is_block_diagonal=is_block_diagonal,
                products=2,
                epilogue=gate,
                dtype="bfloat16",
            )
        )


def test_what_bf16_has_no_kernels_for() -> None:
    bf16 = templates.Gemm(4, 8, 16, dtype="bfloat16")
    step = (templates.activation("relu"),)
    assert GEMM.takes(bf16) is None
    assert GEMM.takes(bf16, replace(HOST, has_bf16_dot=False)) == "this CPU has no dot product of bf16 pairs"
    assert "odd" in str(GEMM.takes(replace(bf16, depth=15)))
    assert "prologue" in str(GEMM.takes(replace(bf16, prologue=step)))
    assert "not packed" in str(GEMM.takes(replace(bf16, is_constant=False)))
    network = templates.FeedForward(
        replace(bf16, out_dtype="bfloat16"), templates.Gemm(4, 16, 8, dtype="bfloat16")
    )
    assert FFN.takes(network) == "hidden values of bf16 are not kept"


def test_rows_in_shares() -> None:
    problem = templates.Gemm(None, HOST.lanes * 4, 40)
    configs = [c for c in GEMM.space(problem, HOST) if c["splits"] > 1 and c["width"] == HOST.lanes * 4]
    assert configs
    check(problem, configs[0], rows=(0, 1, 3, 50))


@pytest.mark.conformance
@pytest.mark.parametrize("columns", [80, 83])
@pytest.mark.parametrize("number", range(40))
def test_configs(columns: int, number: int) -> None:
    problem = templates.Gemm(None, columns, 512, epilogue=(templates.bias(),))
    configs = list(GEMM.space(problem, HOST))
    check(problem, configs[number * len(configs) // 40], rows=(1, 23))


@pytest.mark.parametrize("rows", [1, 19, 300, 512])
def test_a_gated_network(rows: int) -> None:
    first = templates.Gemm(rows, 83, 24, products=2, epilogue=(templates.gate("silu"),))
    check(templates.FeedForward(first, templates.Gemm(rows, 24, 83, epilogue=(templates.residual(),))))


def test_a_plain_network_of_any_number_of_rows() -> None:
    first = templates.Gemm(None, 96, 24, epilogue=(templates.bias(), templates.activation("gelu")))
    second = templates.Gemm(
        None, 20, 96, epilogue=(templates.bias(), templates.residual()), has_row_squares=True
    )
    check(templates.FeedForward(first, second), rows=(0, 1, 21, 256, 300))


def test_a_network_with_a_prologue_takes_the_rows_of_its_chunk() -> None:
    scale = templates.Step("scale", _times, (templates.Extra("s", ("rows",)),))
    first = templates.Gemm(None, 32, 24, prologue=(scale,), epilogue=(templates.activation("relu"),))
    check(templates.FeedForward(first, templates.Gemm(None, 20, 32)), rows=(5, 300))


def test_functions_are_torch_s() -> None:
    """Values that a product of well-scaled numbers does not reach, and those that are no numbers."""
    inf = float("inf")
    special = torch.tensor(
        [0.0, -0.0, 1e-30, 88.0, 89.0, -87.0, -104.0, 200.0, -200.0, inf, -inf, float("nan")]
    )
    x = torch.cat([special, torch.linspace(-12, 12, 500)])[:, None].contiguous()
    for function in ("tanh", "sigmoid", "relu", "exp", "erf"):
        problem = templates.Gemm(x.shape[0], 1, 1, epilogue=(templates.Step(function, _Named(function)),))
        config = GEMM.default(problem, HOST)
        weight = GEMM.packing(problem, config)["w"].apply(torch.ones(1, 1))
        out = torch.empty_like(x)
        bench.KernelBench(problem, GEMM).build(config)(x, weight, out)()
        torch.testing.assert_close(out, getattr(torch, function)(x), rtol=3e-6, atol=2e-7, equal_nan=True)


def test_a_problem_can_be_sent_to_another_process() -> None:
    problem = templates.Gemm(4, 8, 8, epilogue=(templates.bias(), templates.activation("gelu")))
    assert pickle.loads(pickle.dumps(problem)) == problem


def test_packing_pads_and_keeps_each_block_together() -> None:
    problem = templates.Gemm(4, 5, 3)
    config = replace(GEMM.default(problem, HOST))
    packing = GEMM.packing(problem, config)["w"]
    weight = torch.arange(15.0).reshape(5, 3)
    with torch.device("meta"):  # the default device is not asked
        packed = packing.apply(weight)
    assert packed.shape == packing.packed_shape
    width = config["width"]
    expected = torch.zeros(3, -(-5 // width) * width)
    expected[:, :5] = weight.T
    assert torch.equal(packed.permute(1, 0, 2).reshape(3, -1), expected)
    assert packed.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize(
    "problem",
    [
        templates.Gemm(4, 5, 3),
        templates.Gemm(4, 5, 3, is_transposed=False),
        templates.Gemm(4, 37, 8, batch=3),
        templates.Gemm(4, 37, 8, dtype="bfloat16"),
        templates.Gemm(4, 37, 8, dtype="bfloat16", is_transposed=False),
    ],
)
def test_packing_can_be_undone(problem: templates.Gemm) -> None:
    packing = GEMM.packing(problem, GEMM.default(problem, HOST))["w"]
    dtype = getattr(torch, problem.dtype)
    weight = torch.randn(problem.weight_shape()).to(dtype)
    assert torch.equal(packing.undo(packing.apply(weight), weight.shape, dtype), weight)


def test_features_that_are_masked_are_turned_off_last() -> None:
    found = building.attributes({"avx512f": False, "avx512bw": True, "avx2": True})
    assert found == ["+avx2", "+avx512bw", "-avx512f"]


def test_what_tvm_refuses_to_build_is_a_clear_error() -> None:
    step = templates.Step("nonsense", _warp_mask)
    problem = templates.Gemm(4, 8, 8, epilogue=(step,))
    with pytest.raises(BackendError, match="TVM cannot build kernel"):
        bench.KernelBench(problem, GEMM).build(GEMM.default(problem, HOST))


class _Named:
    """``emit`` of a function by name."""

    def __init__(self, function: str) -> None:
        self.function = function

    def __call__(self, math: object, value: object) -> object:
        return getattr(math, self.function)(value)


def _plus(math: object, value: float, other: float) -> float:
    return value + other


def _sum(math: object, value: float, b: float, r: float) -> float:
    return value + b + r


def _times(math: object, value: float, other: float) -> float:
    return value * other


def _scaled_tanh(math: object, value: float, factor: float) -> object:
    return math.tanh(value * factor)  # type: ignore[attr-defined]


def _warp_mask(math: object, value: object) -> object:
    """A CPU has no such thing."""
    from tvm import tirx

    return tirx.Cast("float32", tirx.call_intrin("uint32", "tirx.tvm_warp_activemask"))
