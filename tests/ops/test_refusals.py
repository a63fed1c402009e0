"""Calls that no type rule accepts: the error names the op and says what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ops import harness
from tests.ops.samples import BOOL, F64, I32, I64, N, S, Sample, T

SDPA = "aten.scaled_dot_product_attention"
BAG = "rg.embedding_bag"

REFUSED: tuple[tuple[str, tuple[Any, ...], dict[str, Any], str], ...] = (
    ("aten.add.Tensor", (T(3), T(4)), {}, r"do not broadcast: \[3\] and \[4\]"),
    ("aten.add.Tensor", (T(S), T(S + 1)), {}, "do not broadcast"),
    ("aten.add.Tensor", (T(3), T(3, dtype=F64)), {}, "insert casts"),
    ("aten.add.Scalar", (T(3, dtype=I64), 0.5), {}, "would promote i64"),
    ("aten.eq.Scalar", (T(3, dtype=BOOL), 1), {}, "would promote bool"),
    ("aten.exp", (T(3, dtype=I64),), {}, "expected a float type"),
    ("aten.div.Tensor", (T(3, dtype=I64), T(3, dtype=I64)), {}, "expected a float type"),
    ("aten.neg", (T(3, dtype=BOOL),), {}, "expected numbers"),
    ("aten.bitwise_not", (T(3),), {}, "no bits"),
    ("aten.clamp", (T(3),), {}, "neither min nor max"),
    ("aten.hardtanh", (T(3, dtype=I64), -0.5, 0.5), {}, "would promote i64"),
    ("aten.where.self", (T(3), T(3), T(3)), {}, "expected bool"),
    ("aten.div.Tensor_mode", (T(3), T(3)), {"rounding_mode": "up"}, "rounding_mode is 'up'"),
    ("aten.mean.dim", (T(3, dtype=I64), (0,)), {}, "mean of i64"),
    ("aten.sum.dim_IntList", (T(3), (1,)), {}, "out of range for rank 1"),
    ("aten.sum.dim_IntList", (T(3, 4), (0, -2)), {}, "repeat an axis"),
    ("aten.softmax.int", (T(3, dtype=I64), 0), {}, "softmax of i64"),
    ("aten.view", (T(3, 4), (5, 2)), {}, r"12 elements do not fit the shape \[5, 2\]"),
    ("aten.view", (T(S, 4), (S, 5)), {}, "do not fit"),
    ("aten.view", (T(3, 4), (-1, -1)), {}, "more than one -1"),
    ("aten.permute", (T(3, 4), (0, 0)), {}, "do not permute rank 2"),
    ("aten.t", (T(3, 4, 5),), {}, "at most 2"),
    ("aten.expand", (T(3, 4), (5, 4)), {}, "size 3 does not expand to 5"),
    ("aten.expand", (T(3, 4), (1, 4)), {}, "size 3 does not expand to 1"),
    ("aten.expand", (T(4), (-1, 4)), {}, "a new axis cannot keep its size"),
    ("aten.slice.Tensor", (T(3), 0, 0, 3, -1), {}, "step is -1"),
    ("aten.select.int", (T(3), 0, 3), {}, "index 3 is out of range for size 3"),
    ("aten.select.int", (T(3), 0, -4), {}, "index -4 is out of range"),
    ("aten.split_with_sizes", (T(6), (2, 3)), {}, "do not add up to 6"),
    ("aten.split.Tensor", (T(S), 2), {}, "number of results depends on the size s"),
    ("aten.unbind.int", (T(S),), {}, "number of results depends on the size s"),
    ("aten.dropout", (T(3), 0.5, True), {}, "eval mode"),
    ("aten.linear", (T(S, 4), T(3, 5)), {}, "features and the weight's differ: 4 and 5"),
    ("aten.linear", (T(S, 4), T(3, 4), T(4)), {}, "sizes of weight and bias differ: 3 and 4"),
    ("aten.linear", (T(S, 4), T(3, 4), T(2, S, 3)), {}, "does not broadcast"),
    ("aten.linear", (T(1, 4), T(3, 4), T(S, 3)), {}, "does not broadcast"),
    ("aten.linear", (T(S, 4), T(2, 3, 4)), {}, "weight has rank 3"),
    ("aten.linear", (T(S, 4), T(3)), {}, "the inner sizes differ: 4 and 3"),
    ("aten.linear", (T(S, 4), T(3, 4, dtype=F64)), {}, "insert casts"),
    ("aten.mm", (T(3, 4), T(3, 4)), {}, "inner sizes differ: 4 and 3"),
    ("aten.bmm", (T(2, 3, 4), T(3, 4, 5)), {}, "batch sizes differ: 2 and 3"),
    ("aten.matmul", (T(), T(3)), {}, "rank 0"),
    ("aten.matmul", (T(S, 4), T(5, 3)), {}, "inner sizes differ"),
    ("aten.addmm", (T(2, 3), T(5, 4), T(4, 3)), {}, "do not broadcast"),
    ("aten.layer_norm", (T(S, 4), (5,)), {}, "differ: 4 and 5"),
    ("aten.layer_norm", (T(S, 4), (4,), T(3)), {}, r"weight is f32\[3\]"),
    ("aten.rms_norm", (T(S, 4, dtype=I64), (4,)), {}, "expected a float type"),
    ("aten.group_norm", (T(2, 6, 3), 4), {}, "4 groups do not divide 6 channels"),
    ("aten.batch_norm", (T(2, 4), None, None, T(3), T(3), False, 0.1, 1e-5, True), {}, "channels of input"),
    ("aten.batch_norm", (T(2, 4), None, None, T(4), T(4), True, 0.1, 1e-5, True), {}, "eval mode"),
    (
        "aten.instance_norm",
        (T(2, 4, S), None, None, T(4), T(4), True, 0.1, 1e-5, True),
        {},
        "compile the model",
    ),
    (SDPA, (T(2, S, 8), T(2, S, 6), T(2, S, 6)), {}, "head sizes of query and key differ: 8 and 6"),
    (SDPA, (T(2, S, 8), T(2, 5, 8), T(2, 6, 8)), {}, "lengths of key and value differ: 5 and 6"),
    (SDPA, (T(2, S, 8), T(2, S, 8), T(2, S, 8)), {"dropout_p": 0.1}, "eval mode"),
    (SDPA, (T(2, S, 8), T(2, S, 8), T(2, S, 8), T(S, S, dtype=I64)), {}, "mask is i64"),
    (SDPA, (T(2, S, 8), T(2, S, 8), T(2, S, 8), T(S, S), 0.0, True), {}, "is_causal with a mask"),
    (SDPA, (T(1, 4, S, 8), T(1, 3, S, 8), T(1, 3, S, 8)), {"enable_gqa": True}, "heads do not divide"),
    ("aten.glu", (T(S, 5),), {}, "cannot be halved"),
    ("aten.conv2d", (T(1, 4, 8, 8), T(6, 3, 3, 3)), {}, "channels of input and weight differ: 4 and 3"),
    ("aten.conv2d", (T(1, 4, 2, 8), T(6, 4, 4, 3)), {}, "larger than the padded input"),
    ("aten.conv2d", (T(4, 8), T(6, 4, 3, 3)), {}, "rank 2, expected 3 or 4"),
    ("aten.conv1d.padding", (T(1, 4, 8), T(6, 4, 3), None, (2,), "same"), {}, "with a stride"),
    ("aten.max_pool2d", (T(1, 4, 2, 8), (4, 4)), {}, "larger than the padded input"),
    ("aten.pad", (T(3, 4), (1, 1), "mirror"), {}, "mode 'mirror'"),
    ("aten.pad", (T(4), (1, 1), "reflect"), {}, "does not fit"),
    ("aten.reflection_pad1d", (T(2, 4), (4, 0)), {}, "not shorter than its axis"),
    ("aten.conv_transpose1d", (T(1, 4, 5), T(3, 2, 3)), {}, "channels of input and weight differ: 4 and 3"),
    ("aten.conv_transpose1d", (T(1, 4, 1), T(4, 2, 2), None, (1,), (1,)), {}, "removes more"),
    ("aten.upsample_bilinear2d.vec", (T(1, 1, 4, 4), None, False, None), {}, "neither output_size"),
    ("aten.upsample_nearest1d.vec", (T(1, 1, S), None, (1.3,)), {}, "how floats are rounded"),
    ("aten.grid_sampler_2d", (T(2, 1, 4, 4), T(3, 4, 4, 2), 0, 0, False), {}, "batch sizes"),
    ("aten.pixel_shuffle", (T(1, 3, 4, 4), 2), {}, "do not divide"),
    (
        "aten.lstm.input",
        (
            T(S, N, 3),
            (T(1, N, 2), T(1, N, 4)),
            (T(16, 3), T(16, 2), T(2, 4)),
            False,
            1,
            0.0,
            False,
            False,
            False,
        ),
        {},
        "project their output",
    ),
    (
        "rg.recurrent",
        (T(S, N, 3), T(1, 4, 3), T(1, 4, 4), None, T(1, N, 4), None, "lru"),
        {},
        "cell is 'lru'",
    ),
    (
        "rg.recurrent",
        (T(S, N, 3), T(1, 4, 3), T(1, 4, 4), T(1, 4), T(1, N, 4), None, "rnn_relu"),
        {},
        "the bias is f32",
    ),
    ("aten.scatter.src", (T(3), 0, T(3, 1, dtype=I64), T(3)), {}, "index has rank 2"),
    ("aten.scatter_reduce.two", (T(3), 0, T(3, dtype=I64), T(3), "max"), {}, "reduce is 'max'"),
    ("aten.index_put", (T(3, 4), (T(3, dtype=BOOL),), T(2, 4)), {}, "differ from element to element"),
    ("aten.index_put", (T(3, 4), (T(2, dtype=I64),), T(5, 2, 4)), {}, "more axes"),
    ("aten.slice_scatter", (T(5, 4), T(5, 2), 1, 1, 4), {}, "expected the shape"),
    ("aten.one_hot", (T(3, dtype=I64),), {}, "depends on the values"),
    ("aten.unfold", (T(3), 0, 4, 1), {}, "larger than the axis"),
    ("aten.searchsorted.Tensor", (T(2, 3), T(3, 4)), {}, "do not fit the values"),
    ("aten.embedding", (T(9, 4), T(3)), {}, "an index is f32, expected i64 or i32"),
    ("aten.embedding", (T(9), T(3, dtype=I64)), {}, "rank 1, expected 2"),
    (BAG, (T(9), T(3, dtype=I64), T(2, dtype=I64)), {}, "the weight has rank 1, expected 2"),
    (BAG, (T(9, 4), T(3), T(2, dtype=I64)), {}, "an index is f32"),
    (BAG, (T(9, 4), T(3, dtype=I64), T(2, 1, dtype=I64)), {}, "operand 'offsets' has rank 2"),
    (BAG, (T(9, 4), T(3, dtype=I64), T(2, dtype=I64)), {"mode": "prod"}, "mode is 'prod'"),
    (BAG, (T(9, 4), T(3, dtype=I64), T(2, dtype=I64), T(3)), {"mode": "mean"}, "samples with mode 'mean'"),
    (BAG, (T(9, 4), T(3, dtype=I64), T(2, dtype=I64), T(4)), {}, "the weights of samples are f32\\[4\\]"),
    ("aten.index.Tensor", (T(9), (T(9, dtype=BOOL),)), {}, "an index is bool"),
    ("aten.index.Tensor", (T(9), (None, T(2, dtype=I64))), {}, "2 indices for rank 1"),
    ("aten.gather", (T(9, 2), 0, T(9, dtype=I64)), {}, "index has rank 1, expected 2"),
    ("aten.gather", (T(9), 0, T(9, dtype=I32)), {}, "an index is i32"),
    ("aten.cat", ((T(3, 4), T(3, 5)),), {}, "sizes differ: 4 and 5"),
    ("aten.cat", ((T(3), T(3, 5)),), {}, "differ in rank"),
    ("aten.cat", ((),), {}, "no tensors"),
    ("aten.stack", ((T(3), T(4)),), {}, "sizes differ: 3 and 4"),
    ("aten.tril", (T(3),), {}, "at least 2"),
    ("aten.arange.start_step", (0, 5, 0), {}, "step is 0"),
    ("aten.arange.start", (0, 5.5), {"dtype": I64}, "a range of i64 with the fractions \\[5.5\\]"),
    ("aten.arange", (S,), {"dtype": 3}, "expected a dtype"),
    ("rg.rotary", (T(2, S, 7), T(S, 7), T(S, 7)), {}, "cannot be halved"),
    ("rg.rotary", (T(S, 8), T(2, S, 8), T(S, 8)), {}, "more axes than x"),
    ("rg.ffn", (T(S, 4), T(6, 4), T(4, 6)), {"activation": "selu"}, "activation is 'selu'"),
    ("rg.ffn", (T(S, 4), T(6, 4), T(4, 5)), {"activation": "relu"}, "down weight's differ: 6 and 5"),
    ("rg.ffn", (T(N, 4), T(6, 4), T(4, 6), T(5, 4)), {"activation": "silu"}, "do not broadcast"),
    (
        "rg.ffn",
        (T(N, 4), T(6, 4), T(4, 6), T(6, 2), None, None, None, T(S, 2)),
        {"activation": "silu"},
        "the rows of x",
    ),
    (
        "rg.ffn",
        (T(N, 4), T(6, 4), T(4, 6), None, None, None, None, T(N, 4)),
        {"activation": "silu"},
        "a gate_input without a gate_weight",
    ),
    ("rg.bind_dim", (T(3),), {}, r"expected i64\[\]"),
    ("rg.check", (T(3, dtype=BOOL),), {}, r"expected bool\[\]"),
    ("rg.dim_value", (0.5,), {}, "expected sizes"),
    ("rg.const", (3,), {}, "expected a constant"),
)


@pytest.mark.parametrize(("name", "args", "kwargs", "reason"), REFUSED)
def test_refused(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(TypeError, match=reason) as raised:
        harness.op_of(Sample(name, args, kwargs))
    assert str(raised.value).startswith(f"{name}: ")


def test_sizes_that_may_be_equal_are_taken_as_equal() -> None:
    op = harness.op_of(Sample("aten.add.Tensor", (T(S, 3), T(N, 3))))
    assert op.result.tensor.shape == (S, 3)
    # A number stands for both.
    op = harness.op_of(Sample("aten.add.Tensor", (T(S, 3), T(5, 3))))
    assert op.result.tensor.shape == (5, 3)
    op = harness.op_of(Sample("aten.linear", (T(7, S), T(3, 4))))
    assert op.result.tensor.shape == (7, 3)
