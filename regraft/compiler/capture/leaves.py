"""What the leaves of the example's arguments may be, said before ``torch.export`` stumbles over one."""

# torch's pytrees are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from regraft.compiler.capture.example import dynamic_axes
from regraft.errors import OptionError

#: Leaves that are fixed to the value they have in the example.
_VALUES = (type(None), bool, int, float, str)


def check_leaves(arguments: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Check each leaf of the ``arguments``, by parameter name; ``shapes`` are their open axes.

    Raises:
        OptionError: one is neither a dense tensor with values nor a number, a string or None, or an open axis
            has no element.
    """
    for name, value in arguments.items():
        for path, leaf in pytree.tree_leaves_with_path(value):
            problem = _problem(leaf)
            if problem is not None:
                raise OptionError(f"the example's argument '{name}{pytree.keystr(path)}' {problem}")
        for tensor, axes in dynamic_axes(value, shapes.get(name)):
            empty = [axis for axis in axes if tensor.shape[axis] == 0]
            if empty:
                raise OptionError(
                    f"dimension {empty[0]} of the example's argument '{name}' is dynamic and has size 0: "
                    "no graph for other sizes can be captured from it. Give one with elements, or leave "
                    "it out of dynamic_shapes"
                )


def _problem(leaf: Any) -> str | None:
    """Why ``leaf`` cannot be captured, with what to do; None when it can."""
    if isinstance(leaf, torch.Tensor):
        return _tensor_problem(leaf)
    if type(leaf) in _VALUES:
        return None
    kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}".removeprefix("builtins.")
    if kind.startswith("numpy."):
        return f"is a {kind}; pass it as a tensor (torch.as_tensor) or as a Python number"
    if dataclasses.is_dataclass(leaf):
        return f"is a {kind}; register the class with torch.export.register_dataclass, or pass a dict"
    return (
        f"is a {kind}, which no graph can take; fix it in a function around the model: "
        "lambda x: model(x, value)"
    )


def _tensor_problem(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return "is a nested tensor; pass a padded tensor and a mask, or values and offsets"
    if tensor.layout != torch.strided:
        return f"has the layout {tensor.layout}; pass a dense one: x.to_dense()"
    if tensor.is_quantized:
        return f"is quantized ({tensor.dtype}); pass its values: x.dequantize()"
    if tensor.device.type == "meta":
        return "is on the meta device and has no values; pass a tensor that has"
    return None
