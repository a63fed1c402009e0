"""Bugs of the ONNX Runtime back end that were found once, against eager torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves as leaves

import regraft
from regraft.backends import LowerOptions, backend
from regraft.ir import DType, Function
from regraft.runtime import DTYPE_NAMES
from regraft.testing import assert_close
from tests.backends.ort_graphs import F32, I64, E, S, Store, function, leaf, tensor

ORT: Any = backend("ort")
LOW = torch.finfo(torch.float32).min
NAN, INF = math.nan, math.inf


def compiled(build: Callable[..., Any], *inputs: Tensor) -> Tensor:
    """What the function that ``build`` makes gives for ``inputs``."""
    types = [tensor(*t.shape, dtype=DType(DTYPE_NAMES[t.dtype])) for t in inputs]
    return run(function(types, build), inputs)


def run(made: Function, inputs: Sequence[Tensor], **sizes: int) -> Tensor:
    assert [ORT.supports(op) for op in made.body.ops] == [None] * len(made.body)
    return ORT.lower(made, Store(), LowerOptions(1)).run(inputs, sizes)[0]


def same(found: Tensor, expected: Tensor, tolerance: float = 0) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


# -- binding -----------------------------------------------------------------------------------


def test_the_default_device_is_not_asked() -> None:
    made = function([tensor(S)], lambda op, x: op.aten.mul.Scalar(op.aten.full((S,), 2.0), 2))
    lowered = ORT.lower(made, Store(), LowerOptions(1))
    x = torch.ones(3)
    with torch.device("meta"):
        (found,) = lowered.run([x], {"s": 3})
    same(found, torch.full((3,), 4.0))


def test_a_lazily_negated_view_is_read_as_it_looks() -> None:
    held = torch.view_as_complex(torch.randn(5, 2)).conj().imag
    x = held.contiguous() if not held.is_neg() else held
    assert x.is_neg()
    same(compiled(lambda op, x: op.aten.add.Scalar(x, 0), x), x.resolve_neg())
    same(compiled(lambda op, y: op.aten.add.Tensor(y, op.constant(leaf("c", x))), torch.zeros(5)), x + 0)
    large = torch.view_as_complex(torch.randn(2000, 2)).conj().imag
    add = compiled(lambda op, y: op.aten.add.Tensor(y, op.constant(leaf("c", large))), torch.zeros(2000))
    same(add, large + 0)


# -- norms -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rms_norm_without_an_epsilon(dtype: torch.dtype) -> None:
    x = torch.full((2, 4), 1e-3, dtype=dtype)
    same(compiled(lambda op, x: op.aten.rms_norm(x, (4,)), x), torch.rms_norm(x, (4,)), 1e-2)


def test_epsilons_of_f64_keep_their_digits() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64) * 1e-3
    w, b, variance = (torch.rand(n, dtype=torch.float64) * s for n, s in ((5, 1), (5, 1), (4, 1e-6)))
    norm = compiled(lambda op, *a: op.aten.layer_norm(a[0], (5,), a[1], a[2], 1e-5), x, w, b)
    same(norm, F.layer_norm(x, (5,), w, b, 1e-5), 1e-12)
    both = compiled(lambda op, x: op.aten.layer_norm(x, (4, 5), None, None, 1e-5), x)
    same(both, F.layer_norm(x, (4, 5), None, None, 1e-5), 1e-12)
    rms = compiled(lambda op, *a: op.aten.rms_norm(a[0], (5,), a[1], 1e-5), x, w)
    same(rms, F.rms_norm(x, (5,), w, 1e-5), 1e-12)
    four = torch.rand(4, dtype=torch.float64)
    made = compiled(
        lambda op, x, w, m, v: op.aten.batch_norm(x, w, None, m, v, False, 0.1, 1e-5, False),
        *(x, four, four, variance),
    )
    same(made, _batch(x, four, four, variance), 1e-12)


def _batch(x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, None, False, 0.1, 1e-5)


@pytest.mark.parametrize("batch", [0, 2])
def test_group_norm_of_an_empty_batch(batch: int) -> None:
    x = torch.randn(batch, 4, 5)
    expected = F.group_norm(x, 2, None, None, 1e-5)
    same(compiled(lambda op, x: op.aten.group_norm(x, 2), x), expected, 1e-5)
    made = function([tensor(E, 4, 5)], lambda op, x: op.aten.group_norm(x, 2))
    same(run(made, [x], e=batch), expected, 1e-5)


# -- attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [LOW, -INF, -1e30])
@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (2, 1, 1, 5)])
def test_left_padding(low: float, shape: tuple[int, ...]) -> None:
    """Rows of the lowest number are averages, rows of -inf 0."""
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    keep = torch.ones(shape, dtype=torch.bool).tril(0 if shape[2] > 1 else 9)
    keep[0, ..., :2] = False
    if shape[2] == 1:
        keep[0] = False
    mask = torch.where(keep, 0.0, low)
    found = compiled(lambda op, *a: op.aten.scaled_dot_product_attention(*a), q, k, v, mask)
    same(found, F.scaled_dot_product_attention(q, k, v, mask), 1e-5)


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_a_scale_that_is_not_positive(scale: float) -> None:
    q, k, v = (torch.randn(1, 2, 4, 8) for _ in range(3))
    found = compiled(lambda op, *a: op.aten.scaled_dot_product_attention(*a, scale=scale), q, k, v)
    same(found, F.scaled_dot_product_attention(q, k, v, scale=scale), 1e-5)


# -- casts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64, torch.int64])
def test_casts_to_half_types_round(half: torch.dtype, wide: torch.dtype) -> None:
    x = torch.tensor([1e5, 1.001, 2049.0, 257.0, -3.3], dtype=torch.float64).to(wide)
    narrow = DType(DTYPE_NAMES[half])

    def build(op: Any, x: Any) -> Any:
        return op.aten._to_copy(op.aten._to_copy(x, dtype=narrow), dtype=F32)

    same(compiled(build, x), x.to(half).float())


def test_a_bf16_value_that_f16_cannot_hold() -> None:
    x = torch.tensor([1e5], dtype=torch.bfloat16)

    def build(op: Any, x: Any) -> Any:
        return op.aten._to_copy(op.aten._to_copy(x, dtype=DType.F16), dtype=F32)

    same(compiled(build, x), x.half().float())


# -- edge values -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3])
def test_the_mean_of_nothing_is_nan(size: int) -> None:
    x = torch.rand(2, size)
    same(compiled(lambda op, x: op.aten.mean.dim(x, (1,)), x), x.mean(1))
    made = function([tensor(2, E)], lambda op, x: op.aten.mean.dim(x, (1,)))
    same(run(made, [x], e=size), x.mean(1))


@pytest.mark.parametrize("name", ["max", "min"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_is_beyond_all_numbers(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[1, NAN, 2], [INF, 3, NAN], [-INF, NAN, NAN], [1, 5, 2]], dtype=dtype)
    for keepdim in (False, True):
        found = compiled(lambda op, x, k=keepdim: getattr(op.aten, f"arg{name}")(x, 1, k), x)
        same(found, getattr(x, f"arg{name}")(1, keepdim))
        found = compiled(lambda op, x, k=keepdim: getattr(op.aten, f"a{name}")(x, (0, 1), k), x)
        same(found, getattr(x, f"a{name}")((0, 1), keepdim))
    for index in (0, 1):
        found = compiled(lambda op, x, i=index: getattr(op.aten, name).dim(x, 1)[i], x)
        same(found, getattr(x, name)(1)[index])
    same(compiled(lambda op, x: getattr(op.aten, f"arg{name}")(x), x), getattr(x, f"arg{name}")())


@pytest.mark.parametrize("name", ["amax", "amin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (3, 4), (4, 3), (2, 33), (1, 3, 17), (3, 1, 5)], ids=str)
def test_the_extremum_of_a_softmax_is_nan_where_it_is(
    name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """nan of all elements along the softmax's axis needs no test of each; along others some may be nan."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for bad in (NAN, INF, 0.0):
        x.view(-1)[x.numel() // 2] = bad
        for dim in range(len(shape)):
            for axes in ((dim,), (len(shape) - 1 - dim,), tuple(range(len(shape)))):
                found = compiled(
                    lambda op, x, d=dim, a=axes: getattr(op.aten, name)(op.aten.softmax.int(x, d), a, False),
                    x,
                )
                same(found, getattr(x.softmax(dim), name)(axes), 1e-6)


@pytest.mark.parametrize(("axes", "tests"), [((1,), 0), ((0, 1), 1), ((0,), 1)], ids=str)
def test_which_extrema_look_for_nan(axes: tuple[int, ...], tests: int) -> None:
    made = function([tensor(3, 4)], lambda op, x: op.aten.amax(op.aten.softmax.int(x, 1), axes, False))
    nodes = [node.op_type for node in ORT.emit(made, Store()).graph.all_nodes()]
    assert nodes.count("IsNaN") == tests


def test_the_sign_of_nan_is_zero() -> None:
    x = torch.tensor([NAN, -2.0, 0.0, 3.0])
    same(compiled(lambda op, x: op.aten.sign(x), x), x.sign())


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4, 5, 7, 10])
def test_integer_powers_are_exact(exponent: int) -> None:
    for dtype in (torch.int64, torch.int32, torch.uint8):
        x = torch.tensor([3**20, 3**9, -7, 2]).to(dtype)
        same(compiled(lambda op, x: op.aten.pow.Tensor_Scalar(x, exponent), x), x**exponent)


def test_other_powers_of_i64_are_refused() -> None:
    i = tensor(3, dtype=I64)
    for made in (
        function([i, i], lambda op, x, y: op.aten.pow.Tensor_Tensor(x, y)),
        function([i], lambda op, y: op.aten.pow.Scalar(2, y)),
    ):
        assert "f64" in ORT.supports(next(iter(made.body.ops)))


def test_floor_division_at_the_edges() -> None:
    values = torch.tensor([1.0, -1.0, 0.0, -7.0, 7.5, 0.3, INF, -INF, NAN])
    a, b = (t.flatten() for t in torch.meshgrid(values, values, indexing="ij"))
    found = compiled(lambda op, *x: op.aten.div.Tensor_mode(*x, rounding_mode="floor"), a, b)
    same(found, a.div(b, rounding_mode="floor"))
    for other in (0.0, 2.0, -0.3, INF):
        found = compiled(lambda op, x, o=other: op.aten.div.Scalar_mode(x, o, rounding_mode="floor"), values)
        same(found, values.div(other, rounding_mode="floor"))


# -- types -------------------------------------------------------------------------------------


def test_truth_of_u8_is_u8() -> None:
    x = torch.tensor([[0, 3], [0, 0]], dtype=torch.uint8)
    for name in ("any", "all"):
        same(compiled(lambda op, x, n=name: getattr(op.aten, n).dim(x, 1), x), getattr(x, name)(1))
        same(compiled(lambda op, x, n=name: getattr(op.aten, n)(x), x), getattr(x, name)())


def test_the_magnitude_of_a_complex_number_is_real() -> None:
    made = function([tensor(3, dtype=DType.C64)], lambda op, x: op.aten.abs(x))
    assert made.results[0].tensor.dtype == DType.F32


@pytest.mark.parametrize(("dtype", "value"), [(torch.bool, 0), (torch.bool, 1), (torch.int64, 2.7)])
def test_padding_takes_any_scalar(dtype: torch.dtype, value: float) -> None:
    x = torch.ones(2, dtype=dtype)
    same(compiled(lambda op, x: op.aten.constant_pad_nd(x, (1, 2), value), x), F.pad(x, (1, 2), value=value))


@pytest.mark.parametrize("mode", ["replicate", "reflect"])
@pytest.mark.parametrize("pads", [(-3, 2), (2, -3), (-4, 3), (-1, 2), (-2, -1), (1, -1), (-1, 3)])
def test_an_end_that_is_cut_off_while_the_other_goes_on(mode: str, pads: tuple[int, int]) -> None:
    """What is repeated or reflected is of the whole axis, the part that was cut off too."""
    name, size = {"replicate": "replication", "reflect": "reflection"}[mode], 4
    if mode == "replicate" and sum(pads) == -1:
        size = 3  # one end takes all there is, and the other repeats of it
    x = torch.randn(2, 3, size)
    expected = F.pad(x, pads, mode)
    same(compiled(lambda op, x: op.call(f"aten.{name}_pad1d", (x, pads), {}), x), expected)
    made = function([tensor(2, 3, S)], lambda op, x: op.call(f"aten.{name}_pad1d", (x, pads), {}))
    same(run(made, [x], s=size), expected)


def test_an_image_whose_ends_are_cut_off() -> None:
    x, pads = torch.randn(2, 3, 4, 5), (-5, 2, 1, -2)
    same(compiled(lambda op, x: op.aten.replication_pad2d(x, pads), x), F.pad(x, pads, "replicate"))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("sizes", [(7, 9), (6, 8), (5, 4), (3, 4), (2, 3)])
def test_an_adaptive_pool_keeps_a_bin_to_itself(value: float, sizes: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *sizes)
    x[0, 1, 1, 2] = x[1, 2, 0, 0] = value
    expected = F.adaptive_avg_pool2d(x, (3, 4))
    assert 0 < (~expected.isfinite()).sum() < 12
    same(compiled(lambda op, x: op.aten.adaptive_avg_pool2d(x, (3, 4)), x), expected, 1e-6)
    made = function([tensor(2, 3, S, E)], lambda op, x: op.aten.adaptive_avg_pool2d(x, (3, 4)))
    same(run(made, [x], s=sizes[0], e=sizes[1]), expected, 1e-6)


def test_output_padding_beyond_the_stride_is_refused() -> None:
    def build(op: Any, x: Any, w: Any) -> Any:
        return op.aten.conv_transpose2d.input(x, w, None, (3, 2), (1, 2), (2, 3), 1, (4, 4))

    made = function([tensor(2, 4, 4, 4), tensor(4, 2, 4, 5)], build)
    reasons = [ORT.supports(op) for op in made.body.ops if op.name.startswith("aten.")]
    assert reasons == ["output_padding is not smaller than the stride"]


def test_what_f16_would_overflow_is_infinite() -> None:
    """ONNX Runtime holds the product in f32."""
    x = torch.tensor([2.0, -300.0, 255.9, INF, NAN], dtype=torch.float16)

    def model(x: Tensor) -> Tensor:
        return torch.isinf(x * x)

    assert regraft.compile(model, (x,))(x).tolist() == model(x).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_keeps_its_digits_where_it_is_small(dtype: torch.dtype) -> None:
    for value in (-27.0, -12.0, 0.0, 30.0, 100.0):
        x = torch.tensor(value, dtype=dtype)
        found = compiled(lambda op, x: op.aten.softplus(x), x)
        assert_close(found, F.softplus(x.double()))


def test_the_data_gives_the_bounds_of_a_histogram() -> None:
    """The greatest value is in the last bin, whatever the rounding of the bounds' difference."""

    def model(x: Tensor) -> Tensor:
        return torch.histc(x, 7)

    for seed in range(8):
        x = torch.rand(4, 5, generator=torch.Generator().manual_seed(seed)) * 17 - 8
        assert regraft.compile(model, (x,))(x).sum() == 20
    for x in (torch.full((3,), 2.5), torch.zeros(3, 0)):
        assert regraft.compile(model, (x,))(x).tolist() == model(x).tolist()


def test_norms_of_every_order() -> None:
    def model(x: Tensor) -> list[Tensor]:
        return [torch.linalg.vector_norm(x, order, 1) for order in (0, -1, 0.5, -INF, INF)]

    x = torch.tensor([[0.5, -2.0, 3.0], [1.0, 0.25, -0.125]])
    assert_close(regraft.compile(model, (x,))(x), model(x.double()), model(x))
    assert regraft.compile(lambda x: torch.linalg.vector_norm(x, 0), (x,))(x * 0) == 0


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers_of_no_sample(layer: Callable[..., torch.nn.Module], bidirectional: bool) -> None:
    """ONNX Runtime's kernels end the process there."""
    model = layer(4, 5, batch_first=True, bidirectional=bidirectional, num_layers=2).eval()
    sizes = ({0: Dim("batch", min=0, max=99)},)
    dynamic = regraft.compile(model, (torch.randn(3, 6, 4),), dynamic_shapes=sizes)
    for batch in (0, 1, 3):
        x = torch.randn(batch, 6, 4)
        found, expected = leaves(dynamic(x)), leaves(model(x))
        assert [y.shape for y in found] == [y.shape for y in expected]
        assert_close(found, [y.double() for y in expected], expected)
    static = regraft.compile(model, (torch.randn(0, 6, 4),))
    assert static(torch.randn(0, 6, 4))[0].shape == model(torch.randn(0, 6, 4))[0].shape


def test_gelu_of_a_number() -> None:
    x = torch.tensor(0.7)
    for approximate in ("tanh", "none"):
        found = compiled(lambda op, x, how=approximate: op.aten.gelu(x, approximate=how), x)
        assert_close(found, F.gelu(x.double(), approximate=approximate))


def test_factors_that_vanish_in_f32_keep_nan() -> None:
    """An attribute holds f32, and Gemm leaves out a term of factor 0."""
    x, y, z = torch.randn(3, 4), torch.randn(4, 2), torch.tensor([[NAN, INF], [1.0, 2.0], [3.0, 4.0]])

    def model(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return x @ y + z * 1e-50, torch.add(x @ y, z, alpha=1e-50)

    for found, expected in zip(regraft.compile(model, (x, y, z))(x, y, z), model(x, y, z), strict=True):
        assert found.isnan().tolist() == expected.isnan().tolist()
