"""Executables of back ends that are not regraft's: what they do wrong is an error that names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from regraft.errors import BackendError, RegraftError
from regraft.runtime.dims import compile_dim
from regraft.runtime.dtypes import DTYPE_NAMES
from regraft.runtime.executable import ArtefactWriter, Executable

#: Dtype name and shape of a result; a size is a number, a text over symbols, or None: only the run tells.
Promise = tuple[str, Sequence["int | str | None"]]


class CheckedExecutable:
    """``inner``, whose results are those promised, or an error.

    ``promises`` are None where nobody has said what the results are, as in an artefact.
    """

    def __init__(self, inner: Executable, promises: Sequence[Promise] | None = None) -> None:
        self.inner = inner
        self.backend: str = inner.backend
        self.native: Any = getattr(inner, "native", None)
        self._promises = None if promises is None else [_Result(*promise) for promise in promises]

    def run(self, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> list[Tensor]:
        """The results of ``inner``.

        Raises:
            BackendError: it raised, or gave other results than it was to.
        """
        try:
            found: Any = self.inner.run(inputs, sizes)
        except RegraftError:
            raise
        except Exception as error:
            raise BackendError(f"run failed: {type(error).__name__}: {error}", self.backend) from error
        if not isinstance(found, (list, tuple)) or not all(isinstance(each, Tensor) for each in found):
            raise BackendError(f"run returned a {type(found).__name__}, no list of tensors", self.backend)
        results = list(found)
        if self._promises is not None:
            self._check(results, self._promises, sizes)
        return results

    def _check(self, found: list[Tensor], promises: Sequence[_Result], sizes: Mapping[str, int]) -> None:
        if len(found) != len(promises):
            raise BackendError(f"run returned {len(found)} tensors, expected {len(promises)}", self.backend)
        for index, (tensor, promise) in enumerate(zip(found, promises, strict=True)):
            problem = promise.problem(tensor, sizes)
            if problem is not None:
                raise BackendError(f"run returned as result {index} {problem}", self.backend)

    def save(self, writer: ArtefactWriter) -> dict[str, Any]:
        """The record of ``inner``, whose own loader reads it."""
        return self.inner.save(writer)


class _Result:
    def __init__(self, dtype: str, shape: Sequence[int | str | None]) -> None:
        self._dtype = dtype
        self._sizes: list[Callable[[Mapping[str, int]], int] | None] = [
            None if size is None else compile_dim(size) for size in shape
        ]

    def problem(self, tensor: Tensor, sizes: Mapping[str, int]) -> str | None:
        """How ``tensor`` differs from what was promised."""
        wanted = [None if size is None else size(sizes) for size in self._sizes]
        dtype, shape = DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), list(tensor.shape)
        fits = len(shape) == len(wanted) and all(
            b is None or a == b for a, b in zip(shape, wanted, strict=True)
        )
        if dtype == self._dtype and fits and tensor.device.type == "cpu":
            return None
        shown = ", ".join("?" if size is None else str(size) for size in wanted)
        return f"{dtype}{shape} on {tensor.device}, expected {self._dtype}[{shown}] on cpu"
