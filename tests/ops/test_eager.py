"""The eager back end runs every sample as torch does."""

from __future__ import annotations

import pytest
import torch

from regraft.ir import DType
from tests.ops import harness
from tests.ops.samples import BF16, F32, F64, SAMPLES, SIZES, Sample, T

#: Ops for which torch has no kernel for bf16.
NOT_IN_BF16 = frozenset({"aten.avg_pool3d", "aten.cdist"})
#: oneDNN's LSTM in f32 gives other bits for other addresses of the same values.
NOT_BIT_STABLE = frozenset({"aten.lstm.input"})
#: Tensors that nobody has written yet.
UNDEFINED = frozenset(
    {"aten.empty.memory_format", "aten.empty_permuted", "aten.empty_like", "aten.new_empty"}
)


def tried_dtypes(sample: Sample) -> tuple[DType, ...]:
    if not sample.is_float:
        return (F32,)
    if sample.name in NOT_BIT_STABLE:
        return (F64,)
    return (F32, F64) if sample.name in NOT_IN_BF16 else (F32, F64, BF16)


@pytest.mark.conformance
@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.definition.dialect == "aten"], ids=str)
def test_is_torchs_result(sample: Sample) -> None:
    for dtype in tried_dtypes(sample):
        typed = sample.at_dtype(dtype)
        function = harness.function_of(harness.op_of(typed))
        for sizes in SIZES:
            tensors = harness.tensors_of(typed, sizes)
            expected = harness.call_torch(typed, tensors, sizes)
            found = harness.run(function, tensors, sizes)
            assert harness.described_tensors(found) == harness.described_tensors(expected)
            for ours, theirs in zip(found, expected, strict=True) if sample.name not in UNDEFINED else ():
                assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.definition.dialect == "rg"], ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=lambda d: d.value)
def test_structured_ops_run(sample: Sample, dtype: object) -> None:
    typed = sample.at_dtype(dtype)
    for sizes in SIZES:
        op = harness.op_of(typed)
        types = [r.type for r in op.results]
        found = harness.run(harness.function_of(op), harness.tensors_of(typed, sizes), sizes)
        assert harness.described_tensors(found) == harness.described(types, sizes)


def test_a_view_of_any_layout() -> None:
    """``aten.view`` changes the shape; in the IR nothing has strides."""
    permuted = torch.arange(6.0).reshape(2, 3).t()
    for name in ("aten.view", "aten._unsafe_view", "aten.reshape"):
        function = harness.function_of(harness.op_of(Sample(name, (T(3, 2), (6,)))))
        (result,) = harness.run(function, [permuted], {})
        assert result.tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    function = harness.function_of(harness.op_of(Sample("aten.view_as", (T(3, 2), T(6)))))
    (result,) = harness.run(function, [permuted, torch.zeros(6)], {})
    assert result.tolist() == [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
