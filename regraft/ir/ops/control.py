"""Regions, constants, and the bridge between sizes and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from regraft.ir.dims import Dim, eq
from regraft.ir.dtypes import DType
from regraft.ir.opdef import SAFE, CallSite, Constant, Trait
from regraft.ir.ops.rules import define, refuse, require, require_equal
from regraft.ir.types import TensorType, Type


def _yield(_: CallSite) -> Sequence[Type]:
    return ()


def _condition(site: CallSite) -> Sequence[Type]:
    """Both branches take the operands; where their results differ in a size, a symbol stands for both."""
    _require_bool(site, site.type("pred"), "the predicate")
    then, other = site.regions
    for region in site.regions:
        require_types(site, region.arg_types, site.operand_types[1:], "a branch's arguments")
    if len(then.result_types) != len(other.result_types):
        refuse(site, f"the branches yield {len(then.result_types)} and {len(other.result_types)} values")
    fresh = iter(site.symbols)
    pairs = zip(then.result_types, other.result_types, strict=True)
    return tuple(_join(site, pair, fresh) for pair in pairs)


def _loop(site: CallSite) -> Sequence[Type]:
    """The condition and the body take the carried values; the body yields them again."""
    condition, body = site.regions
    if len(condition.result_types) != 1:
        refuse(site, f"the condition yields {len(condition.result_types)} values, expected one")
    _require_bool(site, condition.result_types[0], "the condition")
    require_types(site, condition.arg_types, body.arg_types, "the condition's arguments")
    if len(body.result_types) != len(body.arg_types) or len(body.arg_types) != len(site.operand_types):
        refuse(site, "the operands, the body's arguments and the values it yields differ in number")
    fresh = iter(site.symbols)
    rows = zip(site.operand_types, body.arg_types, body.result_types, strict=True)
    return tuple(_join(site, row, fresh) for row in rows)


def _scan(site: CallSite) -> Sequence[Type]:
    """A trip takes the carried values, a slice of each scanned tensor (along its first axis), the fixed ones.

    It yields the carried values again, and then values of which there is one for each trip in the results.
    """
    (body,) = site.regions
    scanned, carried = site.variadic("scanned"), site.variadic("carried")
    require(bool(scanned), site, "nothing is scanned, so nothing says how many trips there are")
    for tensor in scanned:
        require(tensor.rank > 0, site, f"what is scanned is {tensor}, without an axis")
        require_equal(site, tensor.shape[0], scanned[0].shape[0], "the numbers of slices")
    slices = [tensor.with_shape(tensor.shape[1:]) for tensor in scanned]
    require_types(
        site, body.arg_types, (*carried, *slices, *site.variadic("fixed")), "the arguments of a trip"
    )
    count = len(carried)
    require(len(body.result_types) >= count, site, "a trip yields fewer values than are carried")
    nothing: Iterator[Dim] = iter(())
    rows = zip(carried, body.arg_types, body.result_types, strict=False)
    after = [_join(site, row, nothing) for row in rows]
    return (*after, *(_stacked(site, found, scanned[0].shape[0]) for found in body.result_types[count:]))


def _stacked(site: CallSite, found: Type, trips: Dim) -> TensorType:
    if not isinstance(found, TensorType):
        refuse(site, f"a trip yields a {found}, which cannot be stacked")
    return found.with_shape((trips, *found.shape))


def _require_bool(site: CallSite, found: Type, what: str) -> None:
    if not isinstance(found, TensorType) or found.dtype != DType.BOOL or found.shape != ():
        refuse(site, f"{what} is {found}, expected bool[]")


def require_types(site: CallSite, found: Sequence[Type], expected: Sequence[Type], what: str) -> None:
    if len(found) != len(expected):
        refuse(site, f"{what} are {len(found)}, expected {len(expected)}")
    for position, (a, b) in enumerate(zip(found, expected, strict=True)):
        if not _may_be(a, b):
            refuse(site, f"{what}: number {position} is {a}, expected {b}")


def _may_be(a: Type, b: Type) -> bool:
    """Whether the types are equal, or differ only in sizes that are not proved different."""
    if not isinstance(a, TensorType) or not isinstance(b, TensorType):
        return a == b
    same = a.dtype == b.dtype and a.rank == b.rank and a.device == b.device
    return same and all(eq(x, y) is not False for x, y in zip(a.shape, b.shape, strict=True))


def _join(site: CallSite, types: Sequence[Type], fresh: Iterator[Dim]) -> Type:
    """The type of a value that has one of ``types``; the next of ``fresh`` stands for a size that differs."""
    first = types[0]
    tensors = [t for t in types if isinstance(t, TensorType)]
    for other in types:
        if isinstance(first, TensorType) and isinstance(other, TensorType):
            same = (first.dtype, first.rank, first.device) == (other.dtype, other.rank, other.device)
        else:
            same = first == other
        require(same, site, f"a value is {first} on one path and {other} on the other")
    if not isinstance(first, TensorType):
        return first
    shapes = zip(*(t.shape for t in tensors), strict=True)
    return first.with_shape(tuple(_join_dim(site, sizes, fresh) for sizes in shapes))


def _join_dim(site: CallSite, sizes: Sequence[Dim], fresh: Iterator[Dim]) -> Dim:
    differing = [size for size in sizes if eq(sizes[0], size) is not True]
    if not differing:
        return sizes[0]
    symbol = next(fresh, None)
    if symbol is None:
        refuse(
            site,
            f"a size is {sizes[0]} on one path and {differing[0]} on the other, and the op defines no symbol "
            "for it",
        )
    return symbol


def _const(site: CallSite) -> TensorType:
    value = site.attr("value")
    if not isinstance(value, Constant):
        refuse(site, f"the value is {value!r}, expected a constant")
    return value.type


def _dim_value(site: CallSite) -> TensorType:
    site.dim_attr("value")
    return TensorType(DType.I64, ())


def _bind_dim(site: CallSite) -> Sequence[Type]:
    found = site.type("x")
    if found.dtype != DType.I64 or found.shape != ():
        refuse(site, f"the operand is {found}, expected i64[]")
    return ()


def _check(site: CallSite) -> Sequence[Type]:
    _require_bool(site, site.type("pred"), "the predicate")
    return ()


# The ops with regions are not PURE: their regions may hold an rg.check, which the definition cannot know.
# A loop may have no end, so it is never run where it would not have been.
_ARMS = Trait.RECURSIVE | Trait.SPECULATABLE

OPS = (
    define("cf.yield(Tensor[] values)", _yield, SAFE | Trait.TERMINATOR),
    define("cf.cond(Tensor pred, Tensor[] operands)", _condition, _ARMS, regions=2),
    define("cf.while(Tensor[] operands)", _loop, Trait.RECURSIVE, regions=2),
    define("cf.scan(Tensor[] carried, Tensor[] scanned, Tensor[] fixed)", _scan, _ARMS, regions=1),
    define("rg.const(Constant value)", _const, SAFE | Trait.CONSTANT_LIKE),
    define("rg.dim_value(Dim value)", _dim_value),
    define("rg.bind_dim(Tensor x)", _bind_dim, Trait.NONE),
    define("rg.check(Tensor pred, str message='')", _check, Trait.NONE),
)
