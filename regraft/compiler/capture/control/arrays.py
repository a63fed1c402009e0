"""NumPy's functions of traced tensors, as torch has them (``torch._numpy``).

A traced tensor has no memory for NumPy to read. What NumPy would give is an ``Array``, with NumPy's dtypes
and operators, or a ``Number`` where it would give a scalar that counts as one of Python's.
"""

# torch's NumPy is untyped.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch._numpy as torch_numpy
from torch import Tensor
from torch.utils import _pytree as pytree

from regraft.compiler.capture.control.context import refuse
from regraft.compiler.capture.control.number import Array, Number, unwrapped

#: The parts of NumPy that torch has, as attributes of both.
_PARTS = ("", "linalg", "fft")


def counterpart(function: Any) -> Callable[..., Any] | None:
    """torch's own form of ``function``, or None where that is not NumPy's, or torch has no such form."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not _is_numpys(function, numpy):
        return None
    for part in _PARTS:
        own, theirs = (getattr(each, part) if part else each for each in (numpy, torch_numpy))
        if vars(own).get(function.__name__) is function:
            return getattr(theirs, function.__name__, None)
    return None


def _is_numpys(function: Any, numpy: Any) -> bool:
    name = getattr(function, "__module__", None)
    return isinstance(function, numpy.ufunc) or (isinstance(name, str) and name.partition(".")[0] == "numpy")


def called(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``function``, one of torch's NumPy, of arguments among which tensors and numbers are not known."""
    args, kwargs = pytree.tree_map(unwrapped, (tuple(args), dict(kwargs)))
    return pytree.tree_map(as_result, function(*args, **kwargs))


def as_result(value: Any) -> Any:
    """A result of NumPy's; its scalars of 64 bits, and truth values, count as Python's numbers."""
    if not isinstance(value, Array):
        return value
    tensor: Tensor = value.tensor
    counts = tensor.dtype in (torch.bool, torch.int64, torch.float64)
    return Number(tensor) if counts and not tensor.dim() else value


def example(array: Array) -> Any:
    """An array of NumPy's with as many dims.

    Raises:
        CaptureError: NumPy may have a scalar there.
    """
    dims = array.tensor.dim()
    if not dims:
        refuse("NumPy has an array here, or a scalar, of which the type is asked", "take its item()")
    return sys.modules["numpy"].zeros((0,) * dims)
