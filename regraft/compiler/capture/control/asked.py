"""Where a model's code asks a traced tensor for its value, or reaches around it.

torch goes on with a number that nobody knows, or fails far from there. The trace stops instead, as it does
where a tensor decides, if the function that asks can still be converted.
"""

# torch's function modes are untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from regraft.compiler.capture.control.trace import undecided

_ASKS = frozenset(
    [Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, torch.Tensor.data.__get__]  # pyright: ignore[reportAttributeAccessIssue]
)
#: What takes the numbers that tensors in a list hold.
_TAKES = frozenset([torch.tensor, torch.as_tensor])
#: What gives the rows of a tensor that is gone over.
_ROWS = frozenset([Tensor.unbind])
#: What may stand between the code that asks and the mode: torch's methods and indexing in Python, and NumPy.
_BETWEEN = frozenset(
    ["torch._tensor", "torch.overrides", "torch._export.non_strict_utils", "torch._subclasses.fake_tensor"]
)


_MODE = "__torch_function__"


def _asking() -> FrameType | None:
    """The frame of the code that asks."""
    frame: FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        is_mode = frame.f_code.co_name == _MODE
        if not is_mode and module not in _BETWEEN and module.partition(".")[0] != "numpy":
            break
        frame = frame.f_back
    return frame


def _goes_over_open_size(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether Python goes over a tensor of which only a call knows how many rows it has."""
    if func not in _ROWS or not args[0].dim() or not free_symbols(args[0].shape[0]):
        return False
    frame: FrameType | None = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_code is not Tensor.__iter__.__code__:
        is_between = str(frame.f_globals.get("__name__")) in _BETWEEN or frame.f_code.co_name == _MODE
        frame = frame.f_back if is_between else None
    return frame is not None


def _holds_undecided(args: tuple[Any, ...]) -> bool:
    """Whether the first argument is a list, at any depth, that holds a traced tensor."""
    data = args[0] if args else None
    return isinstance(data, (list, tuple)) and any(map(undecided, pytree.tree_leaves(data)))


class Asks(Exception):
    """The function that runs in ``frame`` asks for a value."""

    def __init__(self, frame: FrameType) -> None:
        super().__init__("a tensor is asked for its value")
        self.frame = frame
        self.line = frame.f_lineno


class Asked(TorchFunctionMode):
    """In the block, stops where a function asks of which ``is_convertible`` the code."""

    def __init__(self, is_convertible: Callable[[CodeType], bool]) -> None:
        super().__init__()
        self._is_convertible = is_convertible

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = func in _ASKS and undecided(args[0])
        if asks or (func in _TAKES and _holds_undecided(args)) or _goes_over_open_size(func, args):
            frame = _asking()
            if frame is not None and self._is_convertible(frame.f_code):
                raise Asks(frame)
        return func(*args, **(kwargs or {}))
