"""Runs one sample: as an IR function through the eager back end, and as a direct call of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.backends import LowerOptions, backend
from regraft.ir import OPS, Builder, Constant, DType, Function, Op, Region, TensorType, input_symbols
from regraft.runtime import DTYPE_NAMES, TORCH_DTYPES, torch_op
from tests.ops.samples import Operand, Sample, at

#: Largest difference allowed in f64, relative to the reference's largest magnitude.
TOLERANCE = 1e-10


class NoConstants:
    """The store of functions that have no constants."""

    def tensor(self, constant: Constant) -> Any:
        raise AssertionError(f"{constant} is not expected")

    def name(self, constant: Constant) -> str:
        raise AssertionError(f"{constant} is not expected")


def op_of(sample: Sample) -> Op:
    """The sample's op, at the end of a new region whose arguments are its operands."""
    region = Region([operand.type for operand in sample.operands])
    values = iter(region.args)
    call = sample.mapped(lambda _: next(values))
    return Builder(OPS, region).create(call.name, call.args, dict(call.kwargs))


def function_of(op: Op, results: Sequence[Any] | None = None) -> Function:
    """The region of ``op`` as a function that returns ``results`` (the op's own when None)."""
    region = op.parent
    assert region is not None
    Builder(OPS, region).create("cf.yield", (tuple(op.results if results is None else results),))
    return Function("forward", region, input_symbols(region.args))


def decomposition(sample: Sample) -> Function | None:
    """The sample's op replaced by its decomposition; None when it has none."""
    op = op_of(sample)
    assert op.parent is not None
    if op.definition.decompose is None:
        return None
    results = op.definition.decompose(Builder(OPS, op.parent, op), op)
    if results is None:
        assert list(op.parent.ops) == [op], f"{sample} has no decomposition, and left ops behind"
        return None
    function = function_of(op, results)
    op.drop_operands()
    op.parent.remove(op)
    return function


def decomposed(sample: Sample) -> Function:
    """The sample's op replaced by its decomposition, which it has."""
    function = decomposition(sample)
    assert function is not None, f"{sample} has no decomposition"
    return function


def in_normal_form(sample: Sample) -> bool:
    """Whether canonicalize leaves the op of ``sample`` as it is, its attributes apart."""
    structured = sample.definition.dialect != "aten"
    return sample.definition.canonical and (structured or decomposition(sample) is None)


def run(function: Function, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
    eager = backend("eager")
    assert all(eager.supports(op) is None for op in function.walk())
    return eager.lower(function, NoConstants(), LowerOptions()).run(tensors, sizes)


def tensors_of(sample: Sample, sizes: Mapping[str, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [operand.tensor(sizes, generator) for operand in sample.operands]


def call_torch(sample: Sample, tensors: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
    """The sample through ``torch.ops``, by its schema."""
    given = iter(tensors)
    call = sample.mapped(lambda _: next(given))
    bound = sample.definition.bind([_argument(a, sizes) for a in call.args], {
        name: _argument(a, sizes) for name, a in call.kwargs.items()
    })  # fmt: skip
    overload: Any = torch_op(sample.name)
    if any(a.name == "device" and not a.has_default_value() for a in overload._schema.arguments):
        bound["device"] = "cpu"
    positional = [
        bound.pop(a.name) for a in overload._schema.arguments if a.name in bound and not a.kwarg_only
    ]
    result = overload(*positional, **bound)
    if result is None:
        return []
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _argument(value: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(value, tuple):
        return [_argument(v, sizes) for v in value]
    return TORCH_DTYPES[value.value] if isinstance(value, DType) else at(value, sizes)


def static(sample: Sample, sizes: Mapping[str, int]) -> Sample:
    """The sample with its symbols replaced by numbers, in operands and attributes."""

    def resized(operand: Operand) -> Operand:
        return Operand(operand.dtype, tuple(at(d, sizes) for d in operand.shape), operand.low, operand.high)

    fixed = sample.mapped(resized)
    return Sample(
        fixed.name,
        tuple(_resized(a, sizes) for a in fixed.args),
        {name: _resized(a, sizes) for name, a in fixed.kwargs.items()},
    )


def _resized(value: Any, sizes: Mapping[str, int]) -> Any:
    return tuple(_resized(v, sizes) for v in value) if isinstance(value, tuple) else at(value, sizes)


def described(types: Sequence[Any], sizes: Mapping[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each type, its symbols replaced."""
    assert all(isinstance(t, TensorType) for t in types)
    return [(t.dtype.value, tuple(at(d, sizes) for d in t.shape)) for t in types]


def described_tensors(tensors: Sequence[Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    return [(DTYPE_NAMES[t.dtype], tuple(t.shape)) for t in tensors]


def assert_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal types; bools and integers equal, floats within ``TOLERANCE``."""
    assert described_tensors(found) == described_tensors(expected)
    for ours, theirs in zip(found, expected, strict=True):
        if not ours.is_floating_point():
            assert torch.equal(ours, theirs)
        elif ours.numel():
            finite = theirs.isfinite()
            assert torch.equal(ours[~finite].nan_to_num(), theirs[~finite].nan_to_num())
            scale = theirs[finite].abs().max().item() if finite.any() else 1.0
            error = (ours[finite] - theirs[finite]).abs().max().item() if finite.any() else 0.0
            assert error <= TOLERANCE * max(scale, 1e-300), f"error {error:.3g} at scale {scale:.3g}"
