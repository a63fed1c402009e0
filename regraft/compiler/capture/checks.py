"""Checks of values: the model's own assertions, and those of ``torch.linalg.inv`` and its like, which raise
where there is no result.

A functional graph orders ops with effects by tokens; here a check stands among the ops where it was made.
"""

# torch's fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch._higher_order_ops.effects import with_effects
from torch._ops import OpOverload
from torch.fx import Node

from regraft.compiler.capture.arguments import call_arguments, overload_name
from regraft.errors import CaptureError
from regraft.ir import Builder, DType, Value

_FACTORED = "aten._linalg_check_errors"
_ASSERTS = ("aten._assert_async", "aten._assert_async.msg")


def has_effect(node: Node) -> bool:
    """Whether ``node`` is there for its effect: it gives a token, or nothing."""
    return node.target is with_effects or (
        isinstance(node.target, OpOverload) and overload_name(node.target) in _ASSERTS
    )


def add_check(node: Node, value_of: Callable[[Node], Any], builder: Builder) -> None:
    """Write the check that ``node`` makes; ``value_of`` another node is its value.

    Raises:
        CaptureError: its effect is no check, such as printing.
    """
    target, args = (node.args[1], node.args[2:]) if node.target is with_effects else (node.target, node.args)
    assert isinstance(target, OpOverload), target
    name = overload_name(target)
    arguments = call_arguments(target, args, node.kwargs, value_of)
    if name == _FACTORED:
        _check_factored(arguments, builder)
    elif name in _ASSERTS:
        _check_true(arguments["self"], str(arguments.get("assert_msg", "")), builder)
    else:
        raise CaptureError(
            f"{name} has an effect besides its results, which a graph cannot hold",
            hint="leave it out of the compiled model, or call it on the results",
        )


def _check_true(value: Value, message: str, builder: Builder) -> None:
    if value.tensor.rank:
        value = builder.aten.view(value, ())
    if value.tensor.dtype != DType.BOOL:
        value = builder.aten.ne.Scalar(value, 0)
    builder.rg.check(value, message)


def _check_factored(arguments: Mapping[str, Any], builder: Builder) -> None:
    """``info`` holds 0 for each matrix of a batch that could be factored."""
    info: Value = arguments["info"]
    found = builder.aten.eq.Scalar(info, 0)
    if info.tensor.rank:
        found = builder.aten.all(found)
    builder.rg.check(found, f"{arguments['api_name']}: a matrix is singular, or not of the kind it must be")
