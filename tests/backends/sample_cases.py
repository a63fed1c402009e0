"""The samples of the op table as conformance cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from regraft.conformance import Case
from regraft.ir import Value
from tests.ops import harness
from tests.ops.samples import BF16, F16, F32, F64, SAMPLES, SIZES, Sample

#: Op -> why the suite has no case of it in bf16 and f16.
NOT_IN_HALF = {
    "aten.avg_pool3d": "torch has no kernel for them on the CPU",
    "rg.recurrent": "each step rounds, and torch's kernels round otherwise for inputs laid out otherwise",
}


def case_of(sample: Sample) -> Case:
    def build(op: Any, *values: Value) -> Any:
        given = iter(values)
        call = sample.mapped(lambda _: next(given))
        return op.call(call.name, call.args, dict(call.kwargs))

    return Case(
        str(sample),
        build,
        tuple(operand.type for operand in sample.operands),
        draw=lambda sizes, _: harness.tensors_of(sample, sizes),
        sizes=SIZES,
    )


def sample_cases() -> Iterator[tuple[Sample, Case]]:
    """Every sample of an op in the normal form, in each float type."""
    for sample in SAMPLES:
        if harness.in_normal_form(sample):
            halves = () if sample.name in NOT_IN_HALF else (BF16, F16)
            for dtype in (F32, F64, *halves) if sample.is_float else (F32,):
                typed = sample.at_dtype(dtype)
                yield typed, case_of(typed)
