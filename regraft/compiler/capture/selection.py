"""Selections by a mask, and what torch asserts about how much they select."""

# torch's export and fx classes are partly untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import linecache
from collections.abc import Collection, Mapping
from functools import reduce
from itertools import takewhile
from typing import Any

from regraft.compiler.capture.sizes import Sizes
from regraft.errors import CaptureError
from regraft.ir import Builder, Dim, DType, Location, Symbol, TensorType, Trait, Value, dims
from regraft.rewrites import fold

#: Op -> the operand of which it gives a part.
_PART_OF = {
    "aten.nonzero": "self",
    "aten._unique2": "self",
    "aten.masked_select": "self",
}

#: Ops that torch refuses over no elements, but traces where values decide how many there are.
_PICKING = frozenset(
    f"aten.{name}"
    for name in (
        *("max", "min", "max.dim", "min.dim", "argmax", "argmin", "amax", "amin", "aminmax"),
        *("kthvalue", "median.dim", "nanmedian.dim", "mode", "topk"),
    )
)

#: Those that need as many as their argument ``k``.
_OF_SEVERAL = frozenset({"aten.kthvalue", "aten.topk"})
#: Those that pick along the last axis where their argument ``dim`` is absent, and not along all.
_ALONG_LAST = frozenset({"aten.kthvalue", "aten.mode", "aten.topk"})

#: Class of a comparison in sympy -> the op on tensors, and how it is proved.
_COMPARISONS: Mapping[str, str] = {
    "LessThan": "le",
    "StrictLessThan": "lt",
    "GreaterThan": "ge",
    "StrictGreaterThan": "gt",
    "Equality": "eq",
    "Unequality": "ne",
}

#: No size is larger.
_LARGEST = 2**63 - 1

#: How torch begins a message where the model gives none.
_TORCHS = "Runtime assertion failed for expression"

_CONNECTIVES: Mapping[str, str] = {"And": "logical_and", "Or": "logical_or"}


def picking_mask(
    name: str, arguments: Mapping[str, Any], among: Collection[str] = ("aten.index.Tensor",)
) -> Value | None:
    """The one mask by which an op ``among`` these picks elements, or None."""
    if name not in among:
        return None
    given = [index for index in arguments["indices"] if index is not None]
    return given[0] if len(given) == 1 and given[0].tensor.dtype == DType.BOOL else None


def longest_result(name: str, arguments: Mapping[str, Any]) -> int | None:
    """The most elements that the op can pick; None when that is not known."""
    whole: Any = picking_mask(name, arguments) or arguments.get(_PART_OF.get(name, ""))
    numel = whole.tensor.numel if isinstance(whole, Value) else None
    if name == "aten.masked_select":
        other = arguments["mask"].tensor
        numel = numel if isinstance(whole, Value) and other.shape == whole.tensor.shape else None
    return numel if isinstance(numel, int) else None


def picked(builder: Builder, arguments: Mapping[str, Any], mask: Value, places: Value) -> Value:
    """``self[mask]`` from the places where the mask is true."""
    return builder.aten.index.Tensor(arguments["self"], _by_places(builder, arguments, mask, places))


def _by_places(builder: Builder, arguments: Mapping[str, Any], mask: Value, places: Value) -> tuple[Any, ...]:
    """The indices of ``arguments`` with ``places`` in the stead of the mask."""
    columns: list[Any] = []
    for axis in range(mask.tensor.rank):
        column = builder.aten.slice.Tensor(places, 1, axis, axis + 1, 1)
        columns.append(builder.aten.view(column, (places.tensor.shape[0],)))
    before = takewhile(lambda index: index is None, arguments["indices"])
    return (*before, *columns)


def is_alike(a: Value, b: Value, depth: int = 8) -> bool:
    """Whether two values are the same by what computes them."""
    x, y = a.op, b.op
    if a is b or x is None or y is None or depth == 0:
        return a is b
    if (
        a.index != b.index
        or not x.has(Trait.PURE)
        or x.regions
        or x.symbols
        or fold.op_key(x, ()) != fold.op_key(y, ())
    ):
        return False
    return all(is_alike(p, q, depth - 1) for p, q in zip(x.operands, y.operands, strict=True))


def differing(arguments: Mapping[str, Any]) -> Value | None:
    """The mask of an ``aten.index_put`` whose values may differ from place to place, or None."""
    mask, values = picking_mask("aten.index_put", arguments, ("aten.index_put",)), arguments["values"]
    if mask is None or values.tensor.numel == 1 or values.tensor.rank <= _behind(arguments, mask):
        return None
    return mask


def _behind(arguments: Mapping[str, Any], mask: Value) -> int:
    """How many axes of what is written to lie behind those of the mask."""
    before = sum(1 for _ in takewhile(lambda index: index is None, arguments["indices"]))
    return arguments["self"].tensor.rank - before - mask.tensor.rank


def put(builder: Builder, arguments: Mapping[str, Any], mask: Value, places: Value) -> dict[str, Any]:
    """The arguments of a write by a mask, as one by the places where it is true.

    That there are as many values as places, or one for all, is checked at each call where it is not known.
    """
    values, count = arguments["values"], places.tensor.shape[0]
    axis = values.tensor.rank - 1 - _behind(arguments, mask)
    size = values.tensor.shape[axis]
    if dims.eq(size, 1) is not True and dims.eq(size, count) is not True:
        sizes = [builder.rg.dim_value(each) for each in (size, count)]
        message = f"{size} values are written to the places that a mask picks, of which there are {count}"
        fits = builder.aten.eq.Tensor(*sizes)
        if dims.eq(size, 1) is None:
            fits = builder.aten.logical_or(fits, builder.aten.eq.Scalar(sizes[0], 1))
        builder.rg.check(fits, message)
        # The check may be read at the end of the call: until then there is a value for each place.
        number = builder.aten.arange.start_step(0, count, 1, dtype=DType.I64)
        number = builder.aten.minimum(number, builder.rg.dim_value(size - 1))
        values = builder.aten.index.Tensor(values, (*(None,) * axis, number))
    return {**arguments, "indices": _by_places(builder, arguments, mask, places), "values": values}


def check_elements(name: str, arguments: Mapping[str, Any], builder: Builder) -> None:
    """Check at each call that the op ``name`` has enough to pick from, where values say how much."""
    if name not in _PICKING:
        return
    least: Dim = arguments["k"] if name in _OF_SEVERAL else 1
    shape = arguments["self"].tensor.shape
    axis = arguments.get("dim", -1 if name in _ALONG_LAST else None)
    axes = [axis] if isinstance(axis, int) else axis
    for dim in [shape[each] for each in axes] if axes and shape else shape:
        if dims.le(least, dim) is not True:
            enough = builder.aten.ge.Tensor(builder.rg.dim_value(dim), builder.rg.dim_value(least))
            few = "no elements" if least == 1 else "too few elements"
            message = f"{name} of {few}: {dim}, a size that values decide, must be {least} or more"
            builder.rg.check(enough, message)


def as_captured(builder: Builder, value: Value, type: TensorType) -> Value:
    """``value`` in the type that it was captured with: sizes that later code has settled are checked."""
    for dim, needed in zip(value.tensor.shape, type.shape, strict=True):
        if dim != needed:
            sizes = [builder.rg.dim_value(each) for each in (dim, needed)]
            message = f"a size that values decide is {needed} in the captured model"
            builder.rg.check(builder.aten.eq.Tensor(*sizes), message)
    return value if value.type == type else builder.aten.view(value, type.shape)


def number_as_size(builder: Builder, value: Value, dim: Dim, symbols: tuple[Symbol, ...]) -> None:
    """Let ``value``, one integer, define the symbol among ``symbols``; where there is none, it is ``dim``."""
    number = builder.aten.view(value, ()) if value.tensor.rank else value
    if number.tensor.dtype != DType.I64:
        number = builder.create("aten._to_copy", (number,), {"dtype": DType.I64}).result
    if symbols:
        builder.rg.check(builder.aten.ge.Scalar(number, 0), "a number that is used as a size is negative")
        builder.create("rg.bind_dim", (number,), symbols=symbols)
    else:
        message = f"a number that values decide is {dim} in the captured model"
        builder.rg.check(builder.aten.eq.Tensor(number, builder.rg.dim_value(dim)), message)


def check_sizes(condition: Any, sizes: Sizes, builder: Builder, message: str) -> None:
    """Check at each call what torch asserts of sizes that depend on values, unless it is proved.

    Raises:
        CaptureError: the condition is not made of comparisons of sizes.
    """
    name = _COMPARISONS.get(type(condition).__name__)
    if name is None or not _is_proved(name, *_sides(condition, sizes)):
        if message.startswith(_TORCHS):
            message = _unfit(condition, sizes, builder.loc)
        builder.rg.check(truth(condition, sizes, builder), message)


def _unfit(condition: Any, sizes: Sizes, loc: Location) -> str:
    """What a call that fails says in place of torch's own text, which names nodes and symbols of its own."""
    holds = str(condition)
    if type(condition).__name__ in _COMPARISONS:
        left, right = _sides(condition, sizes)
        holds = f"{left} {condition.rel_op} {right}"
    source = linecache.getline(loc.file, loc.line).strip()
    # torch asserts where the last of the sizes is made, not where it needs them.
    place = f", of which the last is made at {loc.file}:{loc.line}: {source}" if loc.file else ""
    return f"sizes that values decide do not fit: {holds} must hold{place}"


def truth(condition: Any, sizes: Sizes, builder: Builder) -> Value:
    """A condition on sizes, of sympy or settled, as a ``bool[]``.

    Raises:
        CaptureError: it is not made of comparisons of sizes.
    """
    if isinstance(condition, bool):
        return builder.aten.full((), condition, DType.BOOL)
    kind = type(condition).__name__
    if kind in ("BooleanTrue", "BooleanFalse"):
        return truth(bool(condition), sizes, builder)
    if kind in _CONNECTIVES:
        parts = [truth(each, sizes, builder) for each in condition.args]
        return reduce(getattr(builder.aten, _CONNECTIVES[kind]), parts)
    if kind == "Not":
        return builder.aten.logical_not(truth(condition.args[0], sizes, builder))
    if kind not in _COMPARISONS:
        raise CaptureError(f"the condition {condition} on a size cannot be computed")
    values = [builder.rg.dim_value(side) for side in _sides(condition, sizes)]
    return builder.call(f"aten.{_COMPARISONS[kind]}.Tensor", values, {})  # pyright: ignore[reportReturnType]


def _sides(comparison: Any, sizes: Sizes) -> tuple[Dim, Dim]:
    left, right = (sizes.from_expression(side) for side in comparison.args)
    return left, right


def _is_proved(name: str, left: Dim, right: Dim) -> bool:
    if name in ("eq", "ne"):
        return dims.eq(left, right) is (name == "eq")
    low, high = (left, right) if name in ("le", "lt") else (right, left)
    if isinstance(high, int) and high > _LARGEST:  # torch's bound of a size, and then some
        return True
    return dims.le(low + (1 if name in ("lt", "gt") else 0), high) is True
