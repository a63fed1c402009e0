"""The type rules against torch's own, static and symbolic; schemas, traits and counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from regraft.ir import OPS, PLACEMENT, AttrSpec, DType, OpDef, Trait, dims
from regraft.ir import Operand as OperandSpec
from tests.ops import harness
from tests.ops.samples import BF16, F32, F64, SAMPLES, SIZES, Sample, at
from tests.ops.test_selection import CALLS

ATEN = [sample for sample in SAMPLES if sample.definition.dialect == "aten"]
DTYPES = (F32, F64, BF16)


@pytest.mark.conformance
@pytest.mark.parametrize("sample", ATEN, ids=str)
def test_types_are_torchs(sample: Sample) -> None:
    for dtype in DTYPES if sample.is_float else (F32,):
        typed = sample.at_dtype(dtype)
        symbolic = harness.op_of(typed)
        for sizes in SIZES:
            with FakeTensorMode():
                tensors = harness.tensors_of(typed, sizes)
                expected = harness.described_tensors(harness.call_torch(typed, tensors, sizes))
            assert harness.described([r.type for r in symbolic.results], sizes) == expected
            static = harness.op_of(harness.static(typed, sizes))
            assert harness.described([r.type for r in static.results], {}) == expected


def test_every_op_has_a_sample() -> None:
    tested = {sample.name for sample in SAMPLES}
    control = {name for name in OPS if name.startswith("cf.")} | {
        "rg.const", "rg.dim_value", "rg.bind_dim", "rg.check", "rg.alt",
    }  # fmt: skip
    control |= {sample.name for sample in CALLS}  # their results are as long as values say
    assert tested | control == set(OPS)
    assert not tested & control


@pytest.mark.parametrize("definition", [d for d in OPS.values() if d.dialect == "aten"], ids=lambda d: d.name)
def test_parameters_are_the_schemas(definition: OpDef) -> None:
    arguments = [a for a in harness.torch_op(definition.name)._schema.arguments if a.name not in PLACEMENT]
    assert [p.name for p in definition.params] == [a.name for a in arguments]
    for param, argument in zip(definition.params, arguments, strict=True):
        assert isinstance(param, OperandSpec) == ("Tensor" in str(argument.type)), param.name
        if isinstance(param, AttrSpec):
            assert default_of(param) == default_in(argument), param.name


def default_of(param: AttrSpec) -> Any:
    return "required" if repr(param.default) == "<required>" else param.default


def default_in(argument: Any) -> Any:
    if not argument.has_default_value():
        return "required"
    value = argument.default_value
    return tuple(value) if isinstance(value, list) else value


def test_a_spelling_has_a_decomposition() -> None:
    assert [d.name for d in OPS.values() if not d.canonical and d.decompose is None] == []


# -- counts ------------------------------------------------------------------------------------

COUNTED = ("linear", "mm", "bmm", "matmul", "conv1d", "conv2d", "scaled_dot_product_attention")


def counted_samples() -> list[Sample]:
    """Those of ``COUNTED``; torch's counter leaves out products with a vector."""
    samples = [s for s in SAMPLES if s.name.removeprefix("aten.") in COUNTED]
    return [s for s in samples if not _has_vector(s)]


def _has_vector(sample: Sample) -> bool:
    first, second = sample.operands[:2]
    return 1 in (first.type.rank, second.type.rank) if sample.name == "aten.matmul" else second.type.rank == 1


@pytest.mark.parametrize("sample", counted_samples(), ids=str)
def test_products_cost_what_torch_counts(sample: Sample) -> None:
    sizes = SIZES[2]
    tensors = harness.tensors_of(sample, sizes)
    # The counter does not know the fused kernel for CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        harness.call_torch(sample, tensors, sizes)
    op = harness.op_of(sample)
    if op.definition.canonical:
        counted = op.definition.flops(op.site)
    else:
        counted = sum(op.definition.flops(op.site) for op in harness.decomposed(sample).walk())
    assert at(counted, sizes) == counter.get_total_flops()


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.definition.canonical], ids=str)
def test_counts_are_sizes(sample: Sample) -> None:
    op = harness.op_of(sample)
    counted = op.definition.flops(op.site)
    assert at(counted, SIZES[0]) >= 0


def test_a_structured_op_costs_what_it_is_made_of() -> None:
    for sample in SAMPLES:
        if sample.name == "rg.ffn":
            whole = harness.op_of(sample)
            parts = [op.definition.flops(op.site) for op in harness.decomposed(sample).walk()]
            products = [at(p, SIZES[2]) for p in parts if p != 0]
            assert at(whole.definition.flops(whole.site), SIZES[2]) == pytest.approx(sum(products), rel=0.2)


# -- traits ------------------------------------------------------------------------------------


def test_what_may_raise_is_not_speculatable() -> None:
    for name in ("aten.embedding", "aten.index.Tensor", "aten.gather", "aten.amax", "aten.remainder.Tensor"):
        assert OPS[name].traits & Trait.PURE, name
        assert not OPS[name].traits & Trait.SPECULATABLE, name


def test_commutative_ops_commute() -> None:
    tried = set()
    for sample in SAMPLES:
        if sample.definition.traits & Trait.COMMUTATIVE and sample.kwargs.get("alpha", 1) == 1:
            tensors = harness.tensors_of(sample, SIZES[1])
            swapped = Sample(sample.name, (sample.args[1], sample.args[0]))
            found = harness.call_torch(swapped, tensors[::-1], SIZES[1])
            harness.assert_equal(found, harness.call_torch(sample, tensors, SIZES[1]))
            tried.add(sample.name)
    assert tried == {d.name for d in OPS.values() if d.traits & Trait.COMMUTATIVE}


def test_views_move_elements_only() -> None:
    for sample in SAMPLES:
        if sample.definition.traits & Trait.VIEW:
            (tensor, *rest) = harness.tensors_of(sample, SIZES[1])
            known = set(tensor.flatten().tolist())
            for result in harness.call_torch(sample, [tensor, *rest], SIZES[1]):
                assert set(result.flatten().tolist()) <= known, sample.name


def test_elementwise_ops_depend_on_their_element_only() -> None:
    for sample in SAMPLES:
        if not sample.definition.traits & Trait.ELEMENTWISE or not sample.is_float:
            continue
        tensors = harness.tensors_of(sample.at_dtype(F64), SIZES[1])
        (whole,) = harness.call_torch(sample, tensors, SIZES[1])
        rows = [t[1:] if t.dim() == whole.dim() and t.shape[0] == whole.shape[0] else t for t in tensors]
        (part,) = harness.call_torch(sample, rows, SIZES[1])
        assert torch.equal(part.nan_to_num(), whole[1:].nan_to_num()), sample.name


def test_an_index_out_of_range_raises_in_torch() -> None:
    with pytest.raises(IndexError):
        torch.ops.aten.embedding(torch.zeros(3, 2), torch.tensor([3]))


def test_float_types_follow_the_operands() -> None:
    half = harness.op_of(Sample("aten.exp", SAMPLES[0].args).at_dtype(DType.F16))
    assert half.result.tensor.dtype == DType.F16
    assert dims.product(half.result.tensor.shape) == half.result.tensor.numel
