"""Decompositions compute what the op computes, in f64, and reach the normal form in one step."""

from __future__ import annotations

import pytest

from regraft.ir import OPS, Builder, DType, Leaf, Op, Region, TensorType, dims
from tests.ops import harness
from tests.ops.sample import Operand
from tests.ops.samples import F64, SAMPLES, SIZES, Sample, T

DECOMPOSED = [sample for sample in SAMPLES if harness.decomposition(sample) is not None]

#: Tensors that nobody has written yet.
UNDEFINED = frozenset(
    {"aten.empty.memory_format", "aten.empty_permuted", "aten.empty_like", "aten.new_empty"}
)
#: Ops of our own that a decomposition of torch's may be made of.
INNER = ("rg.dim_value", "rg.recurrent", "rg.check", "cf.scan")


@pytest.mark.conformance
@pytest.mark.parametrize("sample", DECOMPOSED, ids=str)
def test_computes_the_same(sample: Sample) -> None:
    exact = sample.at_dtype(F64)
    for sizes in SIZES:
        tensors = harness.tensors_of(exact, sizes)
        expected = harness.run(harness.function_of(harness.op_of(exact)), tensors, sizes)
        found = harness.run(harness.decomposed(exact), tensors, sizes)
        if sample.name in UNDEFINED:
            assert harness.described_tensors(found) == harness.described_tensors(expected)
        else:
            harness.assert_equal(found, expected)


@pytest.mark.conformance
@pytest.mark.parametrize("sample", DECOMPOSED, ids=str)
def test_keeps_the_types(sample: Sample) -> None:
    for dtype in (F64, DType.BF16):
        typed = sample.at_dtype(dtype)
        types = [r.type for r in harness.op_of(typed).results]
        assert [v.type for v in harness.decomposed(typed).results] == types


@pytest.mark.conformance
@pytest.mark.parametrize("sample", DECOMPOSED, ids=str)
def test_is_made_of_canonical_ops(sample: Sample) -> None:
    made = [op for op in harness.decomposed(sample).walk() if op.name != "cf.yield"]
    assert [op.name for op in made if not op.definition.canonical] == []
    assert [op.name for op in made if op.definition.dialect != "aten" and op.name not in INNER] == []
    for op in made:
        # Normal attributes too: no negative axis, slices with explicit bounds, no -1 in a size.
        numbers = [v for name in ("dim", "dims", "size") if name in op.attrs for v in op.site.dims(name)]
        assert all(not isinstance(n, int) or n >= 0 for n in numbers), op.name
        assert op.attrs.get("end", 0) is not None, op.name


def weighted(sample: Sample, *constant: str) -> Op:
    """The sample's op with some operands constants, decomposed: the op that makes the result."""
    region = Region([operand.type for operand in sample.operands])
    b = Builder(OPS, region)
    names = [o.name for o in sample.definition.operands]
    values = [
        b.constant(Leaf(name, operand.type)) if name in constant else value
        for name, operand, value in zip(names, sample.operands, region.args, strict=True)
    ]
    op = b.create(sample.name, tuple(values))
    assert op.definition.decompose is not None
    made = op.definition.decompose(Builder(OPS, region, op), op)
    assert made is not None
    (result,) = made
    return result.op


@pytest.mark.parametrize(
    ("sample", "constant"),
    [
        (Sample("aten.mm", (T(5, 4), T(4, 3))), ("mat2",)),
        (Sample("aten.addmm", (T(3), T(5, 4), T(4, 3))), ("self", "mat2")),
        (Sample("aten.addmm", (T(3), T(5, 4), T(4, 3))), ("mat2",)),
    ],
    ids=str,
)
def test_a_product_with_a_weight_is_linear(sample: Sample, constant: tuple[str, ...]) -> None:
    made = weighted(sample, *constant)
    assert made.name == "aten.linear"
    assert made.operand("weight").tensor == TensorType(DType.F32, (3, 4))


def test_a_product_with_an_activation_is_matmul() -> None:
    assert weighted(Sample("aten.mm", (T(5, 4), T(4, 3))), "self").name == "aten.matmul"
    # A bias that is a column is no bias of a linear layer.
    assert weighted(Sample("aten.addmm", (T(5, 1), T(5, 4), T(4, 3))), "mat2").name == "aten.add.Tensor"


@pytest.mark.parametrize(
    ("weight", "bias", "expected"),
    [
        (T(3, 4), T(3), None),
        (T(1, 4), T(1), None),
        (T(4), T(), ["matmul", "add.Tensor"]),
        (T(3, 4), T(1), ["expand", "linear"]),
        (T(3, 4), T(), ["view", "expand", "linear"]),
        (T(3, 4), T(1, 3), ["view", "linear"]),
        (T(3, 4), T(5, 3), ["linear", "add.Tensor"]),
    ],
    ids=str,
)
def test_the_normal_form_of_a_linear_layer(
    weight: Operand, bias: Operand, expected: list[str] | None
) -> None:
    """A matrix, and a bias of one number an output."""
    found = harness.decomposition(Sample("aten.linear", (T(5, 4), weight, bias)))
    names = None if found is None else [op.name.removeprefix("aten.") for op in found.body.ops]
    assert names == (expected and [*expected, "cf.yield"])


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((T(2, 3), T(2, 1)), None),
        ((T(0), T(2)), None),
        ((T(2, 3), T(0), T(2, 1)), ["aten.cat", "cf.yield"]),
        ((T(0), T(2, 3)), ["cf.yield"]),
    ],
    ids=str,
)
def test_empty_parts_of_another_rank_are_not_joined(
    parts: tuple[Operand, ...], expected: list[str] | None
) -> None:
    found = harness.decomposition(Sample("aten.cat", (parts, -1)))
    assert (None if found is None else [op.name for op in found.body.ops]) == expected


def test_casts_and_copies_that_do_nothing_go_away() -> None:
    for name in ("clone", "alias", "detach", "contiguous", "lift_fresh_copy"):
        op = harness.op_of(Sample(f"aten.{name}", (T(3),)))
        assert op.definition.decompose is not None
        assert op.definition.decompose(None, op) == (op.operand("self"),)
    op = harness.op_of(Sample("aten.to.dtype", (T(3), DType.F32)))
    assert op.definition.decompose is not None
    assert op.definition.decompose(None, op) == (op.operand("self"),)


def test_resolved_bounds_resolve_to_themselves() -> None:
    """Else canonicalising a slice twice would change its type."""
    for sample in DECOMPOSED:
        for op in harness.decomposed(sample).walk():
            if op.name == "aten.slice.Tensor":
                size = op.operand("self").tensor.shape[op.attr("dim")]
                start = dims.minimum(op.attr("start"), size)
                end = dims.maximum(start, dims.minimum(op.attr("end"), size))
                assert dims.minimum(start, size) == start, sample
                assert dims.maximum(start, dims.minimum(end, size)) == end, sample
