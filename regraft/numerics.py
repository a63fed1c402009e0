"""The numerics rule (docs/architecture.md, section 7); ``regraft.testing`` is its public face."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from regraft.errors import NumericsMismatch

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""The largest error by dtype, relative to the reference's largest magnitude. There is no other tolerance."""


def assert_close(
    actual: Any,
    expected: Any,
    eager: Any = None,
    *,
    reassociates: bool = False,
    suspect: str | None = None,
) -> float:
    """Check results by the numerics rule (docs/architecture.md, section 7) and return the largest error.

    ``actual``, ``expected`` and ``eager`` are tensors or nested structures of tensors: the results to
    judge, those of the same computation on fp64 copies, and those of eager torch at the model's dtype.
    The error of an output is max|actual - expected| / max|expected|; it may be as large as the tolerance
    of its dtype or as eager's own (twice that where a rewrite ``reassociates``). Integers and bools must
    be equal. NaNs and infinities must stand where ``expected`` or ``eager`` has them.

    Raises:
        NumericsMismatch: an output is wrong; ``suspect`` is named in it.
    """
    found, wanted = _tensors(actual), _tensors(expected)
    own = _tensors(eager) if eager is not None else [None] * len(wanted)
    if not len(found) == len(wanted) == len(own):
        counts = f"{len(found)} actual, {len(wanted)} expected, {len(own)} eager"
        raise NumericsMismatch(f"the numbers of outputs differ: {counts}", "outputs", math.inf, 0.0, suspect)
    worst = 0.0
    for index, triple in enumerate(zip(found, wanted, own, strict=True)):
        worst = max(worst, _check_output(f"output {index}", *triple, 2 if reassociates else 1, suspect))
    return worst


def _tensors(structure: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(structure) if isinstance(leaf, Tensor)]


def _check_output(
    name: str, actual: Tensor, expected: Tensor, eager: Tensor | None, slack: int, suspect: str | None
) -> float:
    problem = _unlike(actual, expected, eager)
    if problem:
        raise NumericsMismatch(problem, name, math.inf, 0.0, suspect)
    if not actual.is_floating_point() and not actual.is_complex():
        if torch.equal(actual, expected):
            return 0.0
        raise NumericsMismatch("integers and bools must be equal", name, math.inf, 0.0, suspect)
    reference, got = _as_double(expected), _as_double(actual)
    own = None if eager is None else _as_double(eager)
    if not _same_infinities(got, reference) and (own is None or not _same_infinities(got, own)):
        message = "NaNs or infinities stand in other places"
        raise NumericsMismatch(message, name, math.inf, 0.0, suspect)
    kept = got.isfinite() & reference.isfinite()
    scale, distance = _largest(reference[kept]), _largest((got - reference)[kept])
    limit = TOLERANCES[_real(actual.dtype)] * scale
    if own is not None:
        limit = max(limit, slack * _largest((own - reference)[kept]))
    if distance > limit:
        error, tolerance = _relative(distance, scale), _relative(limit, scale)
        raise NumericsMismatch("a result is wrong", name, error, tolerance, suspect)
    return _relative(distance, scale)


def _unlike(actual: Tensor, expected: Tensor, eager: Tensor | None) -> str | None:
    """Why the outputs cannot be compared at all."""
    if actual.shape != expected.shape:
        return f"the shape is {list(actual.shape)}, expected {list(expected.shape)}"
    if eager is not None and eager.shape != actual.shape:
        return f"the shape is {list(actual.shape)}, eager's is {list(eager.shape)}"
    if eager is not None and eager.dtype != actual.dtype:
        return f"the dtype is {actual.dtype}, eager's is {eager.dtype}"
    inexact = actual.is_floating_point() or actual.is_complex()
    if inexact != (expected.is_floating_point() or expected.is_complex()):
        return f"the dtype is {actual.dtype}, expected {expected.dtype}"
    if not inexact and actual.dtype != expected.dtype:
        return f"the dtype is {actual.dtype}, expected {expected.dtype}"
    if inexact and expected.dtype not in (torch.float64, torch.complex128):
        return f"the reference is {expected.dtype}; compute it in fp64"
    return None


def _as_double(value: Tensor) -> Tensor:
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    return value.detach().to("cpu", torch.float64)


def _real(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)


def _largest(value: Tensor) -> float:
    finite = value[value.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where NaNs and infinities stand in different places."""
    return _largest(a - b) if _same_infinities(a, b) else math.inf


def _same_infinities(a: Tensor, b: Tensor) -> bool:
    same_nans = torch.equal(a.isnan(), b.isnan())
    return same_nans and torch.equal(a.isposinf(), b.isposinf()) and torch.equal(a.isneginf(), b.isneginf())


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to the last bit and the sign of zero; one NaN is as good as another."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    nans = a.isnan()
    same = torch.equal(nans, b.isnan()) and torch.equal(a.masked_fill(nans, 0), b.masked_fill(nans, 0))
    return same and torch.equal(a.signbit() | nans, b.signbit() | nans)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max|actual - expected| / max|expected|; infinite where shapes, NaNs or infinities differ."""
    if actual.shape != expected.shape:
        return math.inf
    a, b = _as_double(actual), _as_double(expected)
    return _relative(_distance(a, b), _largest(b))


def _relative(distance: float, scale: float) -> float:
    if distance == 0:
        return 0.0
    return distance / scale if scale else math.inf
