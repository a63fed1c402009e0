"""What the op tables share: reading schemas, and rules for shapes, types and counts.

Sizes are questions with three answers. A rule refuses a call only when it is *proved* wrong; where
two sizes must be equal and that is not known, they are taken as equal, as torch's guards would have
them, and the more specific one stands for both.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from regraft.errors import OptionError
from regraft.ir.dims import Dim, ceildiv, eq, floordiv, le, maximum, minimum, product
from regraft.ir.dtypes import DType
from regraft.ir.opdef import (
    REQUIRED,
    SAFE,
    Arity,
    AttrSpec,
    CallSite,
    CountRule,
    DecomposeRule,
    InferRule,
    OpDef,
    Operand,
    Param,
    Trait,
    no_flops,
)
from regraft.ir.types import TensorType, Type

Shape = tuple[Dim, ...]

VIEW = SAFE | Trait.VIEW
ELEMENTWISE = SAFE | Trait.ELEMENTWISE
COMMUTATIVE = ELEMENTWISE | Trait.COMMUTATIVE

_ARITIES = {
    "Tensor": Arity.SINGLE,
    "Tensor?": Arity.OPTIONAL,
    "Tensor[]": Arity.VARIADIC,
    "Tensor?[]": Arity.OPTIONAL_LIST,
}

#: Parameters of torch's schemas that say where or how a tensor is stored. No op declares them: the device
#: is in the type, and layout belongs to buffers. An importer leaves them out.
PLACEMENT = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking", "copy"})

_COMMA = re.compile(r",(?![^\[]*\])")
_SCHEMA = re.compile(r"(\w+(?:\.\w+)+)\((.*)\)")


# -- definitions -------------------------------------------------------------------------------


def define(
    schema: str,
    infer: InferRule,
    traits: Trait = SAFE,
    flops: CountRule = no_flops,
    *,
    decompose: DecomposeRule | None = None,
    **more: Any,
) -> OpDef:
    """An op from its schema, written as torch prints it: ``aten.cumsum(Tensor self, int dim)``.

    ``more`` are further fields of ``OpDef``.
    """
    name, params = parse_schema(schema)
    return OpDef(name, params, infer, traits, flops, decompose=decompose, **more)


def spelling(schema: str, infer: InferRule, decompose: DecomposeRule, traits: Trait = SAFE) -> OpDef:
    """An op that ``canonicalize`` replaces by ``decompose``."""
    return define(schema, infer, traits, decompose=decompose, canonical=False)


def parse_schema(text: str) -> tuple[str, tuple[Param, ...]]:
    """Name and parameters; the marker of keyword-only parameters is left out.

    Raises:
        OptionError: the text is not a schema.
    """
    found = _SCHEMA.fullmatch(text)
    if found is None:
        raise _not_a_schema(text, "it is not a name with a dot, and parameters in parentheses")
    parts = [part.strip() for part in _COMMA.split(found[2])]
    return found[1], tuple(_parse_param(part, text) for part in parts if part not in ("", "*"))


def _parse_param(text: str, schema: str) -> Param:
    declared, given, default = text.partition("=")
    words = declared.split()
    if len(words) != 2 or not words[1].isidentifier():
        raise _not_a_schema(schema, f"'{text}' is not a type and a name")
    kind, name = words
    if kind in _ARITIES:
        return Operand(name, _ARITIES[kind])
    try:
        return AttrSpec(name, _as_tuple(ast.literal_eval(default)) if given else REQUIRED)
    except (SyntaxError, ValueError) as error:
        raise _not_a_schema(schema, f"the default in '{text}' is not a value") from error


def _not_a_schema(text: str, reason: str) -> OptionError:
    return OptionError(
        f"this is not the schema of an op: {reason}",
        "schema",
        repr(text),
        "one like 'mylib.fancy(Tensor x, float alpha=1.0)'",
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


# -- refusing ----------------------------------------------------------------------------------


def refuse(site: CallSite, reason: str) -> NoReturn:
    """Say that the call has no result type.

    Raises:
        TypeError: always, naming the op.
    """
    raise TypeError(f"{site.definition.name}: {reason}")


def require(condition: bool, site: CallSite, reason: str) -> None:
    if not condition:
        refuse(site, reason)


def require_rank(site: CallSite, name: str, *ranks: int) -> TensorType:
    """The type of operand ``name``, whose rank must be one of ``ranks``."""
    found = site.type(name)
    if found.rank not in ranks:
        wanted = " or ".join(str(r) for r in ranks)
        refuse(site, f"operand '{name}' has rank {found.rank}, expected {wanted} ({found})")
    return found


def require_float(site: CallSite, name: str) -> TensorType:
    found = site.type(name)
    if found.dtype.kind not in ("float", "complex"):
        refuse(site, f"operand '{name}' is {found.dtype}, expected a float type; cast it first")
    return found


def same_dtype(site: CallSite, types: Sequence[TensorType | None]) -> DType:
    """The one dtype of ``types``. Ops never promote: capture inserts casts."""
    dtypes = list(dict.fromkeys(t.dtype for t in types if t is not None))
    if len(dtypes) != 1:
        refuse(site, f"operands have different types: {', '.join(d.value for d in dtypes)}; insert casts")
    return dtypes[0]


_RANKS: dict[str, int] = {"bool": 0, "uint": 1, "int": 1, "float": 2, "complex": 3}


def scalar_kind(value: Any) -> int:
    """Place of a Python scalar's type in bool < int < float < complex."""
    if isinstance(value, bool):
        return 0
    if isinstance(value, float):
        return 2
    return 3 if isinstance(value, complex) else 1


def require_scalar_fits(site: CallSite, dtype: DType, *values: Any) -> None:
    """Refuse a scalar that would make torch promote a tensor of ``dtype``."""
    for value in values:
        if value is not None and scalar_kind(value) > _RANKS[dtype.kind]:
            refuse(site, f"the scalar {value!r} would promote {dtype}; insert a cast")


# -- axes and sizes ----------------------------------------------------------------------------


def axis_of(site: CallSite, dim: Any, rank: int) -> int:
    """``dim`` as a non-negative axis; a rank-0 tensor has the axes 0 and -1, as in torch."""
    extent = max(rank, 1)
    if isinstance(dim, bool) or not isinstance(dim, int) or not -extent <= dim < extent:
        refuse(site, f"dim {dim!r} is out of range for rank {rank}")
    return dim % extent


def axes_of(site: CallSite, name: str, rank: int) -> tuple[int, ...]:
    """The attribute ``name`` as distinct axes in the order given; None or empty means every axis."""
    value = site.attr(name)
    if value is None or value == ():
        return tuple(range(rank))
    axes = tuple(axis_of(site, d, rank) for d in (value if isinstance(value, tuple) else (value,)))  # pyright: ignore[reportUnknownVariableType]
    require(len(set(axes)) == len(axes), site, f"dims {value} repeat an axis")
    return axes


def unify(a: Dim, b: Dim) -> Dim | None:
    """The size that both are, a number where one is; None when they are proved different."""
    if eq(a, b) is False:
        return None
    return a if isinstance(a, int) or not isinstance(b, int) else b


def require_equal(site: CallSite, a: Dim, b: Dim, what: str) -> Dim:
    size = unify(a, b)
    if size is None:
        refuse(site, f"{what} differ: {a} and {b}")
    return size


def broadcast_dim(a: Dim, b: Dim) -> Dim | None:
    """One axis of a broadcast. A symbol that meets another size is taken to equal it, never to be 1."""
    if b == 1:
        return a
    return b if a == 1 else unify(a, b)


def broadcast(site: CallSite, shapes: Sequence[Shape]) -> Shape:
    """The common shape of ``shapes`` under broadcasting."""
    result: Shape = ()
    for shape in shapes:
        rank = max(len(result), len(shape))
        left = (1,) * (rank - len(result)) + result
        right = (1,) * (rank - len(shape)) + shape
        dims = [broadcast_dim(a, b) for a, b in zip(left, right, strict=True)]
        if any(d is None for d in dims):
            refuse(site, f"shapes do not broadcast: {_shape_text(result)} and {_shape_text(shape)}")
        result = tuple(d for d in dims if d is not None)
    return result


def _shape_text(shape: Shape) -> str:
    return f"[{', '.join(str(d) for d in shape)}]"


def replaced(shape: Shape, axis: int, size: Dim) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def without(shape: Shape, axes: Sequence[int]) -> Shape:
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def reduced(shape: Shape, axes: Sequence[int], keepdim: bool) -> Shape:
    if keepdim:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return without(shape, axes)


def is_negative(dim: Dim) -> bool:
    """Whether ``dim`` is proved negative (a symbol is taken as non-negative)."""
    return le(dim, -1) is True


def slice_bounds(size: Dim, start: Dim | None, end: Dim | None) -> tuple[Dim, Dim]:
    """``start`` and ``end`` of a slice resolved as Python does: 0 <= start <= end <= size."""
    low = _clamped(0 if start is None else start, size)
    high = _clamped(size if end is None else end, size)
    return low, maximum(low, high)


def _clamped(bound: Dim, size: Dim) -> Dim:
    if is_negative(bound):
        return maximum(0, bound + size)
    return minimum(bound, size)


def resolve_sizes(site: CallSite, numel: Dim, sizes: Shape) -> Shape:
    """``sizes`` of a view with the one -1 worked out."""
    unknown = [i for i, s in enumerate(sizes) if s == -1]
    require(len(unknown) <= 1, site, f"more than one -1 in {_shape_text(sizes)}")
    if unknown:
        (axis,) = unknown
        known = product(without(sizes, unknown))
        require(known != 0, site, f"-1 is ambiguous in {_shape_text(sizes)}")
        sizes = replaced(sizes, axis, floordiv(numel, known))
    if eq(numel, product(sizes)) is False:
        refuse(site, f"{numel} elements do not fit the shape {_shape_text(sizes)}")
    return sizes


def window_size(
    size: Dim, kernel: Dim, stride: Dim, padding: Dim, dilation: Dim, ceil_mode: bool = False
) -> Dim:
    """Output size of one axis of a convolution or pooling."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return floordiv(room, stride) + 1
    # torch drops a last window that would start in the right padding.
    return minimum(ceildiv(room, stride), floordiv(size + padding - 1, stride)) + 1


def spread(site: CallSite, name: str, count: int) -> tuple[Dim, ...]:
    """A size attribute per axis; one value stands for all."""
    values = site.dims(name)
    if len(values) == 1:
        values = values * count
    require(len(values) == count, site, f"attribute '{name}' has {len(values)} values, expected {count}")
    return values


# -- type rules --------------------------------------------------------------------------------


def same_type(name: str = "self") -> InferRule:
    """The result has the type of operand ``name``."""
    return lambda site: site.type(name)


def same_float_type(name: str = "self") -> InferRule:
    return lambda site: require_float(site, name)


def broadcast_type(site: CallSite, types: Sequence[TensorType], dtype: DType) -> TensorType:
    return TensorType(dtype, broadcast(site, [t.shape for t in types]), types[0].device)


def dtype_attr(site: CallSite, default: DType, name: str = "dtype") -> DType:
    value = site.attr(name)
    if value is not None and not isinstance(value, DType):
        refuse(site, f"attribute '{name}' is {value!r}, expected a dtype")
    return value or default


# -- counts ------------------------------------------------------------------------------------


def result_types(site: CallSite) -> tuple[Type, ...]:
    inferred = site.definition.infer(site)
    return tuple(inferred) if isinstance(inferred, Sequence) else (inferred,)


def per_result(count: int = 1) -> CountRule:
    """``count`` operations for each element of the first result."""

    def flops(site: CallSite) -> Dim:
        first = result_types(site)[0]
        return count * first.numel if isinstance(first, TensorType) else 0

    return flops


def per_element(name: str, count: int = 1) -> CountRule:
    """``count`` operations for each element of the operand ``name``."""
    return lambda site: count * site.type(name).numel


ValueOf = Callable[[Any, Any], Any]


def one(rule: ValueOf) -> DecomposeRule:
    """A decompose rule from one that gives the only result."""
    return lambda b, op: (rule(b, op),)


def drop(name: str = "self") -> DecomposeRule:
    """Decompose to the operand ``name``."""
    return lambda _, op: (op.operand(name),)
