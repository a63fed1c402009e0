"""Ops of the user's own, from what torch knows of them."""

# An overload's schema has no public name, and torch.library's objects are partly untyped.
# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket

from regraft.compiler.capture.arguments import opaque
from regraft.errors import OptionError
from regraft.ir import CallSite, Dim, OnnxOp, OpDef, Trait, Type
from regraft.runtime import is_random


def op_from_torch(
    op: OpOverload | OpOverloadPacket | CustomOpDef,
    *,
    infer: Callable[[CallSite], Type | tuple[Type, ...]] | None = None,
    traits: Trait | None = None,
    flops: Callable[[CallSite], Dim] | None = None,
    decompose: Callable[[Any, Any], Any] | None = None,
    lowerings: Mapping[str, Callable[..., Any]] | None = None,
    onnx: OnnxOp | None = None,
) -> OpDef:
    """The definition of an op that ``torch.library`` has, with its name and parameters from its schema.

    It runs as the torch op itself wherever no back end has a lowering for it.

    Args:
        op: ``torch.ops.mylib.fancy``, one of its overloads, or what ``torch.library.custom_op`` returned.
        infer: its type rule; needed only where a rewrite writes the op, since capture knows the types.
        traits: by default it is pure, unless torch's tags say that it draws random numbers.
        flops, decompose, lowerings, onnx: as in ``OpDef``.

    Raises:
        OptionError: ``op`` is not a torch op, has several overloads, or writes to its arguments.
    """
    overload = _overload(op)
    if overload._schema.is_mutable:
        _refuse(op, "an op that returns new tensors and leaves its arguments as they are")
    definition = opaque(overload, draws=is_random(overload))
    if infer is not None:
        definition = replace(definition, infer=infer, opaque=False)
    if flops is not None:
        definition = replace(definition, flops=flops)
    return replace(
        definition,
        traits=definition.traits if traits is None else traits,
        decompose=decompose,
        lowerings=dict(lowerings or {}),
        onnx=onnx,
    )


def _overload(op: Any) -> OpOverload:
    if isinstance(op, CustomOpDef):
        return op._opoverload
    if isinstance(op, OpOverload):
        return op
    if not isinstance(op, OpOverloadPacket):
        _refuse(op, "torch.ops.mylib.fancy, or what torch.library.custom_op returned")
    names = op.overloads()
    if "default" not in names:
        _refuse(op, f"one of its overloads: {', '.join(f'{op}.{name}' for name in names)}")
    return op.default


def _refuse(op: Any, expected: str) -> NoReturn:
    raise OptionError("this is not an op to define", "op", repr(op), expected)
