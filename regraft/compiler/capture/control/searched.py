"""Where in Python's lists and tuples a value is, and how often, where only a call knows the numbers."""

# torch's tensors are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.compiler.capture.control.exact import check
from regraft.compiler.capture.control.number import Number, as_tensor, as_truth, unwrapped


def index_in(values: Sequence[Any], wanted: Any, start: Any = 0, stop: Any = None) -> Any:
    """``values.index(wanted, start, stop)``; a call fails in which it is not there.

    Raises:
        ValueError: it is in no call.
    """
    places = range(*slice(start, stop).indices(len(values)))
    found: list[Any] = []
    for place in places:
        found.append(is_equal(values[place], wanted))
        if found[-1] is True:  # Python looks no further
            break
    if all(each is False for each in found):
        raise ValueError("list.index(x): x not in list")
    flags = _flags(found)
    check(flags.any(), "ValueError: the value is not in the list")
    return Number(flags.to(torch.int64).argmax()) + places.start


def count_in(values: Sequence[Any], wanted: Any) -> Any:
    """``values.count(wanted)``"""
    found = [is_equal(each, wanted) for each in values]
    return Number(_flags(found).sum()) if found else 0


def _check_nan(value: Any, wanted: Any) -> None:
    """See that no nan is searched for among others: those that are one object are equal to Python."""
    pair = (value, wanted)
    if all(isinstance(each, Number) and each.kind is float for each in pair):
        one, two = map(as_tensor, pair)
        is_clear = (one == one) | (two == two)
        check(is_clear, "nan is searched for among numbers with nan: whether they are one is Python's affair")


def is_equal(value: Any, wanted: Any) -> Any:
    """Whether Python's search takes ``value`` for what is ``wanted``."""
    if value is wanted:
        return True
    _check_nan(value, wanted)
    return value == wanted


def _flags(truths: Sequence[Any]) -> Tensor:
    """``truths`` as ``bool[len(truths)]``."""
    return torch.stack([as_truth(unwrapped(each)) for each in truths])
