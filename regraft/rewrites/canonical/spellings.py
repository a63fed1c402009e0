"""The pass that leaves one spelling of each op: decomposes the others and normalises attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from regraft.ir import (
    STAGE_RULES,
    Attr,
    Builder,
    Dim,
    DType,
    Module,
    Op,
    PassContext,
    Rewriter,
    TensorType,
    Type,
    Value,
    dims,
    refines,
    stage_problem,
)

_MAX_DEPTH = 32


@dataclass(frozen=True)
class CanonicalSpellings:
    """Replaces every op that is not in the normal form and has a decomposition by it, again and again.

    Ops that stay get the attributes of the normal form: sizes without -1, dimensions counted from
    the front, resolved slice bounds, and None for a dtype that is the operand's own.
    """

    name: str = "canonical-spellings"
    stage: str = "canonicalize"
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def run(self, module: Module, context: PassContext) -> bool:
        rewriter = context.rewriter(self.name)
        ops = (op for function in module.functions.values() for op in function.walk())
        changes = [_visit(op, rewriter, 0) for op in ops]
        return any(changes)


def _visit(op: Op, rewriter: Rewriter, depth: int) -> bool:
    """Bring one op, and the ops this makes, into the normal form; whether anything changed."""
    assert depth < _MAX_DEPTH, f"{op.name} decomposes without end"
    if op.parent is None or op.definition.opaque:
        return False
    builder = rewriter.before(op)
    values = _decomposed(op, builder)
    if values is not None:
        rewriter.replace(op, _as_captured(op, values, builder))
    else:
        assert op.definition.canonical, f"{op.name} is not canonical and has no decomposition"
        changes = normal_attributes(op)
        if not changes:
            return False
        # The type stays: capture may know more than the rule, such as that a slice [:1] is not empty.
        types = [result.type for result in op.results]
        made = builder.create(op.name, (), {**op.arguments(), **changes}, result_types=types)
        rewriter.replace(op, made.results)
    for new in builder.made:
        _visit(new, rewriter, depth + 1)
    return True


def _decomposed(op: Op, builder: Builder) -> tuple[Value, ...] | None:
    """What replaces ``op`` where it is not in the normal form; None where it is, or has no decomposition."""
    rule = op.definition.decompose
    if rule is None or stage_problem(op, STAGE_RULES["canonicalize"]) is None:
        return None
    values = rule(builder, op)
    return None if values is None else tuple(values)


def _as_captured(op: Op, values: tuple[Value, ...], builder: Builder) -> tuple[Value, ...]:
    """``values`` with the types that capture gave: the rules may know less of symbolic sizes."""
    if len(values) != len(op.results):
        return values
    return tuple(_typed(new, old, builder) for old, new in zip(op.results, values, strict=True))


def _typed(new: Value, old: Value, builder: Builder) -> Value:
    if new.type == old.type or not _may_be_equal(new.type, old.type):
        return new
    assert isinstance(old.type, TensorType)
    if refines(new.type, old.type):
        return new
    if new.op is None or new.op not in builder.made or new.uses:
        return builder.aten.view(new, old.type.shape)
    new.type = old.type
    return new


def _may_be_equal(a: Type, b: Type) -> bool:
    """Whether two types differ at most in sizes, none of them provably."""
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return False
    if (a.dtype, a.device, a.rank) != (b.dtype, b.device, b.rank):
        return False
    return all(dims.eq(x, y) is not False for x, y in zip(a.shape, b.shape, strict=True))


def normal_attributes(op: Op) -> dict[str, Attr]:
    """The attributes of ``op`` that are not in the normal form, with their normal values."""
    rule = _RULES.get(op.name)
    normal = {**_axes(op), **(rule(op) if rule else {})}
    return {name: value for name, value in normal.items() if not _same(value, op.attrs[name])}


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def _axes(op: Op) -> dict[str, Any]:
    """``dim`` and ``dims`` counted from the front."""
    if not op.operands or op.results == () or op.definition.dialect != "aten":
        return {}
    rank = max(op.operands[0].tensor.rank, 1)
    found: dict[str, Any] = {}
    for name in ("dim", "dims"):
        value = op.attrs.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            found[name] = value % rank
        elif isinstance(value, tuple):
            found[name] = tuple(axis % rank for axis in value if isinstance(axis, int))
    return found


def _sizes_of_result(op: Op) -> dict[str, Any]:
    return {"size": op.result.tensor.shape} | ({"implicit": False} if "implicit" in op.attrs else {})


def _reduced_axes(op: Op) -> dict[str, Any]:
    """A tuple of axes, all of them when none is given."""
    given, rank = op.attr("dim"), op.operands[0].tensor.rank
    if given is None or given == ():
        return {"dim": tuple(range(rank)), **_own_dtype(op)}
    axes: tuple[int, ...] = (given,) if isinstance(given, int) else given
    return {"dim": tuple(axis % max(rank, 1) for axis in axes), **_own_dtype(op)}


def _own_dtype(op: Op) -> dict[str, Any]:
    """No ``dtype`` where it says what the op does anyway. Sums of integers are i64 by default."""
    dtype, own = op.attrs.get("dtype"), op.operands[0].tensor.dtype
    return {"dtype": None} if dtype is not None and dtype == own and own.is_float else {}


def _slice_bounds(op: Op) -> dict[str, Any]:
    axis: int = op.attr("dim")
    size = op.operand("self").tensor.shape[axis]
    start = _clamped(0 if op.attr("start") is None else op.attr("start"), size)
    end = _clamped(size if op.attr("end") is None else op.attr("end"), size)
    return {"start": start, "end": dims.maximum(start, end)}


def _clamped(bound: Dim, size: Dim) -> Dim:
    """A bound as Python resolves it: negative ones count from the end, and none leaves [0, size]."""
    if dims.le(bound, -1) is True:
        return dims.maximum(0, bound + size)
    return dims.minimum(bound, size)


def _explicit_eps(op: Op) -> dict[str, Any]:
    """The number that None stands for: the epsilon of the dtype that torch computes in."""
    if op.attr("eps") is not None:
        return {}
    return {"eps": 2.0**-52 if op.operands[0].tensor.dtype is DType.F64 else 2.0**-23}


_RULES: Mapping[str, Callable[[Op], dict[str, Any]]] = {
    "aten.view": _sizes_of_result,
    "aten.expand": _sizes_of_result,
    "aten.slice.Tensor": _slice_bounds,
    "aten.sum.dim_IntList": _reduced_axes,
    "aten.mean.dim": _reduced_axes,
    "aten.amax": _reduced_axes,
    "aten.amin": _reduced_axes,
    "aten.var.correction": _reduced_axes,
    "aten.softmax.int": _own_dtype,
    "aten.log_softmax.int": _own_dtype,
    "aten.cumsum": _own_dtype,
    "aten.layer_norm": lambda op: {"cudnn_enable": True},
    "aten.rms_norm": _explicit_eps,
}
