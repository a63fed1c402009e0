"""Whether approximations keep to the tolerance that the user declared, where no verification tells.

What is compared is the example's results before and after all rewrites, both graphs run by eager torch at the
model's own dtypes. So ``compile`` and the exports measure the same, and nothing of it depends on back ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.backends import LowerOptions, backend
from regraft.compiler.materialise import Store
from regraft.compiler.partition import refusal
from regraft.compiler.pipeline import Compilation
from regraft.compiler.trial import same_draws
from regraft.errors import NumericsMismatch
from regraft.numerics import assert_close, relative_error

_LOOSEN = "allow more by Exactness.APPROX(tolerance), or approximate less"


@dataclass(frozen=True)
class Declared:
    """What a captured graph gives for its example, to be kept to within ``tolerance``.

    ``results`` is None, and ``reason`` says why, where that cannot be known.
    """

    tolerance: float
    results: Sequence[Tensor] | None
    reason: str = ""

    @staticmethod
    def of(compilation: Compilation) -> Declared:
        """Before any rewrite."""
        found = _results(compilation, Store(compilation.module))
        tolerance = compilation.options.exactness.tolerance
        return Declared(tolerance, None, found) if isinstance(found, str) else Declared(tolerance, found)

    def check(self, compilation: Compilation, store: Store) -> None:
        """Report the largest error of the rewritten graph; ``store`` has its constants.

        What the numerics rule allows is right whatever the tolerance.

        Raises:
            NumericsMismatch: an output is off by more.
        """
        found = self.reason if self.results is None else _results(compilation, store)
        if isinstance(found, str) or self.results is None:
            compilation.report.notes.append(f"the tolerance of approximations was not checked: {found}")
            return
        pairs = zip(found, self.results, strict=True)
        errors = [
            judged(f"output {index}", _like(mine, theirs), _double(theirs), self.tolerance)
            for index, (mine, theirs) in enumerate(pairs)
        ]
        compilation.report.approximation = max(errors, default=0.0)


def judged(
    name: str,
    actual: Tensor,
    expected: Tensor,
    tolerance: float,
    eager: Tensor | None = None,
    *,
    reassociates: bool = True,
) -> float:
    """The error of one output, which is right by the numerics rule or off by at most ``tolerance``.

    Integers and bools must be equal whatever the tolerance.

    Raises:
        NumericsMismatch: it is neither; of the two limits the larger one is named.
    """
    if not (actual.is_floating_point() or actual.is_complex()):
        tolerance = 0.0
    error = relative_error(actual, expected)
    if tolerance and error <= tolerance:
        return error
    try:
        return assert_close(actual, expected, eager, reassociates=reassociates)
    except NumericsMismatch as mismatch:
        mismatch.value = name
        if tolerance > mismatch.tolerance:
            mismatch.message = "an approximation is off by more than was allowed"
            mismatch.tolerance, mismatch.hint = tolerance, _LOOSEN
        raise


def _results(compilation: Compilation, store: Store) -> list[Tensor] | str:
    """What the graph gives for the example, in eager torch, or why that cannot be known."""
    function, inputs = compilation.module.main, compilation.example()
    if inputs is None or compilation.inputs is None:
        return "the exported program has no example arguments"
    eager = backend("eager")
    refused = {op.name: reason for op in function.walk() if (reason := refusal(eager, op)) is not None}
    if refused:
        return f"eager torch does not run {', '.join(refused)}"
    sizes = function.signature.sizes(compilation.inputs)
    with torch.no_grad(), same_draws():
        found = eager.lower(function, store, LowerOptions()).run(inputs, sizes)
    return [result.clone() for result in found]


def _like(result: Tensor, other: Tensor) -> Tensor:
    """``result`` in the shape of ``other``, where it has as many elements."""
    return result.reshape(other.shape) if result.numel() == other.numel() else result


def _double(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor
