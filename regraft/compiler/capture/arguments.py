"""From the arguments of an fx node to those of an op definition."""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
# An overload's schema has no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from regraft.errors import CaptureError
from regraft.ir import (
    PLACEMENT,
    Arity,
    AttrSpec,
    Builder,
    DType,
    Expr,
    OpDef,
    Operand,
    OpTable,
    Trait,
    Value,
)
from regraft.runtime import DTYPE_NAMES, MEMORY_ORDER, is_random

#: The namespace of our own ops, which are tagged as random to be left alone.
MARKERS = "regraft"

_LEFT_OUT = PLACEMENT | {"generator"}
_TRUTHS = ("aten.any.dims", "aten.all.dims")
#: Attributes without which, or at 0, a random op draws nothing.
_TRAINING = ("train", "training")
_PROBABILITIES = ("dropout_p",)


def overload_name(target: OpOverload) -> str:
    """The IR's name of an overload: ``aten.add.Tensor``, and ``aten.linear`` for the default one."""
    return str(target).removesuffix(".default")


def call_arguments(
    target: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], value_of: Callable[[Node], Any]
) -> dict[str, Any]:
    """A call's arguments by schema name, in IR terms; those left at the schema's default are absent.

    Raises:
        CaptureError: one is a dtype without a name here.
    """
    schema = {a.name: a for a in target._schema.arguments}
    given = dict(zip(schema, args, strict=False)) | dict(kwargs)
    return {name: _as_declared(_convert(value, value_of), schema[name]) for name, value in given.items()}


def _as_declared(value: Any, argument: Any) -> Any:
    """An int where the schema has a float becomes one, as in torch."""
    is_float = isinstance(argument.type, torch.FloatType)
    return float(value) if is_float and type(value) is int else value


def _convert(value: Any, value_of: Callable[[Node], Any]) -> Any:
    if isinstance(value, Node):
        return value_of(value)
    if isinstance(value, (list, tuple)):
        return tuple(_convert(v, value_of) for v in value)
    if isinstance(value, torch.dtype):
        if value not in DTYPE_NAMES:
            raise CaptureError(f"tensors of dtype {value} are not supported")
        return DType(DTYPE_NAMES[value])
    return value


def definition_for(
    target: OpOverload, arguments: Mapping[str, Any], table: OpTable, builder: Builder
) -> tuple[OpDef, dict[str, Any]]:
    """The definition to use for a call, and the call's arguments in that definition's terms."""
    if draws(target, arguments):
        return opaque(target, draws=True), {n: v for n, v in arguments.items() if n not in _LEFT_OUT}
    name = overload_name(target)
    bound = dict(arguments)
    if name in _TRUTHS and bound.get("dim") is not None and not bound["dim"]:
        return _truth_of_each(bound["self"], table, builder)
    schema = {a.name: a for a in target._schema.arguments}
    name = _tensor_overload(name, bound, table)
    if name != overload_name(target):
        schema["other"] = getattr(torch.ops.aten, name.split(".")[1]).Tensor._schema.arguments[1]
    numbers = [n for n, v in bound.items() if _is_number(v) and isinstance(schema[n].type, torch.TensorType)]
    if numbers:
        name, bound = _scalar_overload(name, bound, numbers, table, builder)
    definition = table.get(name) or opaque(target)
    known = {p.name for p in definition.params}
    for unknown in [n for n in bound if n not in known]:
        if unknown not in _LEFT_OUT and not _is_default(bound[unknown], schema.get(unknown)):
            return opaque(target), dict(arguments)
        del bound[unknown]
    return definition, bound


def _truth_of_each(x: Value, table: OpTable, builder: Builder) -> tuple[OpDef, dict[str, Any]]:
    """``any`` and ``all`` over no axis: whether each element is not 0; of u8, as u8."""
    if x.tensor.dtype == DType.U8:
        return table["aten._to_copy"], {"self": builder.aten.ne.Scalar(x, 0), "dtype": DType.U8}
    return table["aten.ne.Scalar"], {"self": x, "other": 0}


def _tensor_overload(name: str, bound: Mapping[str, Any], table: OpTable) -> str:
    """A size is no number that an attribute can hold: an op with one takes it as a tensor."""
    tensor = f"{name.removesuffix('.Scalar')}.Tensor"
    is_size = name.endswith(".Scalar") and isinstance(bound.get("other"), Expr)
    return tensor if is_size and tensor in table else name


def draws(target: OpOverload, arguments: Mapping[str, Any]) -> bool:
    """Whether a call of ``target`` with ``arguments``, by schema name, advances torch's generator."""
    if not is_random(target) or target.namespace == MARKERS:
        return False
    given = {a.name: arguments.get(a.name, a.default_value) for a in target._schema.arguments}
    if any(given.get(name, True) is False for name in _TRAINING):
        return False
    return all(given.get(name, 1) != 0 for name in _PROBABILITIES)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, complex, Expr))


def _scalar_overload(
    name: str, bound: dict[str, Any], numbers: list[str], table: OpTable, builder: Builder
) -> tuple[str, dict[str, Any]]:
    """A number where the schema has a tensor: the scalar overload, or a 0-d tensor when there is none."""
    base, _, overload = name.rpartition(".")
    scalar = f"{base}.Scalar"
    if (
        overload == "Tensor"
        and scalar in table
        and numbers == ["other"]
        and not isinstance(bound["other"], Expr)
    ):
        return scalar, bound
    for each in numbers:
        bound[each] = _number_tensor(bound[each], builder)
    return name, bound


def _number_tensor(value: Any, builder: Builder) -> Value:
    if isinstance(value, Expr):
        return builder.rg.dim_value(value)
    dtype = DType.BOOL if isinstance(value, bool) else DType.I64 if isinstance(value, int) else DType.F32
    return builder.aten.full((), value, dtype)


def _is_default(value: Any, argument: Any) -> bool:
    return argument is not None and argument.has_default_value() and value == argument.default_value


def opaque(target: OpOverload, *, draws: bool = False) -> OpDef:
    """A definition by torch's schema, for an op outside the table: its result types are those captured.

    ``draws`` says that its calls advance torch's generator.
    """
    params = tuple(
        _param(argument) for argument in target._schema.arguments if argument.name not in PLACEMENT
    )
    traits = Trait.RANDOM if draws else Trait.PURE
    if target._schema.is_mutable:
        traits = Trait.NONE
    if Trait.RANDOM in traits:
        params = (*params, AttrSpec(MEMORY_ORDER, None))
    return OpDef(overload_name(target), params, _no_rule, traits, opaque=True)


def _no_rule(site: Any) -> Any:
    raise TypeError(f"{site.definition.name} has no type rule: give OpDef.infer to write it in a rewrite")


def _param(argument: Any) -> Operand | AttrSpec:
    text = str(argument.type)
    arities = {
        "Tensor": Arity.SINGLE,
        "Optional[Tensor]": Arity.OPTIONAL,
        "List[Tensor]": Arity.VARIADIC,
        "List[Optional[Tensor]]": Arity.OPTIONAL_LIST,
    }
    if text in arities:
        return Operand(argument.name, arities[text])
    if argument.has_default_value():
        # A schema has dtypes as torch's numbers; capture writes out the one that is meant.
        default = None if argument.name == "dtype" else argument.default_value
        return AttrSpec(argument.name, tuple(default) if isinstance(default, list) else default)
    return AttrSpec(argument.name)
