"""Every op of the table on ONNX Runtime, against the eager reference in fp64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def
from torch import Tensor

from regraft.backends import LowerOptions, backend
from regraft.ir import OPS, DType, Expr, dims
from regraft.runtime import TORCH_DTYPES
from tests.ops import harness
from tests.ops.samples import BF16, F16, F32, F64, SAMPLES, SIZES, Sample

ORT: Any = backend("ort")
OPTIONS = LowerOptions(threads=1)

#: The numerics rule of docs/architecture.md, section 7.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}

NO_KERNEL = "ONNX Runtime has no f64 kernel for {}"

TRANSPOSED = ("aten.conv_transpose1d", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
INTERPOLATIONS = ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")

#: (op, dtype) -> the only reason for which samples of it are refused.
LIMITS: Mapping[tuple[str, DType], str] = {
    ("aten.erf", F64): NO_KERNEL.format("Erf"),
    ("aten.gelu", F64): NO_KERNEL.format("Erf"),
    ("rg.ffn", F64): NO_KERNEL.format("Erf"),
    ("aten.atan2", F64): NO_KERNEL.format("Atan"),
    ("aten.grid_sampler_2d", F64): NO_KERNEL.format("GridSample"),
    ("rg.recurrent", F64): "ONNX Runtime computes recurrent layers in f32 only",
    **{(f"aten.{name}", F64): NO_KERNEL.format(name.capitalize()) for name in ("asin", "acos", "atan")},
    **{(f"aten.conv{n}d", F64): NO_KERNEL.format("Conv") for n in (1, 2, 3)},
    **{(name, F64): NO_KERNEL.format("ConvTranspose") for name in TRANSPOSED},
    **{(f"aten.avg_pool{n}d", F64): NO_KERNEL.format("AveragePool") for n in (2, 3)},
    **{(f"aten.upsample_{name}", F64): NO_KERNEL.format("Resize") for name in INTERPOLATIONS},
}

CANONICAL = [sample for sample in SAMPLES if harness.in_normal_form(sample)]
CASES = [
    pytest.param(sample, dtype, id=f"{sample}-{dtype.value}")
    for sample in CANONICAL
    for dtype in ((F32, F64, BF16, F16) if sample.is_float else (F32,))
]


@pytest.mark.conformance
@pytest.mark.parametrize(("sample", "dtype"), CASES)
def test_sample(sample: Sample, dtype: DType) -> None:
    typed = sample.at_dtype(dtype)
    refused = ORT.supports(harness.op_of(typed))
    if refused is not None:
        assert refused == LIMITS.get((sample.name, dtype))
        return
    symbolic = ORT.lower(harness.function_of(harness.op_of(typed)), harness.NoConstants(), OPTIONS)
    for sizes in SIZES:
        tensors = harness.tensors_of(typed, sizes)
        static = harness.function_of(harness.op_of(harness.static(typed, sizes)))
        fixed = ORT.lower(static, harness.NoConstants(), OPTIONS)
        expected = reference(sample, typed, tensors, sizes)
        check(symbolic.run(tensors, sizes), expected)
        check(fixed.run(tensors, {}), expected)


def reference(
    sample: Sample, typed: Sample, tensors: Sequence[Tensor], sizes: Mapping[str, int]
) -> list[tuple[torch.dtype, Tensor]]:
    """For each result its dtype, and its value in fp64."""
    op = harness.op_of(typed)
    dtypes = [TORCH_DTYPES[result.tensor.dtype.value] for result in op.results]
    if not sample.is_float:
        own = harness.run(harness.function_of(op), tensors, sizes)
        return list(zip(dtypes, own, strict=True))
    wide = harness.function_of(harness.op_of(sample.at_dtype(F64)))
    doubles = [t.double() if t.is_floating_point() else t for t in tensors]
    return list(zip(dtypes, harness.run(wide, doubles, sizes), strict=True))


def check(found: Sequence[Tensor], expected: Sequence[tuple[torch.dtype, Tensor]]) -> None:
    assert len(found) == len(expected)
    for ours, (dtype, theirs) in zip(found, expected, strict=True):
        assert (ours.dtype, ours.shape) == (dtype, theirs.shape)
        if not ours.is_floating_point():
            assert torch.equal(ours, theirs)
            continue
        finite = theirs.isfinite()
        wide = ours.to(theirs.dtype)
        assert torch.equal(wide[~finite].nan_to_num(), theirs[~finite].nan_to_num())
        if finite.any():
            error = (wide - theirs)[finite].abs().max().item()
            assert error <= TOLERANCES[dtype] * theirs[finite].abs().max().item()


@pytest.mark.conformance
@pytest.mark.parametrize("form", [(False, 23), (True, 20), (False, 20)], ids=["plain", "old", "plain-old"])
@pytest.mark.parametrize("sample", [s for s in CANONICAL if s.definition.dialect != "cf"], ids=str)
def test_exported_sample(sample: Sample, form: tuple[bool, int], tmp_path: Any) -> None:
    """Standard ONNX and older opsets give the same results, through plain onnxruntime."""
    if ORT.supports(harness.op_of(sample)) is not None:
        pytest.skip("refused; see LIMITS")
    contrib, opset = form
    for sizes in SIZES[1:3]:
        chosen = sample if has_its_sizes(sample) else harness.static(sample, sizes)
        function = harness.function_of(harness.op_of(chosen))
        path = tmp_path / f"{sizes['s']}.onnx"
        written = ORT.export_file(function, harness.NoConstants(), path, contrib=contrib, opset=opset)
        assert contrib or not any("::" in name for name in written.operators)
        assert written.opset == opset
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        tensors = harness.tensors_of(sample, sizes)
        values = [onnxruntime.OrtValue.from_dlpack(t) for t in tensors]
        feed = dict(zip(written.inputs, values, strict=True))
        made = session.run_with_ort_values(list(written.outputs), feed)
        check([torch.from_dlpack(v) for v in made], reference(sample, sample, tensors, sizes))


def has_its_sizes(sample: Sample) -> bool:
    """Whether each size that the call uses can be read from a tensor's shape, as a file needs it."""
    found = {s for o in sample.operands for d in o.shape for s in dims.symbols_of(d)}
    return {s for value in (*sample.args, *sample.kwargs.values()) for s in symbols_in(value)} <= found


def symbols_in(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for each in value:
            yield from symbols_in(each)
    elif isinstance(value, Expr):
        yield from dims.symbols_of(value)


def test_limits_are_needed() -> None:
    """No entry of LIMITS is there for nothing, and nothing else is refused."""
    refused = {
        (sample.name, dtype)
        for sample in CANONICAL
        for dtype in (F32, F64, BF16, F16)
        if (sample.is_float or dtype == F32)
        and ORT.supports(harness.op_of(sample.at_dtype(dtype))) is not None
    }
    assert refused == set(LIMITS)


def test_every_canonical_op_has_a_lowering() -> None:
    inside = {"rg.const", "cf.yield"}
    canonical = {name for name, definition in OPS.items() if definition.canonical}
    assert set(ORT.lowerings) | inside == canonical


#: What our names for types are in onnxruntime's list of kernels.
KERNEL_NAMES = {
    "bool": "bool",
    "u8": "uint8",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "f32": "float",
    "f64": "double",
}


def test_kernels_are_there() -> None:
    """The types that the back end counts on are in ONNX Runtime's own list."""
    allowed: dict[str, set[str]] = {}
    for kernel in get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider":
            for name in ("T", "T1", "T2", "V", "B"):
                types = kernel.type_constraints.get(name, ())
                allowed.setdefault(kernel.op_name, set()).update(types)
    for op_type, dtypes in ORT.kernels.items():
        wanted = {f"tensor({KERNEL_NAMES[dtype.value]})" for dtype in dtypes}
        assert wanted <= allowed[op_type], op_type
