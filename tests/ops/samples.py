"""Calls of every op of the table, for the tests of types, decompositions and back ends."""

from __future__ import annotations

from collections.abc import Iterator

from tests.ops import index_samples, window_samples
from tests.ops.sample import (
    BF16,
    BOOL,
    F16,
    F32,
    F64,
    I32,
    I64,
    SIZES,
    N,
    Operand,
    S,
    Sample,
    T,
    at,
    call,
    index,
    positive,
)

__all__ = [
    "BF16",
    "BOOL",
    "F16",
    "F32",
    "F64",
    "I32",
    "I64",
    "SAMPLES",
    "SIZES",
    "N",
    "Operand",
    "S",
    "Sample",
    "T",
    "at",
    "call",
    "index",
    "positive",
]


def _table() -> Iterator[Sample]:
    yield from _elementwise()
    yield from _reductions()
    yield from _views()
    yield from _products()
    yield from _layers()
    yield from window_samples.table()
    yield from _indexing()
    yield from index_samples.table()
    yield from _creation()
    yield from _structured()
    yield from _writes()


# fmt: off
UNARY = (
    "abs", "neg", "sign", "relu", "floor", "ceil", "round", "trunc", "exp", "exp2", "expm1", "sin", "cos",
    "tanh", "erf", "sigmoid", "silu", "mish", "hardswish", "hardsigmoid", "gelu", "elu", "leaky_relu",
    "softplus", "isnan", "square", "relu6", "hardtanh", "clone", "alias", "detach", "contiguous",
    "lift_fresh_copy", "logical_not",
)
# fmt: on


def _elementwise() -> Iterator[Sample]:
    for name in UNARY:
        yield call(f"aten.{name}", T(S, 3))
    for name in ("log", "log2", "log1p", "sqrt", "rsqrt", "reciprocal"):
        yield call(f"aten.{name}", positive(S, 3))
    for name in ("abs", "neg", "sign", "relu", "square", "logical_not", "bitwise_not"):
        yield call(f"aten.{name}", T(S, 3, dtype=I64))
    yield call("aten.bitwise_not", T(S, dtype=BOOL))
    yield call("aten.gelu", T(S, 3), approximate="tanh")
    yield call("aten.elu", T(S, 3), 0.5, 1.5, 2.0)
    yield call("aten.leaky_relu", T(S, 3), 0.2)
    yield call("aten.softplus", T(S, 3), 2.0, 0.5)
    yield call("aten.hardtanh", T(S, 3), -0.5, 0.25)
    for limits in ((-1, 1), (None, 0.5), (0, None)):
        yield call("aten.clamp", T(S, 3), *limits)
    yield call("aten.clamp_min", T(S, 3), 0.5)
    yield call("aten.clamp_max", T(S, 3, dtype=I64), 2)
    yield call("aten.clamp.Tensor", T(S, 3), T(3), T(S, 1))
    yield call("aten.clamp.Tensor", T(S, 3), None, T())
    yield from _binary()
    yield from _selection()


def _binary() -> Iterator[Sample]:
    for name in ("add.Tensor", "sub.Tensor", "mul.Tensor", "maximum", "minimum", "atan2", "div.Tensor"):
        yield call(f"aten.{name}", T(S, 3), T(3))
        yield call(f"aten.{name}", T(N, 1, 3), T(S, 1))
    for name in ("add.Tensor", "sub.Tensor", "mul.Tensor", "maximum", "minimum"):
        yield call(f"aten.{name}", T(S, 3, dtype=I64), T(dtype=I64))
    yield call("aten.add.Tensor", T(S, 3), T(S, 3), alpha=2)
    yield call("aten.sub.Tensor", T(S, 3), T(S, 3), alpha=0.5)
    for mode in ("floor", "trunc", None):
        yield call("aten.div.Tensor_mode", T(S, 3), positive(3), rounding_mode=mode)
        yield call("aten.div.Scalar_mode", T(S, 3), 0.7, rounding_mode=mode)
    yield call("aten.div.Scalar_mode", T(S, dtype=I64), 3, rounding_mode="floor")
    yield call("aten.floor_divide", T(S, 3), positive(3))
    yield call("aten.remainder.Tensor", T(S, 3), positive(3))
    yield call("aten.remainder.Scalar", T(S, dtype=I64), 3)
    yield call("aten.pow.Tensor_Tensor", positive(S, 3), T(3))
    yield call("aten.pow.Tensor_Scalar", T(S, 3), 2)
    yield call("aten.pow.Tensor_Scalar", T(S, 3), 3.0)
    yield call("aten.pow.Tensor_Scalar", T(S, dtype=I64), 2)
    yield call("aten.pow.Scalar", 2, T(S, 3))
    for name in ("add", "mul", "div", "sub", "rsub"):
        yield call(f"aten.{name}.Scalar", T(S, 3), 1.5)
        yield call(f"aten.{name}.Scalar", T(S, 3), 2)
    for name in ("add", "mul", "sub", "rsub"):
        yield call(f"aten.{name}.Scalar", T(S, dtype=I64), 3)
    for name in ("add", "sub", "rsub"):
        yield call(f"aten.{name}.Scalar", T(S, 3), 1.5, 2)
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        yield call(f"aten.{name}.Tensor", T(S, 1), T(N, 1, 3))
        yield call(f"aten.{name}.Tensor", T(S, dtype=I64), T(S, dtype=I64))
        yield call(f"aten.{name}.Scalar", T(S, dtype=I64), 1)
        yield call(f"aten.{name}.Scalar", T(S, 3), 0.25)
    for name in (
        "bitwise_and.Tensor",
        "bitwise_or.Tensor",
        "bitwise_xor.Tensor",
        "__and__.Tensor",
        "__or__.Tensor",
        "__xor__.Tensor",
        "logical_and",
        "logical_or",
        "logical_xor",
    ):
        yield call(f"aten.{name}", T(S, 1, dtype=BOOL), T(3, dtype=BOOL))
        yield call(f"aten.{name}", T(S, dtype=I64), T(S, dtype=I64))
    for name in ("logical_and", "logical_or", "logical_xor"):
        yield call(f"aten.{name}", T(S, 3), T(3, dtype=I64))


def _selection() -> Iterator[Sample]:
    mask = T(S, 1, dtype=BOOL)
    yield call("aten.where.self", mask, T(S, 3), T(3))
    yield call("aten.where.self", mask, T(dtype=I64), T(3, dtype=I64))
    yield call("aten.where.ScalarOther", mask, T(S, 3), -1.5)
    yield call("aten.where.ScalarSelf", mask, 2, T(3))
    yield call("aten.where.Scalar", mask, 1.5, 2)
    yield call("aten.where.Scalar", mask, 1, 2)
    yield call("aten.masked_fill.Scalar", T(S, 3), mask, float("-inf"))
    yield call("aten.masked_fill.Tensor", T(S, 3), mask, T())
    yield call("aten.addcmul", T(S, 3), T(3), T(S, 1))
    yield call("aten.addcmul", T(S, 3), T(3), T(S, 1), value=0.5)
    yield call("aten.addcdiv", T(S, 3), T(3), positive(S, 1), value=2)
    for dtype in (I64, BF16, F64, BOOL, None):
        yield call("aten._to_copy", T(S, 3), dtype=dtype)
        yield call("aten.to.dtype_layout", T(S, 3), dtype=dtype)
    yield call("aten.to.dtype", T(S, 3, dtype=I64), F32)
    yield call("aten.to.device", T(S, 3, dtype=BOOL), F32)
    yield call("aten.type_as", T(S, 3), T(dtype=F64))


def _reductions() -> Iterator[Sample]:
    x = T(S, 3, N)
    for name in ("sum.dim_IntList", "mean.dim", "var.dim", "std.dim"):
        for axes in ((-1,), (0, 2), (1,)):
            yield call(f"aten.{name}", x, axes)
        yield call(f"aten.{name}", x, (1,), keepdim=True)
    yield call("aten.sum.dim_IntList", x, None)
    yield call("aten.sum.dim_IntList", T(S, dtype=BOOL), (0,))
    yield call("aten.sum.dim_IntList", T(S, dtype=I32), (0,), dtype=F32)
    yield call("aten.mean.dim", x, (1,), True, dtype=F64)
    for name in ("amax", "amin", "logsumexp"):
        yield call(f"aten.{name}", x, (-1,))
        yield call(f"aten.{name}", x, (0, 1), True)
    yield call("aten.amax", T(S, 2, dtype=I64))
    for name in ("argmax", "argmin"):
        yield call(f"aten.{name}", x, -1)
        yield call(f"aten.{name}", x, 0, True)
        yield call(f"aten.{name}", x)
    for name in ("max", "min", "sum", "mean"):
        yield call(f"aten.{name}", x)
    yield call("aten.sum", T(S, dtype=I32))
    yield call("aten.sum", x, dtype=F64)
    for name in ("any", "all"):
        yield call(f"aten.{name}", T(S, 2, dtype=BOOL))
        yield call(f"aten.{name}.dim", x, -1)
        yield call(f"aten.{name}.dim", T(S, 2, dtype=I64), 0, True)
    for name in ("max.dim", "min.dim"):
        yield call(f"aten.{name}", x, -1)
        yield call(f"aten.{name}", x, 0, True)
    yield call("aten.topk", T(S, 5), 2)
    yield call("aten.topk", T(S, 5), 3, 1, False)
    for name in ("var.correction", "std.correction"):
        yield call(f"aten.{name}", x, (1,), correction=0)
        yield call(f"aten.{name}", x, (1,), keepdim=True)
        yield call(f"aten.{name}", T(S, 3), None, correction=1)
    for order in (2, 1, 3, 0, -1, float("inf"), float("-inf")):
        yield call("aten.linalg_vector_norm", x, order, (1,))
    yield call("aten.linalg_vector_norm", x, keepdim=True)
    yield call("aten.linalg_vector_norm", x, 2, (-1,), dtype=F64)
    yield call("aten.cumsum", x, -1)
    yield call("aten.cumsum", T(S, dtype=I32), 0)
    yield call("aten.cumsum", T(S, dtype=BOOL), 0, dtype=F32)
    for name in ("softmax", "log_softmax"):
        yield call(f"aten.{name}.int", x, -1)
        yield call(f"aten.{name}.int", T(S, 3, dtype=BF16), 0, F32)
        yield call(f"aten._{name}", x, 1, False)


def _views() -> Iterator[Sample]:
    x = T(S, 6, N)
    for name in ("view", "reshape", "_unsafe_view"):
        yield call(f"aten.{name}", x, (S, 2, 3, N))
        yield call(f"aten.{name}", x, (S, -1, 3 * N))
        yield call(f"aten.{name}", x, (-1,))
        yield call(f"aten.{name}", T(1, 1), ())
    for dim in (0, -1, 1):
        yield call("aten.unsqueeze", x, dim)
        yield call("aten.select.int", x, dim, 0)
        yield call("aten.select.int", x, dim, -1)
        yield call("aten.slice.Tensor", x, dim, 0, 2**63 - 1)
    yield call("aten.squeeze", T(1, 3, 1))
    yield call("aten.squeeze.dim", T(3, 1, 4), 1)
    yield call("aten.squeeze.dim", T(3, 1, 4), 0)
    yield call("aten.squeeze.dims", T(3, 1, 1), (-1, 0))
    for bounds in ((0, -1), (1, 2), (0, 1), (-1, -1)):
        yield call("aten.flatten.using_ints", x, *bounds)
    yield call("aten.flatten.using_ints", T())
    yield call("aten.unflatten.int", x, 1, (2, -1))
    yield call("aten.view_as", x, T(6 * S, N))
    yield call("aten.reshape_as", x, T(6 * S, N))
    yield call("aten.permute", x, (2, 0, 1))
    yield call("aten.permute", x, (0, -1, -2))
    yield call("aten.t", T(S, 3))
    yield call("aten.t", T(S))
    yield call("aten.transpose.int", x, 1, 2)
    yield call("aten.transpose.int", x, -1, 0)
    yield call("aten.expand", T(1, 3), (S, 3))
    yield call("aten.expand", T(S, 1, 3), (N, -1, 4, -1))
    yield call("aten.expand_as", T(6, 1), x)
    for bounds in ((1, 4), (-3, -1), (2, None), (None, 3), (4, 2), (0, 6, 2), (1, 100, 4)):
        yield call("aten.slice.Tensor", x, 1, *bounds)
    yield call("aten.slice.Tensor", T(S + 2, 3), 0, 1, S)
    yield call("aten.slice.Tensor", T(S, 3), 0, 1)
    yield call("aten.slice.Tensor", T(S, 3), 0, -3, -1)
    yield call("aten.slice.Tensor", T(2 * S, 3), 0, S, None)
    yield call("aten.slice.Tensor", T(100, 3), 0, 0, S)
    yield call("aten.slice.Tensor", T(S))
    yield call("aten.narrow", x, 1, 2, 3)
    yield call("aten.narrow", T(2 * S, 3), 0, S, S)
    for size in (2, 4, 6, 9):
        yield call("aten.split.Tensor", x, size, 1)
    yield call("aten.split.Tensor", T(3 * S), S)
    yield call("aten.split_with_sizes", x, (1, 2, 3), -2)
    yield call("aten.split_with_sizes", T(S + 2), (S, 2))
    for chunks in (2, 4, 6, 7):
        yield call("aten.chunk", x, chunks, 1)
    yield call("aten.chunk", T(2 * S, 3), 2)
    yield call("aten.unbind.int", x, 1)
    yield call("aten.flip", x, (0, -1))
    yield call("aten.repeat", x, (2, 1, 3))
    yield call("aten.repeat", T(S), (2, N, 2))
    yield call("aten.repeat_interleave.self_int", x, 2, 1)
    yield call("aten.repeat_interleave.self_int", x, 3)
    yield call("aten.roll", x, (2,), (1,))
    yield call("aten.roll", x, (-1, 5), (0, 2))
    yield call("aten.roll", T(S, 3), (1,))
    yield call("aten.dropout", x, 0.1, False)
    yield call("aten._assert_tensor_metadata", x)


def _products() -> Iterator[Sample]:
    yield call("aten.linear", T(S, 4), T(3, 4), T(3))
    yield call("aten.linear", T(N, S, 4), T(3, 4))
    yield call("aten.linear", T(4), T(3, 4), T(3))
    yield call("aten.linear", T(S, 4), T(4))
    for bias in (T(), T(1), T(1, 3), T(S, 1), T(S, 3)):
        yield call("aten.linear", T(S, 4), T(3, 4), bias)
    yield call("aten.linear", T(4), T(4), T())
    yield call("aten.mm", T(S, 4), T(4, N))
    yield call("aten.bmm", T(N, S, 4), T(N, 4, 3))
    for left, right in (
        (T(4), T(4)), (T(S, 4), T(4)), (T(4), T(4, 3)), (T(S, 4), T(4, 3)), (T(N, 1, S, 4), T(3, 4, 2)),
        (T(N, S, 4), T(4, 3)), (T(4), T(N, 4, 3)), (T(N, S, 4), T(4)),
    ):  # fmt: skip
        yield call("aten.matmul", left, right)
    yield call("aten.addmm", T(3), T(S, 4), T(4, 3))
    yield call("aten.addmm", T(S, 1), T(S, 4), T(4, 3), beta=2, alpha=0.5)
    yield call("aten.addmm", T(3), T(S, 4), T(4, 3), beta=0)
    yield call("aten.baddbmm", T(1, 1, 3), T(N, S, 4), T(N, 4, 3))
    yield call("aten.baddbmm", T(N, S, 3), T(N, S, 4), T(N, 4, 3), alpha=0.5)
    yield call("aten.outer", T(S), T(N))


def _layers() -> Iterator[Sample]:
    x = T(N, S, 4)
    yield call("aten.layer_norm", x, (4,))
    yield call("aten.layer_norm", x, (4,), T(4), None, 1e-6)
    yield call("aten.layer_norm", x, (4,), T(4), T(4), 1e-12, False)
    yield call("aten.layer_norm", T(S, 3, 4), (3, 4), T(3, 4), T(3, 4))
    yield call("aten.native_layer_norm", x, (4,), T(4), T(4), 1e-5)
    yield call("aten.rms_norm", x, (4,), T(4), 1e-6)
    yield call("aten.rms_norm", x, (4,), None, 1e-5)
    yield call("aten.group_norm", T(N, 4, S + 1), 2, T(4), T(4))
    yield call("aten.group_norm", T(N, 4, S + 1), 4, None, None, 1e-3)
    statistics = (T(4), positive(4))
    for parameters in ((T(4), T(4)), (None, None)):
        yield call("aten.batch_norm", T(N, 4, S), *parameters, *statistics, False, 0.1, 1e-5, True)
        yield call(
            "aten._native_batch_norm_legit_no_training", T(N, 4, S), *parameters, *statistics, 0.1, 1e-5
        )
    q, k, v = T(N, 4, S, 8), T(N, 4, S + 2, 8), T(N, 4, S + 2, 6)
    sdpa = "aten.scaled_dot_product_attention"
    yield call(sdpa, q, k, v)
    yield call(sdpa, q, k, v, scale=0.3)
    yield call(sdpa, q, k, v, T(N, 1, S, S + 2))
    # A row that is masked everywhere has no defined value, so the mask is as wide as it is true.
    yield call(sdpa, q, k, v, Operand(BOOL, (1, 1, S, 1)))
    yield call(sdpa, q, q, q, None, 0.0, True)
    yield call(sdpa, T(N, 4, S, 8), T(N, 2, S, 8), T(N, 2, S, 8), enable_gqa=True)
    yield call(sdpa, T(S, 8), T(S + 2, 8), T(S + 2, 8))
    yield call("aten.glu", T(S, 6))
    yield call("aten.glu", T(S, 6, 3), 1)


def _indexing() -> Iterator[Sample]:
    yield call("aten.embedding", T(11, 4), index(N, S, below=11))
    yield call("aten.embedding", T(S, 4), index(3, below=S, dtype=I32), 0)
    x = T(S, 3, 4)
    rows, columns = index(N, below=S), index(5, 1, below=3)
    yield call("aten.index.Tensor", x, (rows,))
    yield call("aten.index.Tensor", x, (None, columns))
    yield call("aten.index.Tensor", x, (rows, columns))
    yield call("aten.index.Tensor", x, (None, columns, index(2, below=4)))
    yield call("aten.index.Tensor", x, (rows, None, index(1, below=4)))
    yield call(
        "aten.index.Tensor", T(S, N, dtype=BOOL), (index(S, 1, 1, 1, below=S), index(1, 1, 1, N, below=N))
    )
    yield call("aten.index_select", x, 1, index(N, below=3))
    yield call("aten.index_select", x, -1, index(below=4))
    yield call("aten.gather", x, 1, index(S, 2, 4, below=3))
    yield call("aten.gather", x, -1, index(1, 2, N, below=4))
    yield call("aten.cat", (T(S, 3), T(2, 3)))
    yield call("aten.cat", (T(S, 3), T(S, N), T(S, 1)), -1)
    yield call("aten.cat", (T(0), T(S, 3)), 1)
    yield call("aten.cat", (T(S, dtype=I64), T(2, dtype=I64)))
    yield call("aten.stack", (T(S, 3), T(S, 3)))
    yield call("aten.stack", (T(S, 3), T(S, 3), T(S, 3)), -1)
    yield call("aten.diff", T(N, S + 3))
    yield call("aten.diff", T(N, S + 3), 2, 1)
    yield call("aten.diff", T(N, S, dtype=I64), 1, -1, T(N, 1, dtype=I64))
    yield call("aten.diff", T(S, 4), 1, 0, None, T(2, 4))
    yield call("aten.diff", T(S, 4), 0, -1, T(S, 1), T(S, 2))
    for name in ("tril", "triu"):
        yield call(f"aten.{name}", T(N, S, 4))
        yield call(f"aten.{name}", T(S, S, dtype=BOOL), 1)
        yield call(f"aten.{name}", T(S, S), -1)


def _creation() -> Iterator[Sample]:
    for value, dtype in ((0.5, None), (True, None), (3, None), (0.0, F64), (float("-inf"), F32), (1, BOOL)):
        yield call("aten.full", (S, 3), value, dtype=dtype)
    yield call("aten.full", (3,), S, dtype=I64)
    yield call("aten.full", (), 2 * S + 1, dtype=F32)
    for end in (5, S, 2 * S, 4.5):
        yield call("aten.arange", end)
    yield call("aten.arange", S, dtype=F32)
    yield call("aten.arange.start", 2, 9)
    yield call("aten.arange.start", S, S + N)
    yield call("aten.arange.start_step", 0, 10, 3)
    yield call("aten.arange.start_step", 9, 0, -2)
    yield call("aten.arange.start_step", 0, 2 * S, 2, dtype=F32)
    yield call("aten.arange.start_step", 0.5, 3.25, 0.25)
    for name in ("zeros", "ones"):
        yield call(f"aten.{name}", (S, 3))
        yield call(f"aten.{name}", (), dtype=I64)
        yield call(f"aten.{name}_like", T(S, 3))
        yield call(f"aten.{name}_like", T(S, 3), dtype=BOOL)
        yield call(f"aten.new_{name}", T(S), (2, N))
        yield call(f"aten.new_{name}", T(S), (), dtype=BOOL)
    yield call("aten.full_like", T(S, 3), 2)
    yield call("aten.new_full", T(S, dtype=I64), (N,), 7)
    yield call("aten.scalar_tensor", 2)
    yield call("aten.scalar_tensor", True, dtype=BOOL)


def _writes() -> Iterator[Sample]:
    yield call("aten.copy", T(S, 3), T(S, 3))
    yield call("aten.copy", T(S, 3), T(3))
    yield call("aten.copy", T(S, 3), T(dtype=F64))
    yield call("aten.copy", T(S, dtype=I64), T(S))
    yield call("aten.copy", T(S, dtype=BOOL), T(S, dtype=I64))
    yield call("aten.fill.Scalar", T(S, 3), 2)
    yield call("aten.fill.Scalar", T(S, dtype=BOOL), True)
    yield call("aten.fill.Tensor", T(S, 3), T())
    yield call("aten.fill.Tensor", T(S, dtype=I64), T(dtype=BOOL))
    yield call("aten.zero", T(S, 3))
    yield call("aten.zero", T(S, N, dtype=I64))


def _structured() -> Iterator[Sample]:
    yield call("rg.rotary", T(N, 2, S, 8), T(1, 1, S, 8), T(S, 8))
    yield call("rg.rotary", T(S, 4), T(S, 4), T(1, 4))
    up, down = T(6, 4), T(4, 6)
    for activation in ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "tanh"):
        yield call("rg.ffn", T(N, S, 4), up, down, activation=activation)
    yield call("rg.ffn", T(S, 4), up, down, T(6, 4), activation="silu")
    yield call("rg.ffn", T(S, 4), up, T(3, 6), T(6, 4), T(6), T(6), T(3), activation="gelu")
    yield call("rg.ffn", T(S, 4), up, down, None, T(6), None, T(4), activation="relu")
    yield call("rg.ffn", T(2, S, 4), up, T(3, 6), activation="relu", rows_at_once=2)
    yield call("rg.ffn", T(2, 5, 4), up, T(3, 6), None, T(6), activation="relu", rows_at_once=3)
    two = (up, T(3, 6), T(6, 2), T(6), None, T(3), T(2, S, 2))
    yield call("rg.ffn", T(2, S, 4), *two, activation="silu")
    yield call("rg.ffn", T(2, S, 4), *two, activation="silu", rows_at_once=2)


SAMPLES: tuple[Sample, ...] = tuple(_table())
