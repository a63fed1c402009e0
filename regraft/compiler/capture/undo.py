"""Tracing leaves the model's tensors as they were.

``torch.export`` traces with fake tensors in place of parameters and buffers. An in-place op on any other
tensor that the code holds runs for real, once, besides being recorded.
"""

# torch's function modes are untyped, and what keeps the count of a tensor's changes has no public name.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch


class Undo(TorchFunctionMode):
    """In the block, notes what tensors with values hold before they are written to; then puts it back."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _written(func, args, kwargs or {}):
            if not isinstance(tensor, FakeTensor) and id(tensor) not in self._before:
                with no_dispatch():  # else the tracer would take part
                    self._before[id(tensor)] = (tensor, tensor.detach().clone())
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        # Views come after what they are views of.
        for tensor, before in reversed(self._before.values()):
            with _unsafe_preserve_version_counter(tensor):
                tensor.detach().copy_(before)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    if (in_place or name == "__setitem__" or name.startswith("__i")) and args and isinstance(args[0], Tensor):
        yield args[0]
    out = kwargs.get("out")
    yield from (each for each in (out if isinstance(out, tuple) else (out,)) if isinstance(each, Tensor))
