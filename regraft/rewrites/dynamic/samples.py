"""How the examples of this family write conditions and loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from regraft.ir import Builder, Dim, Region, Symbol, Type, Value

#: ``body(op, *arguments)`` gives the value or the values that a region yields. Spelled out by number of
#: arguments, so that the parameters of a lambda have types.
Body: TypeAlias = (
    Callable[[Any], Any]
    | Callable[[Any, Any], Any]
    | Callable[[Any, Any, Any], Any]
    | Callable[[Any, Any, Any, Any], Any]
    | Callable[[Any, Any, Any, Any, Any], Any]
    | Callable[[Any, Any, Any, Any, Any, Any], Any]
)


def region(op: Builder, types: Sequence[Type], body: Body, symbols: Sequence[Symbol] = ()) -> Region:
    """A region over arguments of ``types``."""
    made = Region(types, symbols)
    inner = Builder(op.table, made)
    values = body(inner, *made.args)
    inner.create("cf.yield", ((values,) if isinstance(values, Value) else tuple(values),))
    return made


def cond(op: Builder, pred: Value, operands: Sequence[Value], then: Body, other: Body, **more: Any) -> Any:
    """``then`` or ``other`` over ``operands``: the result, or a tuple of several."""
    types = [value.type for value in operands]
    regions = (region(op, types, then), region(op, types, other))
    return _results(op.create("cf.cond", (pred, tuple(operands)), regions=regions, **more).results)


def loop(op: Builder, operands: Sequence[Value], test: Body, body: Body) -> Any:
    """``body`` over ``operands``, again while ``test``: the result, or a tuple of several."""
    types = [value.type for value in operands]
    regions = (region(op, types, test), region(op, types, body))
    return _results(op.create("cf.while", (tuple(operands),), regions=regions).results)


def below(limit: Dim) -> Body:
    """The test of a loop whose first value counts up to ``limit``."""

    def test(op: Any, i: Value, *_: Value) -> Any:
        if isinstance(limit, int):
            return op.aten.lt.Scalar(i, limit)
        return op.aten.lt.Tensor(i, op.rg.dim_value(limit))

    return test


def _results(values: Sequence[Value]) -> Value | tuple[Value, ...]:
    return values[0] if len(values) == 1 else tuple(values)
